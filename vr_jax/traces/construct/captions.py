"""Reads captions of videos over time: the lines of ShareGPT4Video, and those of the simulator.

A line has `video_id`, `video_path`, `captions: [{"idx", "content"}, …]`, where idx -1 is a caption
of the whole video, and times: `timestamp`, the span of the file that was captioned, and `keyframe`,
the frames that the captions are about. Where a caption has a `start` and an `end` of its own, as
those of the simulator do, these hold.

Reconstruction: captions of ShareGPT4Video are differential. Each but the first tells what happened
between two neighbouring key frames, so with key frames k0, k1, … caption j lasts from k(j-1) to
k(j), and the first is about the frame at k0. The format of `timestamp` and `keyframe` isn't
published where this project could read it; what is not understood is an error, never a guess. A
key frame behind the end of its span says that the unit of all key frames is another one, so it
always stops the run while the unit isn't given.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import itertools
import math
from pathlib import Path
import re
from typing import Any

from vr_jax import inner_path, records
from vr_jax.data import annotations, record_files
from vr_jax.errors import InputError

SUMMARY = -1  # index of the caption of the whole video
TOLERANCE = 0.05  # seconds that a key frame may lie outside of the captioned span
_NEAR = 1.0  # seconds between the first key frame and the start of its span, at most
_CLOCK = re.compile(r"(?:(?:(\d{1,3}):)?(\d{1,2}):)?(\d{1,6}(?:[.,]\d{1,9})?)\s?s?")
_RANGE = re.compile(r"\s*(.+?)\s*(?:-->|–|-|to)\s*(.+?)\s*")


class UnitError(InputError):
  """Key frames count in another unit than it was taken for, in all lines."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Caption:
  """What is told about a stretch of a video, in seconds.

  asked: the time at which what it tells is certain: the start of a state, the end of a change.
  """

  text: str
  start: float
  end: float
  asked: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class CaptionedVideo:
  """A line of a caption file, without the caption of the whole video.

  where: its file and line.
  video: path below the directory of videos.
  archive: name of the archive of the video, without its ending; "" if the line doesn't say.
  span: the part of the file that was captioned; nothing outside of it is used.
  captions: in order of time; the last one is the future that is masked.
  """

  where: str
  id: str
  video: str
  archive: str
  span: records.Span
  captions: tuple[Caption, ...]

  @property
  def masked(self) -> records.Span:
    """The span of the last caption."""
    return records.Span(start=self.captions[-1].start, end=self.captions[-1].end)

  @property
  def shown(self) -> records.Span:
    """What comes before the masked span."""
    return records.Span(start=self.span.start, end=self.masked.start)


def read(
  path: Path,
  *,
  keyframe_fps: float,
  even: bool,
  on_bad: Callable[[str, InputError], None],
) -> list[CaptionedVideo]:
  """Reads the usable lines of a caption file, or of all files that match a pattern.

  keyframe_fps: frames a second that `keyframe` counts in; 0: key frames are taken for seconds.
  even: whether captions without key frames divide the captioned span evenly.
  on_bad: called with file:line and the error of each line that can't be used; may raise the error.

  Raises:
    InputError: the file can't be read or holds no lines; key frames that are taken for seconds are
      none (`UnitError`); also what `on_bad` raises.
  """
  videos, seen = [], {}
  files = annotations.find_files(path)
  for where, parse in itertools.chain.from_iterable(map(record_files.entries, files)):
    try:
      video = parse_record(parse(), where, keyframe_fps=keyframe_fps, even=even)
      key = (video.id, video.span)
      if key in seen:
        raise InputError(f"{where}: field 'video_id': {video.id!r} is taken by {seen[key]}")
      seen[key] = where
      videos.append(video)
    except UnitError:
      raise
    except InputError as error:
      on_bad(where, error)
  return videos


