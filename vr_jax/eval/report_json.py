"""Reads JSON field by field. Errors name the file and the missing or wrong field."""

from collections.abc import Callable
import math
from pathlib import Path
from typing import Any

from vr_jax import errors, plain_json


class Record:
  """A JSON object. Each method reads one field, or raises an InputError that names it.

  values: the fields.
  where: names the object in errors.
  """

  def __init__(self, value: object, where: str):
    if not isinstance(value, dict):
      raise errors.InputError(f"{where}: should be a JSON object, is {type(value).__name__}")
    self.values = value
    self.where = where

  def has(self, name: str) -> bool:
    """Whether the field exists and is not null."""
    return self.values.get(name) is not None

  def text(self, name: str) -> str:
    """A string."""
    return self._checked_field(name, "a string", lambda value: isinstance(value, str))

  def integer(self, name: str) -> int:
    """A whole number."""
    return self._checked_field(name, "a whole number", _is_integer)

  def number(self, name: str) -> float:
    """A number. NaN and infinities are allowed, in Python's notation."""
    return float(self._checked_field(name, "a number", _is_number))

  def texts(self, name: str) -> tuple[str, ...]:
    """A list of strings."""
    return tuple(self._all(name, "strings", lambda value: isinstance(value, str)))

  def numbers(self, name: str) -> tuple[float, ...]:
    """A list of numbers."""
    return tuple(float(value) for value in self._all(name, "numbers", _is_number))

  def named_numbers(self, name: str) -> dict[str, float]:
    """An object of numbers by name. null becomes NaN: there was nothing to measure."""
    values = self.record(name).values
    for key, value in values.items():
      if value is not None and not _is_number(value):
        raise errors.InputError(f"{self.where}: {name}.{key} should be a number, is {value!r:.60}")
    return {key: math.nan if value is None else float(value) for key, value in values.items()}

  def rows(self, name: str) -> tuple[tuple[float, ...], ...]:
    """A list of lists of numbers."""
    rows = self._all(name, "lists of numbers", _is_row)
    return tuple(tuple(float(value) for value in row) for row in rows)

  def record(self, name: str) -> "Record":
    """An object."""
    value = self._checked_field(name, "an object", lambda value: isinstance(value, dict))
    return Record(value, f"{self.where}: {name}")

  def records(self, name: str) -> list["Record"]:
    """A list of objects."""
    values = self._all(name, "objects", lambda value: isinstance(value, dict))
    return [Record(value, f"{self.where}: {name}[{index}]") for index, value in enumerate(values)]

  def _all(self, name: str, what: str, valid: Callable[[Any], bool]) -> list:
    return self._checked_field(
      name,
      f"a list of {what}",
      lambda value: isinstance(value, list) and all(valid(item) for item in value),
    )

  def _checked_field(self, name: str, what: str, valid: Callable[[Any], bool]) -> Any:
    if name not in self.values:
      raise errors.InputError(f"{self.where}: field {name!r} is missing")
    value = self.values[name]
    if not valid(value):
      raise errors.InputError(f"{self.where}: {name} should be {what}, is {value!r:.60}")
    return value


def read_record(path: Path) -> Record:
  """Reads the JSON object in a file.

  Raises:
    InputError: the file can't be read, is not JSON or holds no object.
  """
  return parse_record(read_text(path), str(path))


def read_records(path: Path) -> list[Record]:
  """Reads a file of one JSON object a line; raises as `read_record`, and names the line."""
  lines = read_text(path).split("\n")  # not splitlines: texts may hold other line ends
  return [
    parse_record(line, f"{path}:{number}") for number, line in enumerate(lines, start=1) if line
  ]


def parse_record(text: str, where: str) -> Record:
  """Parses a JSON object. `where` names the text in errors."""
  try:
    return Record(plain_json.parse(text), where)
  except ValueError as error:
    raise errors.InputError(f"{where}: is not JSON ({error})") from error


def read_text(path: Path) -> str:
  """Reads a UTF-8 file; raises InputError if that fails."""
  try:
    return path.read_text(encoding="utf-8")
  except (OSError, UnicodeDecodeError) as error:
    raise errors.InputError(f"{path}: cannot be read as text ({error})") from error


def _is_integer(value: object) -> bool:
  return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool)


def _is_row(value: object) -> bool:
  return isinstance(value, list) and all(_is_number(item) for item in value)
