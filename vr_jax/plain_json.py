"""Reads JSON that came from a file: one kind of error, and dataclasses with their types checked."""

from collections.abc import Mapping
import dataclasses
import json
import math
import types
import typing
from typing import Any

_Built = typing.TypeVar("_Built")


def parse(text: str | bytes) -> Any:
  """Parses JSON. Raises ValueError if it is none, or nested deeper than can be read."""
  try:
    return json.loads(text)
  except RecursionError:
    raise ValueError("brackets are nested too deep") from None


def build(cls: type[_Built], value: Any) -> _Built:
  """Makes a dataclass of an object with its fields, whose values have the declared types.

  Fields: texts, numbers, truth values, tuples of these (lists in JSON), and unions. A whole number
  will do for a float, and every number has to be finite.

  Raises:
    ValueError: it is no object, or a field is missing, unknown or of another type.
  """
  if not isinstance(value, dict):
    raise ValueError(f"needs an object, is {value!r:.60}")
  hints = typing.get_type_hints(cls)
  fields = {field.name: field for field in dataclasses.fields(typing.cast(Any, cls))}
  if unknown := [name for name in value if name not in fields]:
    raise ValueError(f"field {unknown[0]!r:.60} is unknown")
  for name, field in fields.items():
    if name not in value:
      if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
        raise ValueError(f"field {name!r} is missing")
    elif not has_type(value[name], hints[name]):
      raise ValueError(f"field {name!r} can't be {value[name]!r:.60}")
  plain = {name: _plain(each, hints[name]) for name, each in value.items()}
  return cls(**plain)


def _plain(value: Any, wanted: Any) -> Any:
  """A value as its field declares it: lists as tuples, whole numbers as floats, also in objects."""
  if isinstance(value, list):
    return tuple(value)
  origin, args = typing.get_origin(wanted), typing.get_args(wanted)
  is_object = isinstance(origin, type) and issubclass(origin, Mapping)
  if is_object and args[1] is not Any:
    return {name: _plain(each, args[1]) for name, each in value.items()}
  return float(value) if wanted is float else value


def has_type(value: Any, wanted: Any) -> bool:
  """Whether a value from JSON has a declared type; see `build`. Any other type is compared."""
  origin, args = typing.get_origin(wanted), typing.get_args(wanted)
  if wanted is Any:
    return True
  if origin in (typing.Union, types.UnionType):
    return any(has_type(value, each) for each in args)
  if origin is typing.Literal:
    return any(type(value) is type(each) and value == each for each in args)
  if origin is tuple:
    if not isinstance(value, list | tuple):
      return False
    if len(args) == 2 and args[1] is Ellipsis:
      return all(has_type(each, args[0]) for each in value)
    return len(value) == len(args) and all(map(has_type, value, args))
  if origin is not None and issubclass(origin, Mapping):
    return isinstance(value, Mapping) and all(has_type(each, args[1]) for each in value.values())
  if wanted in (int, float):
    fits = isinstance(value, int if wanted is int else int | float)
    return fits and not isinstance(value, bool) and _is_finite(value)
  return isinstance(value, type(None) if wanted is None else wanted)


def _is_finite(value: float) -> bool:
  try:
    return math.isfinite(value)
  except OverflowError:  # a whole number beyond any float
    return False