def parse_record(value: Any, where: str, *, keyframe_fps: float, even: bool) -> CaptionedVideo:
  """Makes a `CaptionedVideo` of a line; arguments as in `read`.

  Raises:
    InputError: a field is missing or malformed, or times contradict each other.
  """
  if not isinstance(value, dict):
    raise InputError(f"{where}: is no JSON object")
  path = value.get("video_path")
  if not inner_path.is_inner(path):
    raise InputError(f"{where}: field 'video_path': {path!r:.80} is no path below a directory")
  name = value.get("video_id", Path(str(path)).stem)
  if not isinstance(name, str | int) or isinstance(name, bool) or not plain_text(str(name)):
    raise InputError(f"{where}: field 'video_id': {name!r:.80} is no name")
  entries = _entries(value.get("captions"), where)
  if len(entries) < 2:
    raise InputError(
      f"{where}: field 'captions': {len(entries)} besides that of the whole video; 2 are needed, "
      "as the last one is masked"
    )
  frames = _key_frames(value.get("keyframe"), keyframe_fps, where)
  span = _span(value.get("timestamp"), where)
  captions = _placed(entries, frames, span, even, where, knows_unit=keyframe_fps > 0)
  whole = span or records.Span(start=captions[0].start, end=captions[-1].end)
  _check(captions, whole, where)
  return CaptionedVideo(
    where=where,
    id=plain_text(str(name)),
    video=str(path),
    archive=_archive(value.get("zip_folder")),
    span=whole,
    captions=captions,
  )


def plain_text(text: str) -> str:
  """A text with single spaces and without NULs; lone surrogates, which UTF-8 lacks, become "?"."""
  return " ".join(text.encode("utf-8", "replace").decode().replace("\0", " ").split())


def _archive(value: Any) -> str:
  """The name of an archive without its ending; "" if there is none."""
  return Path(value).stem if isinstance(value, str) else ""


def _entries(value: Any, where: str) -> list[tuple[str, Mapping[str, Any]]]:
  """(text, entry) of each caption but that of the whole video, in the order of their indices."""
  if not isinstance(value, list):
    raise InputError(f"{where}: field 'captions': needs a list, is {value!r:.60}")
  found: dict[int, tuple[str, Mapping[str, Any]]] = {}
  for entry in value:
    index, text = (entry.get("idx"), entry.get("content")) if isinstance(entry, dict) else (0, 0)
    number = int(str(index)) if re.fullmatch(r"-1|[0-9]{1,6}", str(index)) else None
    if number is None:
      raise InputError(f"{where}: field 'captions': idx {index!r:.40} is no index")
    if not isinstance(text, str) or not plain_text(text):
      raise InputError(f"{where}: field 'captions': the content of {index!r} is no text")
    if number in found:
      raise InputError(f"{where}: field 'captions': idx {index!r} is there twice")
    found[number] = plain_text(text), entry
  order = sorted(index for index in found if index != SUMMARY)
  if order and order != list(range(order[0], order[0] + len(order))):
    raise InputError(f"{where}: field 'captions': indices {order} have a gap; one is missing")
  return [found[index] for index in order]


def _placed(
  entries: Sequence[tuple[str, Mapping[str, Any]]],
  frames: Sequence[float],
  span: records.Span | None,
  even: bool,
  where: str,
  *,
  knows_unit: bool,
) -> tuple[Caption, ...]:
  """Gives each caption its time."""
  if any("start" in entry or "end" in entry for _, entry in entries):
    times = [(_time(e.get("start"), where), _time(e.get("end"), where)) for _, e in entries]
    return tuple(
      Caption(text=text, start=start, end=end, asked=start)
      for (text, _), (start, end) in zip(entries, times, strict=True)
    )
  if not frames and even and span:
    edges = [span.start + i * (span.end - span.start) / len(entries) for i in range(len(entries))]
    edges.append(span.end)
  elif not frames:
    raise InputError(
      f"{where}: has captions without times (no 'keyframe'); give them, or divide the timestamp's "
      "span evenly with config.construct.even_times"
    )
  else:
    edges = _absolute(frames, span, where, knows_unit=knows_unit)
    if len(edges) == len(entries):
      edges = [edges[0], *edges]  # the first caption is about the first frame alone
    elif len(edges) != len(entries) + 1:
      raise InputError(
        f"{where}: field 'keyframe': {len(edges)} key frames for {len(entries)} captions"
      )
  return tuple(
    Caption(text=text, start=start, end=end, asked=end)
    for (text, _), (start, end) in zip(entries, itertools.pairwise(edges), strict=True)
  )


