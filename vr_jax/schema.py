"""Typed config fields: default, choices, bounds and help of each field stand in one place.

A schema class (`cls`) is a dataclass that declares the fields of one part of the config. A section
(`section`) holds their values: a ConfigDict, such as config.rl. An environment is a schema class
too; its section is config.env.

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Sampling:
      temperature: float = schema.field(1.0, "Softmax temperature; 0 is greedy.", "[0, inf)")
      order: Literal["random", "length"] = schema.field("random", "Order of the clips.")

Only fields made with `field` belong to the config. A field whose type is a dataclass is a nested
section. A value of None counts as not set.

`change` says until when a run may change the field (`CHANGES`). Where a field does not say so, the
attribute `CHANGE` of its class does.

Choices are the values of a `Literal` type. Bounds are written as in mathematics: [ and ] include
the end, ( and ) exclude it. Bounds of a tuple hold for each entry.

A field that has an effect only with certain values of another one of its section says so:
only_with="writer=openai", "kind=local|openai" or, for any value but 0, "rank".
"""

from collections.abc import Iterator, Mapping
import dataclasses
import difflib
import operator
import types
import typing
from typing import Any

import ml_collections

from vr_jax import errors

REQUIRED = dataclasses.MISSING  # default of a field that the config must set

# Until when a run in a workdir may change a field, by the name that `field` takes.
CHANGES: Mapping[str, str] = {
  "never": "a workdir keeps it once it has data",
  "before sft": "until the workdir has a checkpoint",
  "before rl": "until the workdir has a checkpoint of rl",
  "any time": "training does not depend on it",
  "rounding": "at any time; results then differ by rounding errors",
  "from here on": "at any time; the steps that follow are trained with the new value",
}

Section = Mapping[str, Any] | ml_collections.ConfigDict


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
  """One field of a schema class.

  name: relative to the section; contains dots if it belongs to a nested section.
  default: REQUIRED if there is none.
  choices: () if every value of the type is allowed.
  bounds: "" if there are none.
  length: least number of entries, for a tuple; 0 if there is none.
  only_with: the field, and its values, without which this one has no effect; "" if there is none.
  change: one of CHANGES.
  """

  name: str
  type: Any
  default: Any
  choices: tuple[Any, ...]
  bounds: str
  length: int
  only_with: str
  help: str
  change: str


def field(
  default: Any = REQUIRED,
  help: str = "",
  bounds: str = "",
  *,
  length: int = 0,
  only_with: str = "",
  change: str = "",
) -> Any:
  """Defines a field of a schema class.

  help: one sentence.
  bounds: an interval, as in "[0, 1)".
  length: least number of entries, for a tuple; 0 if there is none.
  only_with: the field without which this one has no effect; see above.
  change: one of CHANGES; empty: that of the class.
  """
  metadata = {
    "help": help,
    "bounds": bounds,
    "length": length,
    "only_with": only_with,
    "change": change,
  }
  if isinstance(default, dict):
    return dataclasses.field(default_factory=lambda: dict(default), metadata=metadata)
  return dataclasses.field(default=default, metadata=metadata)


def fields(cls: type, prefix: str = "") -> Iterator[Field]:
  """Yields the fields of a schema class; those of nested sections have dotted names."""
  hints = typing.get_type_hints(cls)
  for each in dataclasses.fields(cls):
    if dataclasses.is_dataclass(hints[each.name]):
      yield from fields(hints[each.name], f"{prefix}{each.name}.")
    elif "help" in each.metadata:
      literal = typing.get_origin(hints[each.name]) is typing.Literal
      default, change = (
        each.default,
        each.metadata["change"] or getattr(cls, "CHANGE", "before sft"),
      )
      if each.default_factory is not dataclasses.MISSING:
        default = each.default_factory()
      yield Field(
        name=prefix + each.name,
        type=hints[each.name],
        default=default,
        choices=typing.get_args(hints[each.name]) if literal else (),
        **{**each.metadata, "change": change},
      )


def defaults(cls: type) -> ml_collections.ConfigDict:
  """Makes a section of all defaults. Fields without a default are left out."""
  section = ml_collections.ConfigDict()
  for each in fields(cls):
    if each.default is not REQUIRED:
      _add_default(section, each)
  return section


def complete(section: ml_collections.ConfigDict, cls: type, where: str) -> None:
  """Fills in defaults in place, and turns ints into floats where the field is a float.

  where: the section's name, such as "config.env", for messages.

  Raises:
    InputError: the section has a field that `cls` lacks, or does not set one without a default.
  """
  known = [each.name for each in fields(cls)]
  for name in _leaves(section, cls):
    if name not in known:
      near = difflib.get_close_matches(name, known, n=1, cutoff=0) or ["no field"]
      raise errors.InputError(
        f"{where}.{name}: {cls.__name__} has no such field; the nearest is {where}.{near[0]}"
      )
  with section.unlocked():
    for each in fields(cls):
      value = _value(section, each.name)
      if value is None and each.default is REQUIRED:
        raise errors.InputError(f"{where}.{each.name}: has no default; set it in the config")
      if value is None:
        _add_default(section, each)
      elif each.type is float and type(value) is int:  # a config may say 1 where it means 1.0
        parent = _parent(section, each.name)
        with parent.ignore_type():
          parent[each.name.split(".")[-1]] = float(value)


