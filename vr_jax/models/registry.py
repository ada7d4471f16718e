"""Families of models by the `model_type` of a config.json: the one place that names them.

    family = registry.family_of(config)              of a config that has been read
    config = registry.read_config(directory / "config.json")
    config, params = registry.from_pretrained(directory)

A family of your own, outside this package: `registry.register(family)`.
"""

from collections.abc import Callable, Mapping
import importlib
import pathlib
from typing import Any

from jaxtyping import DTypeLike, PyTree

from vr_jax import errors
from vr_jax.models import family as family_lib
from vr_jax.models import interface
from vr_jax.models.common import checkpoint

# model_type -> the module that has its FAMILY, imported when it is first asked for.
_BUILT_IN = {
  "qwen2_5_vl": "vr_jax.models.qwen2_5_vl.family",
}
_registered: dict[str, family_lib.ModelFamily] = {}


def register(family: family_lib.ModelFamily) -> None:
  """Adds a family, or replaces the one of its `model_type`."""
  _registered[family.model_type] = family


def known() -> tuple[str, ...]:
  """The model types that there are."""
  return tuple(sorted({*_BUILT_IN, *_registered}))


def family(model_type: str) -> family_lib.ModelFamily:
  """That of a model type. Raises InputError where there is none."""
  if model_type not in _registered:
    if model_type not in _BUILT_IN:
      raise errors.InputError(
        f"model_type: is {model_type!r}, but only {', '.join(map(repr, known()))} can be read"
      )
    register(importlib.import_module(_BUILT_IN[model_type]).FAMILY)
  return _registered[model_type]


def family_of(config: interface.ModelConfig) -> family_lib.ModelFamily:
  """That of a config."""
  return family(config.model_type)


def family_of_fields(fields: Mapping[str, Any]) -> family_lib.ModelFamily:
  """That of the fields of a config.json. Raises InputError where they name none."""
  if not fields.get("model_type"):
    raise errors.InputError(f"model_type: the field is missing; one of {', '.join(known())}")
  return family(fields["model_type"])


def family_in(directory: str | pathlib.Path) -> family_lib.ModelFamily:
  """The family of a Hugging Face directory, or of the release of that name.

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
  """The config of a Hugging Face directory, or, where it is not there, of the release of its name.

  Raises InputError where it is neither.
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
  """The family and fields of a release, by the name of a directory."""
  name = pathlib.Path(directory).name
  for model_type in known():
    of_type = family(model_type)
    if name in of_type.presets:
      return of_type, of_type.presets[name]
  return None
