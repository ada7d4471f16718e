"""Subtitles: texts with the seconds of the video at which they are seen.

Files are SubRip (.srt), or LongVideoBench's JSON in two schemas: a list of {"timestamp": [start,
end], "text"} in seconds, or of {"start", "end", "line"} as "hours:minutes:seconds". Lines without
text are left out.
"""

import bisect
from collections.abc import Sequence
import math
from pathlib import Path
import re
from typing import Any, NamedTuple

from vr_jax import plain_json
from vr_jax.errors import InputError

_CLOCK = r"(?:(\d{1,4}):)?(\d{1,2}):(\d{1,2}(?:[.,]\d{1,9})?)"
_TIMING = re.compile(rf"\s*{_CLOCK}\s*-->\s*{_CLOCK}(?:\s.*)?")
_TAG = re.compile(r"</?(?:[ibu]|font)(?:\s[^<>]*)?>|\{\\[^{}]*\}", re.IGNORECASE)


class Subtitle(NamedTuple):
  """A text and the seconds from which and up to which it is seen."""

  start: float
  end: float
  text: str


def at_times(subtitles: Sequence[Subtitle], times: Sequence[float]) -> tuple[str, ...]:
  """The texts that are seen at some of the times (seconds, of frames, say), each once, in order.

  A subtitle is seen from its start up to its end, the end excluded.
  """
  ordered = sorted(times)
  texts = []
  for subtitle in sorted(subtitles, key=lambda each: each.start):
    first = bisect.bisect_left(ordered, subtitle.start)
    if first < len(ordered) and ordered[first] < subtitle.end:
      texts.append(subtitle.text)
  return tuple(texts)


def between_frames(subtitles: Sequence[Subtitle], times: Sequence[float]) -> tuple[int | str, ...]:
  """The numbers of all frames, and between them the texts that are said around some of them.

  times: of the frames, in seconds, increasing.

  A text comes after the frames up to the middle of its time. It is left out if no frame is within
  its time, both ends excluded; of less than a second, the second around the middle counts.

  Source: LongVideoBench, longvideobench_dataset.py (insert_subtitles_into_frames).
  """
  parts: list[int | str] = []
  shown = 0
  for start, end, text in subtitles:
    middle = (start + end) / 2
    passed = max(shown, bisect.bisect_right(times, middle))
    parts += range(shown, passed)
    shown = passed
    if end - start < 1:
      start, end = middle - 0.5, middle + 0.5
    first = bisect.bisect_right(times, start)
    if first < len(times) and times[first] < end:
      parts.append(text)
  return (*parts, *range(shown, len(times)))


def read(path: Path, *, offset: float = 0.0, duration: float | None = None) -> tuple[Subtitle, ...]:
  """Reads a file of subtitles, in the order of the file.

  offset: seconds of the subtitles' clock at which the video starts; they are subtracted.
  duration: of the video, in seconds; the end of subtitles that have none.

  Raises InputError naming the file and line or entry if it is absent or of another format.
  """
  try:
    text = path.read_bytes().decode("utf-8-sig")
  except OSError as error:
    raise InputError(f"{path}: cannot be read: {error.strerror}") from error
  except UnicodeDecodeError as error:
    raise InputError(f"{path}: is not UTF-8 text (byte {error.start})") from error
  if path.suffix.lower() == ".json":
    found = _parse_json(text, path, math.inf if duration is None else duration + offset)
  else:
    found = _parse_srt(text, path)
  return tuple(each._replace(start=each.start - offset, end=each.end - offset) for each in found)


def _parse_srt(text: str, path: Path) -> list[Subtitle]:
  """Blocks of a number, a line of times and lines of text, which may have empty lines in them."""
  lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
  timings = [
    (index, match) for index, line in enumerate(lines) if (match := _TIMING.fullmatch(line))
  ]
  before = lines[: timings[0][0]] if timings else lines
  if any(line.strip() and not line.strip().isdigit() for line in before):
    raise InputError(f"{path}: line 1: needs SubRip: a number, then 00:00:01,000 --> 00:00:02,000")
  found = []
  for place, (index, match) in enumerate(timings):
    last = timings[place + 1][0] if place + 1 < len(timings) else len(lines)
    body = lines[index + 1 : last]
    while body and not body[-1].strip():
      body.pop()
    if place + 1 < len(timings) and body and body[-1].strip().isdigit():
      body.pop()  # the number of the next block
    if broken := next((line for line in body if "-->" in line), ""):
      raise InputError(f"{path}: line {index + 2}: {broken!r:.60} has no times")
    words = " ".join(_TAG.sub("", line).strip() for line in body).split()
    start, end = _seconds(*match.group(1, 2, 3)), _seconds(*match.group(4, 5, 6))
    if words:
      found.append(Subtitle(start, end, " ".join(words)))
  return found


def _parse_json(text: str, path: Path, last: float) -> list[Subtitle]:
  try:
    entries = plain_json.parse(text)
  except ValueError as error:
    raise InputError(f"{path}: is not JSON: {error}") from error
  if not isinstance(entries, list):
    raise InputError(f"{path}: needs a list, is {entries!r:.60}")
  found = [_entry(entry, f"{path}: entry {index}", last) for index, entry in enumerate(entries)]
  return [each for each in found if each.text]


def _entry(entry: Any, where: str, last: float) -> Subtitle:
  fields = entry if isinstance(entry, dict) else {}
  if isinstance(fields.get("timestamp"), list) and len(fields["timestamp"]) == 2:
    (start, end), words = fields["timestamp"], fields.get("text")
    if not plain_json.has_type(start, float) or not plain_json.has_type(end, float | None):
      raise InputError(f"{where}: field 'timestamp' can't be {fields['timestamp']!r:.60}")
    end = last if end is None else end
  else:
    start, end = (_clock(fields.get(name)) for name in ("start", "end"))
    words = fields.get("line")
    if start is None or end is None:
      raise InputError(f"{where}: needs 'timestamp' and 'text', or 'start', 'end' and 'line'")
  if not isinstance(words, str):
    raise InputError(f"{where}: has no text")
  return Subtitle(float(start), float(end), " ".join(words.split()))


def _clock(text: Any) -> float | None:
  match = re.fullmatch(_CLOCK, text) if isinstance(text, str) else None
  return _seconds(*match.groups()) if match else None


def _seconds(hours: str | None, minutes: str, seconds: str) -> float:
  return int(hours or 0) * 3600 + int(minutes) * 60 + float(seconds.replace(",", "."))
