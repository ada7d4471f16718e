"""Reading of a Hugging Face config.json: its fields as dataclasses, with errors that name them."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from vr_jax import errors


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
    values[field.name] = tuple(value) if isinstance(field.default, tuple) else value
  return kind(**values)


def rotary(fields: Mapping[str, Any], *, kinds: tuple[str, ...]) -> dict[str, Any]:
  """Rotary constants of text or vision: flat in old files, in `rope_parameters` in new ones."""
  named = dict(fields.get("rope_parameters") or fields.get("rope_scaling") or {})
  kind = named.get("rope_type", named.get("type", "default"))
  if kind not in kinds:
    raise errors.InputError(f"rope_type: is {kind!r}, but only {', '.join(kinds)} are supported")
  theta = named.get("rope_theta", fields.get("rope_theta"))
  section = named.get("mrope_section", fields.get("mrope_section"))
  constants = {"rope_theta": theta, "mrope_section": section}
  return {name: value for name, value in constants.items() if value is not None}


def check_activation(fields: Mapping[str, Any], half: str, expected: str) -> None:
  """Raises InputError if a model's feed-forward layers have another activation."""
  activation = fields.get("hidden_act", expected)
  if activation != expected:
    raise errors.InputError(
      f"hidden_act: {half} model has {activation!r}, but it must be {expected!r}"
    )