def fill_in(section: ml_collections.ConfigDict, cls: type) -> None:
  """Adds missing fields that have a default, in place."""
  for each in fields(cls):
    if each.default is not REQUIRED and _value(section, each.name) is None:
      _add_default(section, each)


def check(section: Section, cls: type, where: str) -> None:
  """Raises the first of the `problems`."""
  for problem in problems(section, cls, where):
    raise problem


def problems(section: Section, cls: type, where: str) -> Iterator[errors.InputError]:
  """Yields an error for each value of a wrong type, or outside its choices or bounds.

  So it does for one that was changed from its default and has no effect with what another field is
  set to.

  where: the section's name, such as "config.rl", for messages.

  Fields that are not set are not checked, nor are types that are unions.
  """
  for each in fields(cls):
    value = _value(section, each.name)
    if value is not None:
      yield from _problems(section, each, value, where)


def _problems(section: Section, each: Field, value: Any, where: str) -> Iterator[errors.InputError]:
  """Yields the first thing that is wrong with a field."""
  flag = f"--{where}.{each.name}"
  values = value if isinstance(value, tuple) else (value,)
  if each.choices and value not in each.choices:
    yield errors.InputError(
      f"{flag}={value}: not one of {', '.join(str(one) for one in each.choices if one != '')}"
    )
  elif each.bounds and not all(_in_interval(one, each.bounds) for one in values):
    yield errors.InputError(f"{flag}={value}: not in {each.bounds}")
  elif each.length and len(values) < each.length:
    yield errors.InputError(f"{flag}={value}: needs {each.length} or more values")
  elif not _has_type(value, each.type):
    kind = each.type.__name__ if type(each.type) is type else each.type
    yield errors.InputError(f"{flag}={value}: is no {kind}")
  elif each.only_with and value != each.default:
    yield from _effect_problems(section, each, where)


def _effect_problems(section: Section, each: Field, where: str) -> Iterator[errors.InputError]:
  """Yields an error if another field is set so that this one has no effect."""
  other, _, allowed = each.only_with.partition("=")
  other = ".".join([*each.name.split(".")[:-1], other])
  actual = _value(section, other)
  if actual not in allowed.split("|") if allowed else not actual:
    needed = f"to {allowed.replace('|', ' or ')}" if allowed else "above 0"
    named = f"{where}.{other}".removeprefix("config.")
    yield errors.InputError(
      f"--{where}.{each.name}={_value(section, each.name)}: has no effect with {named}={actual}; "
      f"set {named} {needed}, or leave it out"
    )


def build(cls: type, section: Section, **given: Any) -> Any:
  """Makes an instance of `cls` from a complete section.

  given: values of further fields, which take precedence over those of the section.
  """
  hints = typing.get_type_hints(cls)
  values = dict(given)
  for each in dataclasses.fields(cls):
    if each.name in given or each.name not in section:
      continue
    value = section[each.name]
    if dataclasses.is_dataclass(hints[each.name]):
      value = build(hints[each.name], value)
    elif isinstance(value, ml_collections.ConfigDict):
      value = value.to_dict()
    values[each.name] = value
  return cls(**values)


def _leaves(section: Section, cls: type, prefix: str = "") -> Iterator[str]:
  """Yields the dotted names of all fields that a section holds. A mapping is one field."""
  hints = typing.get_type_hints(cls)
  for name, value in section.items():
    if dataclasses.is_dataclass(hints.get(name)) and isinstance(value, ml_collections.ConfigDict):
      yield from _leaves(value, hints[name], f"{prefix}{name}.")
    else:
      yield prefix + name


def _add_default(section: ml_collections.ConfigDict, each: Field) -> None:
  default, parent = each.default, _parent(section, each.name)
  if isinstance(default, dict):
    default = ml_collections.ConfigDict(default)
  parent[each.name.split(".")[-1]] = default


def _parent(section: ml_collections.ConfigDict, name: str) -> ml_collections.ConfigDict:
  """Returns the (nested) section that a field belongs to, and creates it if needed."""
  for part in name.split(".")[:-1]:
    if part not in section:
      section[part] = ml_collections.ConfigDict()
    section = section[part]
  return section


def _value(section: Section, name: str) -> Any:
  for part in name.split("."):
    if not isinstance(section, Mapping | ml_collections.ConfigDict) or part not in section:
      return None
    section = section[part]
  return section


def _has_type(value: Any, wanted: Any) -> bool:
  """Whether a value has a field's type. Unions and the entries of mappings are not checked."""
  origin, args = typing.get_origin(wanted) or wanted, typing.get_args(wanted)
  if origin is typing.Literal or not isinstance(origin, type) or origin is types.UnionType:
    return True
  if issubclass(origin, Mapping):
    return isinstance(value, Mapping | ml_collections.ConfigDict)
  if origin is tuple and args and isinstance(value, tuple):
    each = args[:1] * len(value) if args[-1] is Ellipsis else args
    return len(value) == len(each) and all(map(_has_type, value, each))
  if origin in (int, float) and isinstance(value, bool):
    return False
  return isinstance(value, int | float) if origin is float else isinstance(value, origin)


def _in_interval(value: Any, interval: str) -> bool:
  if isinstance(value, bool) or not isinstance(value, int | float):
    return False
  low, high = map(float, interval[1:-1].split(", "))
  above = operator.ge if interval[0] == "[" else operator.gt
  below = operator.le if interval[-1] == "]" else operator.lt
  return above(value, low) and below(value, high)
