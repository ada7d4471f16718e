"""Questions whose evidence is known in time: which of them are worth a search through a video, and how they are read.

Source of the two conditions: Video-MTR, arXiv 2508.20478, appendix B.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import json
from pathlib import Path
import sys
from typing import Any

from vr_jax.errors import InputError

Spans = list[list[float]]  # [start, end] in seconds


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filter:
  """seconds: the video is longer. share: of it the evidence takes less."""

  seconds: float = 30.0
  share: float = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Converted:
  """kept: records in the fields of docs/data.md, or what they are made of. dropped: how many were left out, by reason."""

  kept: tuple[Any, ...]
  dropped: Mapping[str, int]


def converted(values: Iterable[Any]) -> Converted:
  """Of values among which a text stands for one that is left out, and says why."""
  kept, dropped = [], Counter()
  for value in values:
    if isinstance(value, str):
      dropped[value] += 1
    else:
      kept.append(value)
  return Converted(kept=tuple(kept), dropped=dict(dropped))


def reason_against(spans: Spans, duration: float, limits: Filter) -> str | None:
  """Why a question is left out: "no span", "short" or "wide"; None where it is not."""
  if not spans:
    return "no span"
  if duration <= limits.seconds:
    return "short"
  if sum(end - start for start, end in spans) >= limits.share * duration:
    return "wide"
  return None


def merged(value: Any, duration: float, where: str) -> Spans:
  """Spans in order, cut to the video, those that touch as one: annotators marked some twice, and some past the end.

  Raises:
    InputError: `value` is not a list of [start, end] in seconds.
  """
  pairs = value if isinstance(value, list) else [value]
  if not all(
    isinstance(pair, list) and len(pair) == 2 and all(map(_is_time, pair)) for pair in pairs
  ):
    raise InputError(f"{where}: needs a list of [start, end] in seconds, has {str(value)[:60]}")
  found: Spans = []
  for start, end in sorted([max(0.0, a), min(duration, b)] for a, b in pairs):
    if found and start <= found[-1][1]:
      found[-1][1] = max(found[-1][1], end)
    elif start < end:
      found.append([start, end])
  return found


def seconds(value: Any, where: str) -> float:
  """A duration; raises InputError where it is none."""
  if not _is_time(value) or value <= 0:
    raise InputError(f"{where}: a duration in seconds is needed, not {str(value)[:60]}")
  return float(value)


def lettered(options: Sequence[str]) -> list[str]:
  """Options with their letters: A. red, B. green, …"""
  return [f"{chr(ord('A') + index)}. {option.strip()}" for index, option in enumerate(options)]


def json_object(path: Path) -> dict[str, Any]:
  """The object that a JSON file holds; raises InputError where it holds none."""
  value = _parsed(text(path), str(path))
  if not isinstance(value, dict):
    raise InputError(f"{path}: holds no JSON object")
  return value


def json_lines(path: Path, fields: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
  """(file:line, object) of a file with one JSON object a line; raises InputError where one is none, or lacks a field."""
  for number, line in enumerate(text(path).split("\n"), start=1):
    if not line.strip():
      continue
    where = f"{path}:{number}"
    value = _parsed(line, where)
    missing = [field for field in fields if not isinstance(value, dict) or field not in value]
    if missing:
      raise InputError(f"{where}: field {missing[0]!r} is missing")
    yield where, value


def text(path: Path) -> str:
  """What a file says; raises InputError where it can't be read."""
  try:
    return path.read_text(encoding="utf-8-sig")
  except OSError as error:
    raise InputError(f"{path}: cannot be read: {error.strerror}") from error
  except UnicodeDecodeError as error:
    raise InputError(f"{path}: is not UTF-8 text (byte {error.start})") from error


def _parsed(content: str, where: str) -> Any:
  try:
    return json.loads(content)
  except (ValueError, RecursionError) as error:
    raise InputError(f"{where}: is not JSON: {error}") from error


def _is_time(value: Any) -> bool:
  number = isinstance(value, int | float) and not isinstance(value, bool)
  return number and abs(value) <= sys.float_info.max
