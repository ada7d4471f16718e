"""Keys are named in a config, never written: config.json, logs and W&B keep the config.

They come from variables of the environment. What looks like the value of one is refused before
anything is written, and not repeated in the error.
"""

from collections.abc import Iterator, Mapping
import os
import re

import ml_collections

from vr_jax import errors
from vr_jax.train import config_changes

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HOLDS_KEY = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
_SHORTEST = 16  # characters of a value that counts as a key; a word such as "anything" is none
_LONGEST_NAME = 64


def problems(
  config: ml_collections.ConfigDict, variables: Mapping[str, str] = os.environ
) -> Iterator[errors.InputError]:
  """Yields an error for each field of a config that holds a key instead of a variable's name.

  variables: of the environment.
  """
  keys = {
    name: value
    for name, value in variables.items()
    if _HOLDS_KEY.search(name) and len(value) >= _SHORTEST
  }
  for field, value in config_changes.flatten(config.to_dict()).items():
    if not isinstance(value, str):
      continue
    if field.endswith("key_variable") and value and not _is_name(value):
      yield errors.InputError(
        f"--config.{field}: needs the name of an environment variable, not the key itself: "
        "export MY_KEY=…, and give MY_KEY"
      )
    elif name := next((name for name, key in keys.items() if key in value), ""):
      yield errors.InputError(
        f"--config.{field}: holds the value of the environment variable {name}, which config.json "
        "would keep; take it out"
      )


def _is_name(text: str) -> bool:
  return len(text) <= _LONGEST_NAME and _VARIABLE.fullmatch(text) is not None
