"""Reading of a Hugging Face config.json: its fields as dataclasses, with errors that name them."""

from collections.abc import Mapping
import dataclasses
import typing
from typing import Any

from vr_jax import errors, plain_json
from vr_jax.models.common import rotary_scaling

_DEPTHS = ("num_hidden_layers", "depth")
_MOST_LAYERS = 1000
_Config = typing.TypeVar("_Config")


def required(fields: Mapping[str, Any], name: str) -> Any:
  """Returns a field. Raises InputError if it is missing or null."""
  if fields.get(name) is None:
    raise errors.InputError(f"{name}: the field is missing")
  return fields[name]


def build(kind: type, fields: Mapping[str, Any]) -> Any:
  """Builds a dataclass from its fields; lists become tuples, and other fields are ignored."""
  values = {}
  for field in dataclasses.fields(kind):
    if field.default is dataclasses.MISSING:
      value = required(fields, field.name)
    else:
      value = fields.get(field.name, field.default)
    is_list = isinstance(field.default, tuple) and isinstance(value, list | tuple)
    values[field.name] = tuple(value) if is_list else value
  return checked(kind(**values))


def checked(config: _Config) -> _Config:
  """Returns a config. Raises InputError if the value of a field has another type than declared."""
  for name, hint in typing.get_type_hints(type(config)).items():
    value = getattr(config, name)
    if typing.get_origin(hint) is not typing.ClassVar and not plain_json.has_type(value, hint):
      raise errors.InputError(f"{name}: can't be {value!r:.60}")
    if name in _DEPTHS and not 0 < value <= _MOST_LAYERS:
      raise errors.InputError(f"{name}: {value} layers are none, or more than any model has")
  return config


def rotary(
  fields: Mapping[str, Any], *, kinds: tuple[str, ...], context: int | None = None
) -> dict[str, Any]:
  """Rotary constants of text or vision: flat in old files, in `rope_parameters` in new ones.

  context: of text, whose frequencies may be scaled: `max_position_embeddings` where fields lack it.

  Raises InputError for another kind of rotary embedding, or a scaling that is none.
  """
  named = dict(fields.get("rope_parameters") or fields.get("rope_scaling") or {})
  kind = named.get("rope_type", named.get("type", "default"))
  kinds = kinds if context is None else (*kinds, *rotary_scaling.KINDS)
  if kind not in kinds:
    raise errors.InputError(f"rope_type: is {kind!r}, but only {', '.join(kinds)} are supported")
  theta = named.get("rope_theta", fields.get("rope_theta"))
  section = named.get("mrope_section", fields.get("mrope_section"))
  constants = {"rope_theta": theta, "mrope_section": section}
  constants = {name: value for name, value in constants.items() if value is not None}
  if context is None:
    return constants
  trained = fields.get("max_position_embeddings") or context
  return {**constants, "rope_scaling": rotary_scaling.read(named, kind, trained)}


def flat_sizes(**parts: Any) -> dict[str, Any]:
  """Fields of the parts of a config by name, as "text.hidden_size"; without a scaling of None."""
  flat = {f"{part}.{k}": v for part, sizes in parts.items() for k, v in vars(sizes).items()}
  scaling = flat.pop("text.rope_scaling")
  return flat if scaling is None else {**flat, "text.rope_scaling": dataclasses.asdict(scaling)}


def check_activation(fields: Mapping[str, Any], half: str, expected: str) -> None:
  """Raises InputError if a model's feed-forward layers have another activation."""
  activation = fields.get("hidden_act", expected)
  if activation != expected:
    raise errors.InputError(
      f"hidden_act: {half} model has {activation!r}, but it must be {expected!r}"
    )
