"""Reads the subtitles of Video-MME (.srt) and LongVideoBench (.json), and those at some times.

A model may see only the subtitles that are spoken while the frames are shown: "you should only use
the subtitles corresponding to the sampled video frames" (Video-MME's README).
"""

from collections.abc import Sequence
import dataclasses
import math
from pathlib import Path
import re
from typing import Any

from jaxtyping import Float
import numpy as np

from vr_jax import plain_json
from vr_jax.errors import InputError

_CLOCK = r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:[.,]\d+)?)"
_TIME = re.compile(rf"\s*{_CLOCK}\s*")
_TIMES = re.compile(rf"\s*{_CLOCK}\s*-->\s*{_CLOCK}.*")
_MARKUP = re.compile(r"<[^<>]*>")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subtitle:
  """A line that is spoken, from start to end in seconds of the video."""

  start: float
  end: float
  text: str


def read(path: Path, starts_at: float = 0.0) -> list[Subtitle]:
  """Reads a file of subtitles, in its order, without markup and empty lines.

  starts_at: seconds that are subtracted from all times: LongVideoBench's
    `starting_timestamp_for_subtitles`.

  Raises InputError if it can't be read, or a line is none.
  """
  try:
    text = path.read_text(encoding="utf-8-sig")
    if path.suffix == ".json":
      lines = [_from_json(value, f"{path}, line {n}") for n, value in enumerate(_list(text), 1)]
    else:
      lines = [_from_srt(block, str(path)) for block in re.split(r"\n\s*\n", text) if block.strip()]
  except (OSError, ValueError) as error:
    raise InputError(f"{path}: can't be read as subtitles: {error}") from error
  return [
    dataclasses.replace(line, start=line.start - starts_at, end=line.end - starts_at)
    for line in lines
    if line.text
  ]


def shown_at(lines: Sequence[Subtitle], times: Float[np.ndarray, "frames"]) -> tuple[str, ...]:
  """The texts of the lines that are spoken at one of some times in seconds, each once, in order."""
  shown = [
    line.text
    for line in sorted(lines, key=lambda line: line.start)
    if ((times >= line.start) & (times < line.end)).any()
  ]
  return tuple(dict.fromkeys(shown))


def _list(text: str) -> list[Any]:
  value = plain_json.parse(text)
  if not isinstance(value, list):
    raise ValueError("is no list")
  return value


def _from_json(value: Any, where: str) -> Subtitle:
  """Either of LongVideoBench's forms: {"timestamp", "text"} or {"start", "end", "line"}."""
  try:
    if "timestamp" in value:
      start, end = value["timestamp"]
      # An open end lasts to the end of the video.
      end = end if isinstance(end, int | float) else math.inf
      return Subtitle(start=float(start), end=float(end), text=_plain(value["text"]))
    start, end = (_seconds(_TIME.fullmatch(value[name]), 1) for name in ("start", "end"))
    return Subtitle(start=start, end=end, text=_plain(value["line"]))
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(f"{where} is no subtitle: {error}") from error


def _from_srt(block: str, where: str) -> Subtitle:
  """A number, "0:00:01,000 --> 0:00:03,500", then lines of text."""
  lines = block.strip().split("\n")
  at = next((index for index, line in enumerate(lines[:2]) if _TIMES.fullmatch(line)), None)
  if at is None:
    raise ValueError(f"{where}: {block[:60]!r} has no times")
  match = _TIMES.fullmatch(lines[at])
  text = _plain(" ".join(lines[at + 1 :]))
  return Subtitle(start=_seconds(match, 1), end=_seconds(match, 4), text=text)


def _seconds(match: re.Match[str] | None, group: int) -> float:
  if match is None:
    raise ValueError("a time is not written as 0:00:01.5")
  hours, minutes, seconds = match.group(group, group + 1, group + 2)
  return int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds.replace(",", "."))


def _plain(text: str) -> str:
  return " ".join(_MARKUP.sub("", text).split())