def _absolute(
  frames: Sequence[float], span: records.Span | None, where: str, *, knows_unit: bool
) -> list[float]:
  """Key frames in seconds of the file. They may count from the start of the captioned span.

  The first frame is always a key frame, so what they count from is what brings it nearer to the
  start of the span.
  """
  if span is None:
    return list(frames)
  offset = min((0.0, span.start), key=lambda each: abs(frames[0] + each - span.start))
  if abs(frames[0] + offset - span.start) > _NEAR:
    raise InputError(
      f"{where}: field 'keyframe': begins at {frames[0]:g} s, near neither 0 nor the timestamp's "
      f"start, {span.start:g} s"
    )
  times = [max(frame + offset, span.start) for frame in frames]
  if times[-1] > span.end + TOLERANCE:
    problem = (
      f"{where}: field 'keyframe': {times[-1]:g} s is behind the timestamp's end, {span.end:g} s"
    )
    if knows_unit:
      raise InputError(problem)
    raise UnitError(
      f"{problem}; if they count frames, give config.construct.keyframe_fps; if they are seconds "
      "and this line is bad, give 1"
    )
  return [min(time, span.end) for time in times]


def _check(captions: Sequence[Caption], span: records.Span, where: str) -> None:
  """Raises InputError unless captions follow each other within the span."""
  for before, after in itertools.pairwise(captions):
    if after.start < before.end - TOLERANCE or after.end <= after.start:
      raise InputError(
        f"{where}: captions of {before.start:g} to {before.end:g} s and {after.start:g} to "
        f"{after.end:g} s don't follow each other"
      )
  outside = captions[0].start < span.start - TOLERANCE or captions[-1].end > span.end + TOLERANCE
  if outside or captions[0].end < captions[0].start:
    raise InputError(
      f"{where}: captions of {captions[0].start:g} to {captions[-1].end:g} s are outside of the "
      f"timestamp's span, {span.start:g} to {span.end:g} s"
    )


def _key_frames(value: Any, keyframe_fps: float, where: str) -> list[float]:
  if value is None or value == []:
    return []
  if not isinstance(value, list):
    raise InputError(f"{where}: field 'keyframe': needs a list, is {value!r:.60}")
  times = [_time(each, where) / (keyframe_fps or 1.0) for each in value]
  if any(after <= before for before, after in itertools.pairwise(times)):
    raise InputError(f"{where}: field 'keyframe': {value!r:.80} does not increase")
  return times


def _span(value: Any, where: str) -> records.Span | None:
  """The captioned part of the file; None if the line doesn't say."""
  if value is None:
    return None
  if isinstance(value, dict) and {"start", "end"} <= set(value):
    value = [value["start"], value["end"]]
  if isinstance(value, str) and len(value) < 80 and (match := _RANGE.fullmatch(value)):
    value = list(match.groups())
  if not isinstance(value, list) or len(value) != 2:
    raise InputError(f"{where}: field 'timestamp': {value!r:.60} is no pair of times")
  start, end = (_time(each, where) for each in value)
  if not start < end:
    raise InputError(f"{where}: field 'timestamp': {start:g} to {end:g} s is empty")
  return records.Span(start=start, end=end)


def _time(value: Any, where: str) -> float:
  """Seconds of a number, of "12.5", or of a clock such as 00:01:02.500."""
  match = _CLOCK.fullmatch(value.strip()) if isinstance(value, str) else None
  if match:
    hours, minutes, seconds = match.groups()
    value = 3600 * int(hours or 0) + 60 * int(minutes or 0) + float(seconds.replace(",", "."))
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise InputError(f"{where}: {value!r:.60} is no time; seconds or hours:minutes:seconds")
  if not 0 <= value < 1e7 or not math.isfinite(value):
    raise InputError(f"{where}: {value!r:.60} is no time of a video")
  return float(value)
