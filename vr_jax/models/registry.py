"""The registry of model families, by the `model_type` of a config.json.

    family = registry.family_of(config)
    config = registry.read_config(directory / "config.json")
    config, params = registry.from_pretrained(directory)

A family outside this package registers itself: `registry.register(family)`.
"""

from collections.abc import Callable, Mapping
import importlib
import pathlib
import re
from typing import Any

from jaxtyping import DTypeLike, PyTree

from vr_jax import errors
from vr_jax.models import family as family_lib
from vr_jax.models import interface
from vr_jax.models.common import checkpoint

# model_type -> the module that defines its FAMILY, imported on first use.
_BUILT_IN = {
  "qwen2_5_vl": "vr_jax.models.qwen2_5_vl.family",
  "qwen3_vl": "vr_jax.models.qwen3_vl.family",
  "tinyllava": "vr_jax.models.tinyllava.family",
}
_registered: dict[str, family_lib.ModelFamily] = {}


def register(family: family_lib.ModelFamily) -> None:
  """Adds a family, or replaces the registered one with the same `model_type`."""
  _registered[family.model_type] = family


def known() -> tuple[str, ...]:
  """All model types, built-in and registered."""
  return tuple(sorted({*_BUILT_IN, *_registered}))


def family(model_type: str) -> family_lib.ModelFamily:
  """Returns the family of a model type. Raises InputError if there is none."""
  if model_type not in _registered:
    if model_type not in _BUILT_IN:
      raise errors.InputError(
        f"model_type: is {model_type!r}, but only {', '.join(map(repr, known()))} can be read"
      )
    register(importlib.import_module(_BUILT_IN[model_type]).FAMILY)
  return _registered[model_type]


def family_of(config: interface.ModelConfig) -> family_lib.ModelFamily:
  """Returns the family of a config."""
  return family(config.model_type)


def family_of_fields(fields: Mapping[str, Any]) -> family_lib.ModelFamily:
  """Returns the family of a config.json's fields. Raises InputError if they name none."""
  if not isinstance(fields.get("model_type"), str):
    raise errors.InputError(f"model_type: the field is missing; one of {', '.join(known())}")
  return family(fields["model_type"])


def family_in(directory: str | pathlib.Path) -> family_lib.ModelFamily:
  """Returns the family of a Hugging Face directory, or of the released model of that name.

  Raises InputError naming its config.json.
  """
  path = pathlib.Path(directory) / "config.json"
  if not path.is_file() and (found := _preset(directory)):
    return found[0]
  try:
    return family_of_fields(family_lib.read_fields(path))
  except errors.InputError as error:
    message = str(error)
    raise errors.InputError(
      message if message.startswith(str(path)) else f"{path}: {message}"
    ) from error


def read_config(path: str | pathlib.Path) -> interface.ModelConfig:
  """Reads a config.json of any family. Raises InputError naming the file."""
  return family_in(pathlib.Path(path).parent).read_config(path)


def preset_config(directory: str | pathlib.Path) -> interface.ModelConfig:
  """Returns the config of a Hugging Face directory, or of the released model of that name.

  Raises InputError if there is neither.
  """
  path = pathlib.Path(directory)
  if (path / "config.json").is_file():
    return read_config(path / "config.json")
  if found := _preset(path):
    return found[0].make_config(found[1])
  names = (name for model_type in known() for name in family(model_type).presets)
  raise errors.InputError(
    f"config.model.pretrained={path}: holds no config.json, and is none of {', '.join(names)}"
  )


def check_directory(directory: str | pathlib.Path, field: str) -> None:
  """Raises InputError if there is no such directory with a config.json; says how to get one.

  directory: of a Hugging Face model; it may also be a Hub id, or the name of a released model.
  field: the config field that names it.
  """
  path = pathlib.Path(directory)
  if path.is_dir() and not (path / "config.json").is_file():
    snapshots = sorted(path.glob("snapshots/*/config.json"))
    then = f"; it is a cache of the Hub: give {snapshots[-1].parent}" if snapshots else ""
    raise errors.InputError(f"{field}={directory}: holds no config.json{then}")
  if not path.is_dir():
    hub_id = _hub_id(str(directory))
    fetch = f"; fetch it: hf download {hub_id} --local-dir={path.name}" if hub_id else ""
    then = f", then give --{field}={path.name}" if hub_id and path.name != str(directory) else ""
    raise errors.InputError(f"{field}={directory}: no such directory{fetch}{then}")


def _hub_id(directory: str) -> str:
  """The id on the Hub that a directory's name looks like; empty if it looks like none."""
  if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", directory):
    return directory
  found = _preset(directory)
  return f"{found[0].organization}/{directory}" if found and "/" not in directory else ""


def from_pretrained(
  path: str | pathlib.Path,
  dtype: DTypeLike = "float32",
  *,
  shardings: Callable[[PyTree], PyTree] | None = None,
) -> tuple[interface.ModelConfig, PyTree]:
  """Reads a model of any family: see `common.checkpoint.from_pretrained`."""
  return checkpoint.from_pretrained(path, dtype=dtype, shardings=shardings, family=family_in(path))


def _preset(
  directory: str | pathlib.Path,
) -> tuple[family_lib.ModelFamily, Mapping[str, Any]] | None:
  """Finds the family and config fields of a released model by the name of a directory."""
  name = pathlib.Path(directory).name
  for model_type in known():
    candidate = family(model_type)
    if name in candidate.presets:
      return candidate, candidate.presets[name]
  return None
