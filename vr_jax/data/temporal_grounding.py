"""Temporal grounding: reads questions whose evidence has known times, and filters them.

A question is worth a search if its video is long enough and its evidence short enough. Source of
these two conditions: Video-MTR, arXiv 2508.20478, appendix B.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
from pathlib import Path
import sys
from typing import Any

from vr_jax import plain_json
from vr_jax.errors import InputError

Spans = list[list[float]]  # [start, end] in seconds


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpanFilter:
  """Which questions to keep.

  seconds: the video must be longer than this.
  share: the evidence must take less than this fraction of the video.
  """

  seconds: float = 30.0
  share: float = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Converted:
  """The result of reading a data set.

  kept: records in the fields of docs/data.md, or the moments that records are made from.
  dropped: number of dropped questions by reason.
  """

  kept: tuple[Any, ...]
  dropped: Mapping[str, int]


def separate(values: Iterable[Any]) -> Converted:
  """Separates kept values from dropped ones. A str stands for a dropped value and is the reason."""
  kept, dropped = [], Counter()
  for value in values:
    if isinstance(value, str):
      dropped[value] += 1
    else:
      kept.append(value)
  return Converted(kept=tuple(kept), dropped=dict(dropped))


def rejection_reason(spans: Spans, duration: float, limits: SpanFilter) -> str | None:
  """Why a question is dropped: "no span", "short" or "wide"; None if it is kept."""
  if not spans:
    return "no span"
  if duration <= limits.seconds:
    return "short"
  if sum(end - start for start, end in spans) >= limits.share * duration:
    return "wide"
  return None


def merge_spans(value: Any, duration: float, where: str) -> Spans:
  """Sorts spans, clips them to the video, and merges those that touch.

  Annotators marked some spans twice, and some beyond the end of the video.

  Raises:
    InputError: `value` is not a list of [start, end] in seconds.
  """
  pairs = value if isinstance(value, list) else [value]
  if not all(
    isinstance(pair, list) and len(pair) == 2 and all(map(_is_time, pair)) for pair in pairs
  ):
    raise InputError(f"{where}: needs a list of [start, end] in seconds, has {value!r:.60}")
  spans: Spans = []
  for start, end in sorted([max(0.0, a), min(duration, b)] for a, b in pairs):
    if spans and start <= spans[-1][1]:
      spans[-1][1] = max(spans[-1][1], end)
    elif start < end:
      spans.append([start, end])
  return spans


def parse_duration(value: Any, where: str) -> float:
  """Returns a duration in seconds. Raises InputError if the value is not a positive number."""
  if not _is_time(value) or value <= 0:
    raise InputError(f"{where}: a duration in seconds is needed, not {value!r:.60}")
  return float(value)


def add_letters(options: Sequence[str]) -> list[str]:
  """Adds letters to options: A. red, B. green, …"""
  return [f"{chr(ord('A') + index)}. {option.strip()}" for index, option in enumerate(options)]


def read_json_object(path: Path) -> dict[str, Any]:
  """Reads a file with one JSON object. Raises InputError if it has none."""
  value = _parse_json(read_text(path), str(path))
  if not isinstance(value, dict):
    raise InputError(f"{path}: holds no JSON object")
  return value


def read_json_lines(path: Path, fields: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
  """Yields (file:line, object) from a file with one JSON object a line.

  Raises InputError if a line is not a JSON object or lacks a field.
  """
  for number, line in enumerate(read_text(path).split("\n"), start=1):
    if not line.strip():
      continue
    where = f"{path}:{number}"
    value = _parse_json(line, where)
    missing = [field for field in fields if not isinstance(value, dict) or field not in value]
    if missing:
      raise InputError(f"{where}: field {missing[0]!r} is missing")
    yield where, value


def read_text(path: Path) -> str:
  """Reads a UTF-8 text file. Raises InputError if it can't be read."""
  try:
    return path.read_text(encoding="utf-8-sig")
  except OSError as error:
    raise InputError(f"{path}: cannot be read: {error.strerror}") from error
  except UnicodeDecodeError as error:
    raise InputError(f"{path}: is not UTF-8 text (byte {error.start})") from error


def _parse_json(content: str, where: str) -> Any:
  try:
    return plain_json.parse(content)
  except ValueError as error:
    raise InputError(f"{where}: is not JSON: {error}") from error


def _is_time(value: Any) -> bool:
  number = isinstance(value, int | float) and not isinstance(value, bool)
  return number and abs(value) <= sys.float_info.max
