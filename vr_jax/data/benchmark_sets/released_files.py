"""Finds and reads the annotation files of a released benchmark: Parquet, JSON, JSON lines, tables.

A record keeps the place that it stands at, so that each error names it.
"""

from collections.abc import Iterator, Mapping
import csv
import dataclasses
import io
import math
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from vr_jax import plain_json
from vr_jax.data import record_files
from vr_jax.errors import InputError

_PARQUET_ERRORS = (pyarrow.ArrowException, OSError, ValueError, OverflowError, MemoryError)
_ROWS_AT_ONCE = 256
_MOST_FOOTER = 2**26  # bytes of the texts in a Parquet file's footer
_MOST_PARTS = 2**20  # entries of the lists there
# What copies of benchmarks in the formats of trainers have, and no release.
_COPIES = {
  ("problem", "solution"): "a record of Video-R1's copy",
  ("problem", "problem_id"): "a record of Video-R1's copy",
  ("conversations",): "a conversation of LLaVA's format",
  ("messages",): "a conversation of a chat format",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReleasedRecord:
  """A record of a released file. The methods raise InputError naming the record and the field.

  where: its file, place and, where it has one, name.
  """

  where: str
  fields: Mapping[str, Any]

  def named(self, name: object) -> "ReleasedRecord":
    """The same record, whose errors also say its name."""
    return dataclasses.replace(self, where=f"{self.where} ({name})")

  def has(self, name: str) -> bool:
    """Whether a field is there and is not null."""
    return self.fields.get(name) is not None

  def value(self, name: str) -> Any:
    """A field of any type."""
    if not self.has(name):
      copy = next((kind for names, kind in _COPIES.items() if all(map(self.has, names))), "")
      hint = f"; this is {copy} of a benchmark: give the released file" if copy else ""
      raise InputError(f"{self.where}: field {name!r} is missing{hint}")
    return self.fields[name]

  def text(self, name: str) -> str:
    """A text that is not blank, without the blanks around it."""
    value = self.value(name)
    if not isinstance(value, str) or not value.strip():
      raise self.wrong(name, "a text")
    return value.strip()

  def name(self, name: str) -> str:
    """A text or a whole number, as a text: ids are released as both."""
    value = self.value(name)
    return str(value) if type(value) is int else self.text(name)

  def texts(self, name: str) -> tuple[str, ...]:
    """A list of texts without the blanks around them; none is empty. Whole numbers become texts."""
    value = self.value(name)
    if not isinstance(value, list):
      raise self.wrong(name, "a list of texts")
    found = tuple(str(each) if type(each) is int else each for each in value)
    if not all(isinstance(each, str) and each.strip() for each in found):
      raise self.wrong(name, "a list of texts, none of them empty")
    return tuple(each.strip() for each in found)

  def number(self, name: str) -> float:
    """A finite number."""
    value = self.value(name)
    if not plain_json.has_type(value, float):
      raise self.wrong(name, "a number")
    return float(value)

  def whole(self, name: str) -> int:
    """A whole number. Tables with gaps store them as floats."""
    value = self.number(name)
    if not value.is_integer():
      raise self.wrong(name, "a whole number")
    return int(value)

  def object(self, name: str) -> "ReleasedRecord":
    """A field that has fields of its own."""
    value = self.value(name)
    if not isinstance(value, Mapping):
      raise self.wrong(name, "an object")
    return ReleasedRecord(where=f"{self.where}, field {name!r}", fields=value)

  def wrong(self, name: str, wanted: str) -> InputError:
    """The error about a field of the wrong type or value."""
    value = self.fields.get(name)
    return InputError(f"{self.where}: field {name!r} needs {wanted}, is {value!r:.60}")

  def source(self) -> dict[str, Any]:
    """The record as JSON, for `Item.source_record`: without pictures and other bytes."""
    return _as_json(self.fields)


def find_files(root: Path, *patterns: str) -> list[Path]:
  """The files of the first pattern that any file matches, sorted.

  Raises InputError if there are none; names tables of VLMEvalKit and copies that stand there.
  """
  if not root.is_dir():
    raise InputError(f"{root}: there is no such directory")
  for pattern in patterns:
    if found := sorted(path for path in root.glob(pattern) if path.is_file()):
      return found
  tables = sorted(path.name for path in root.glob("*.tsv"))
  copies = sorted(path.name for path in root.glob("eval_*.json"))
  hint = ""
  if tables:
    hint = f"; {tables[0]!r:.80} is a table of VLMEvalKit, which is not read"
  elif copies:
    hint = f"; {copies[0]!r:.80} is Video-R1's copy, which is not read"
  raise InputError(f"{root}: there is no {' or '.join(patterns)}{hint} (docs/benchmarks.md)")


def read_records(path: Path) -> Iterator[ReleasedRecord]:
  """Reads a list of records: Parquet, a table with tabs, a JSON list, or JSON lines.

  Raises InputError if the file can't be read, or a record is no object.
  """
  if path.suffix == ".parquet":
    yield from _read_parquet(path)
  elif path.suffix == ".tsv":
    yield from _read_table(path)
  else:
    for where, parse in record_files.entries(path):
      value = parse()
      if not isinstance(value, dict):
        raise InputError(f"{where}: needs an object, is {value!r:.60}")
      yield ReleasedRecord(where=where, fields=value)


def read_object(path: Path) -> dict[str, Any]:
  """Reads a file of one JSON object. Raises InputError if it is something else."""
  try:
    value = plain_json.parse(path.read_bytes().decode("utf-8-sig"))
  except OSError as error:
    raise InputError(f"{path}: cannot be read: {error.strerror}") from error
  except ValueError as error:
    raise InputError(f"{path}: is not JSON: {error}") from error
  if not isinstance(value, dict):
    raise InputError(f"{path}: needs one object, is {value!r:.60}")
  return value


def _read_parquet(path: Path) -> Iterator[ReleasedRecord]:
  index = 0
  try:
    with parquet.ParquetFile(
      path, thrift_string_size_limit=_MOST_FOOTER, thrift_container_size_limit=_MOST_PARTS
    ) as file:
      for batch in file.iter_batches(_ROWS_AT_ONCE):
        for fields in batch.to_pylist():
          yield ReleasedRecord(where=f"{path}: row {index}", fields=fields)
          index += 1
  except _PARQUET_ERRORS as error:
    message = " ".join(str(error).split())
    raise InputError(f"{path}: cannot be read as Parquet: {message:.200}") from error


def _read_table(path: Path) -> Iterator[ReleasedRecord]:
  """Rows of a table with tabs. A cell that is JSON other than a text or number is parsed."""
  try:
    text = path.read_bytes().decode("utf-8-sig")
  except OSError as error:
    raise InputError(f"{path}: cannot be read: {error.strerror}") from error
  except UnicodeDecodeError as error:
    raise InputError(f"{path}: is not UTF-8 text (byte {error.start})") from error
  try:
    for index, row in enumerate(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t")):
      where = f"{path}: row {index}"
      if None in row or None in row.values():
        raise InputError(f"{where}: has another number of cells than the first line")
      yield ReleasedRecord(where=where, fields={name: _cell(cell) for name, cell in row.items()})
  except csv.Error as error:
    raise InputError(f"{path}: is no table with tabs: {error}") from error


def _cell(text: str) -> Any:
  if text in ("True", "False"):
    return text == "True"
  if not text.startswith(("[", "{")):
    return text or None
  try:
    return plain_json.parse(text)
  except ValueError:
    return text


def _as_json(value: Any) -> Any:
  """A value of a record as JSON can hold it."""
  if isinstance(value, Mapping):
    return {str(key): _as_json(each) for key, each in value.items() if type(each) is not bytes}
  if isinstance(value, list | tuple):
    return [_as_json(each) for each in value if type(each) is not bytes]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value if value is None or isinstance(value, str | int | float) else str(value)
