"""Reads and checks annotation files, as records.Example.

Two record formats are read and recognized by their fields: ours (docs/data.md) and Video-R1's. A
file holds one JSON object a line, or one JSON list of objects. It may be gzipped.
"""

from collections.abc import Callable, Set
import dataclasses
import itertools
import math
from pathlib import Path, PurePosixPath
import re
from typing import Any
import unicodedata

from jaxtyping import Float
import numpy as np

from vr_jax import inner_path, records
from vr_jax.data import (
  foreign_records,
  image_folder,
  mask_files,
  record_files,
  sampling,
  video_r1,
)
from vr_jax.errors import InputError

# Times are rounded to microseconds, and stored as integers.
MICROSECONDS = 1_000_000

_REQUIRED = ("id", "video", "question", "answer", "problem_type")
_TRACE = ("observation", "reasoning")
_OPTIONAL = ("options", "shown", "masked", "relevant", "states", "steps", "source", *_TRACE)
_POOL_FRAMES = "relevant_sample_frames"
_MASK_FIELDS = ("masks", "instances", "frame_rate")  # of queries whose answer is a mask
_OPTION = re.compile(r"\s*([A-Z])[.):、]\s*\S")
_LABEL = re.compile(r"\s*\(?[A-Za-z][.):、]?\s*")
# Our fields that records of the Video-R1 family may have, too.
_LISTS = ("shown", "masked", "relevant", "steps", "states")

BadRecord = Callable[[str, InputError], None]
Check = Callable[[records.Example], str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Annotation:
  """A record that is valid in itself. `place_in_video` checks it against its video.

  where: its file and line.
  example: spans end at infinity if the file has no shown span, or no times for a step.
  pool_frames: indices of relevant frames in a pool of video_r1.POOL frames, increasing.
  reference: to the masks of a query whose answer is a mask; else None.
  """

  where: str
  example: records.Example
  pool_frames: tuple[int, ...] = ()
  reference: mask_files.MaskReference | None = None


def read(
  path: Path, videos: Set[str], *, on_bad: BadRecord, check: Check | None = None
) -> list[Annotation]:
  """Reads the valid records of an annotation file, or of all files that match a pattern.

  Args:
    path: JSON lines, or one JSON list; may be gzipped. The file name may be a pattern, such as
      data/rl.part*.json.gz.
    videos: names of the existing video files, and of pictures; a folder of pictures is a video,
      too.
    on_bad: called with file:line and the error of each bad record; may raise the error.
    check: says what is wrong with an example; "" if nothing is.

  Raises:
    InputError: the file can't be read or holds no record; also what `on_bad` raises.
  """
  annotations, seen = [], {}
  folders = image_folder.find_all(videos)
  videos = {*videos, *folders}
  by_form = _by_unicode_form(videos)
  for where, parse in itertools.chain.from_iterable(map(record_files.entries, find_files(path))):
    reference = None
    try:
      value = parse()
      example, pool_frames = _example(value, where), _pool_frames(value, where)
      if example.video not in videos:
        same = by_form.get(unicodedata.normalize("NFC", example.video))
        if same is None:
          raise foreign_records.unknown_video(example.video, videos, where)
        example = dataclasses.replace(example, video=same)
      folder = folders.get(example.video)
      if example.problem_type == records.SEGMENTATION:
        reference = mask_files.parse_reference(value, path.parent, folder, where)
        track = mask_files.object_track(reference, folder, where)
        example = dataclasses.replace(example, object_track=track)
      elif folder is not None:
        raise InputError(
          f"{where}: field 'video': {example.video!r} is a folder of pictures, which only a "
          f"{records.SEGMENTATION} query can be about; make a video file of it (ffmpeg)"
        )
      if example.id in seen:
        raise InputError(f"{where}: field 'id': {example.id!r} is taken by {seen[example.id]}")
      if check and (problem := check(example)):
        raise InputError(f"{where}: {problem}")
    except InputError as error:
      on_bad(where, error)
      continue
    seen[example.id] = where
    annotations.append(
      Annotation(where=where, example=example, pool_frames=pool_frames, reference=reference)
    )
  return annotations


def _by_unicode_form(videos: Set[str]) -> dict[str, str]:
  """Maps names in composed form to names on disk: file systems may store "é" in another form.

  Left out are names that differ in their form alone.
  """
  named: dict[str, list[str]] = {}
  for video in videos:
    named.setdefault(unicodedata.normalize("NFC", video), []).append(video)
  return {form: same[0] for form, same in named.items() if len(same) == 1}


def read_first(path: Path) -> records.Example:
  """Reads the first record of the first annotation file. The video need not exist.

  Raises:
    InputError: the file can't be read or holds no record, or its first record is bad.
  """
  where, parse = next(record_files.entries(find_files(path)[0]))
  return _example(parse(), where)


def find_lines(path: Path) -> dict[str, str]:
  """File and line of each record by its id, of records that have one."""
  lines = {}
  for where, parse in itertools.chain.from_iterable(map(record_files.entries, find_files(path))):
    try:
      value = parse()
    except InputError:
      continue
    if isinstance(value, dict):
      lines[str(_whole(value.get("id", value.get("problem_id"))))] = where
  return lines


def find_mask_files(path: Path) -> list[Path]:
  """The mask files that records of queries name, as far as they are there, sorted."""
  found = set()
  for file in find_files(path):
    content = file.read_bytes() if file.is_file() else b""
    if not content.startswith(record_files.GZIP) and records.SEGMENTATION.encode() not in content:
      continue
    for _, parse in record_files.entries(file):
      try:
        value = parse()
      except InputError:
        continue
      is_query = isinstance(value, dict) and value.get("problem_type") == records.SEGMENTATION
      if is_query and inner_path.is_inner(value.get("masks")):
        found.add(file.parent / value["masks"])
  return sorted(path for path in found if path.is_file())


def find_files(path: Path) -> list[Path]:
  """Finds the annotation files of a path or a pattern, sorted by name.

  Raises:
    InputError: no file matches the pattern.
  """
  if path.exists() or not any(sign in path.name for sign in "*?["):
    foreign_records.check_place(path, "config.data.annotations")
    return [path]
  if not (files := sorted(path.parent.glob(path.name))):
    raise InputError(f"{path}: there is no annotation file of this pattern")
  return files


def place_in_video(
  annotation: Annotation,
  duration: float,
  times: Float[np.ndarray, "stored"],
  ends: Float[np.ndarray, "stored"],
  *,
  tolerance: float,
) -> records.Example:
  """Makes the example, and checks that its times are inside the video.

  The shown span defaults to the whole video, and steps without times get the shown span. Relevant
  pool frames become spans: each lasts from its frame to the pool's next one.

  Args:
    annotation: of one record.
    duration: of the video, in seconds.
    times: of the stored frames, in seconds.
    ends: when they left the screen, in seconds.
    tolerance: times may exceed the duration by this many seconds.

  Raises:
    InputError: a span or state is after the end of the video, the shown and the masked span
      overlap, or a relevant frame is not in the pool.
  """
  example, where = annotation.example, annotation.where
  if math.isinf(example.shown.end):
    whole = records.Span(start=0.0, end=_microsecond(duration))
    example = dataclasses.replace(example, shown=whole)
  if annotation.pool_frames and not example.relevant:
    spans = _spans(annotation.pool_frames, times, ends, example.shown, where)
    example = dataclasses.replace(example, relevant=spans)
  shown = dataclasses.asdict(example.shown)
  steps = tuple(
    dataclasses.replace(step, **shown) if math.isinf(step.end) else step for step in example.steps
  )
  example = dataclasses.replace(example, steps=steps)
  latest = [("shown", example.shown.end), *(("relevant", span.end) for span in example.relevant)]
  latest += [("masked", example.masked.end)] if example.masked else []
  latest += [("steps", step.end) for step in example.steps]
  latest += [("states", state.time) for state in example.states]
  if example.object_track:
    latest += [("masks", time) for time in example.object_track.times[-1:].tolist()]
  for field, end in latest:
    if end > duration + tolerance:
      raise InputError(
        f"{where}: field {field!r}: {end:g} s is outside the video {example.video!r} "
        f"of {duration:g} s"
      )
  masked = example.masked
  if masked and masked.start < example.shown.end and example.shown.start < masked.end:
    raise InputError(f"{where}: field 'masked': overlaps what is shown; say what is 'shown'")
  return example


def _spans(
  frames: tuple[int, ...],
  times: Float[np.ndarray, "stored"],
  ends: Float[np.ndarray, "stored"],
  shown: records.Span,
  where: str,
) -> tuple[records.Span, ...]:
  """Turns pool frames into spans in seconds. Adjacent frames share one span."""
  least, most = video_r1.POOL
  count = max(least, min(most, int(shown.end - shown.start))) // 2 * 2
  pool = sampling.choose(times, ends, shown, sampling.PoolRule(frames=count), where=where)
  starts = sampling.shown_times(times, pool, shown)
  edges = [*map(_microsecond, starts.tolist()), shown.end]
  if len(pool) < count:
    raise InputError(
      f"{where}: field 'relevant_sample_frames': counts {count} frames, but {len(pool)} are "
      "stored; drop the field, or store more a second (config.data.fps) if the video has more"
    )
  if frames[-1] >= count:
    raise InputError(
      f"{where}: field 'relevant_sample_frames': {frames[-1]} is no frame of a pool of {count}"
    )
  spans: list[records.Span] = []
  for frame in frames:
    start = edges[frame]
    if spans and spans[-1].end == start:
      start = spans.pop().start
    spans.append(records.Span(start=start, end=edges[frame + 1]))
  return tuple(spans)


def _example(value: Any, where: str) -> records.Example:
  if not isinstance(value, dict):
    raise InputError(f"{where}: is {_kind(value)}, not a JSON object")
  foreign_records.check_record(value, where)
  foreign_records.check_times(value, where)
  known = (*_REQUIRED, *_OPTIONAL, _POOL_FRAMES)
  if video_r1.is_record(value):
    extra, value = video_r1.extra_fields(value), video_r1.to_record(value, where)
    given = {field: entry for field, entry in extra.items() if field in _LISTS and entry}
    extra = {field: entry for field, entry in extra.items() if field not in given}
    value |= given
  else:
    extra = {field: entry for field, entry in value.items() if field not in known}
  is_query = value.get("problem_type") == records.SEGMENTATION
  if is_query:
    known = (*known, *_MASK_FIELDS)
    extra = {field: entry for field, entry in extra.items() if field not in known}
  for field in _REQUIRED:
    if field not in value and not (is_query and field == "answer"):
      raise foreign_records.missing_field(field, value, known, where)
  foreign_records.check_spelling(value, known, where)
  problem_type = _text(value["problem_type"], "problem_type", where)
  if problem_type not in (*records.PROBLEM_TYPES, records.SEGMENTATION):
    types = ", ".join((*records.PROBLEM_TYPES, records.SEGMENTATION))
    raise InputError(f"{where}: field 'problem_type': {problem_type!r} is none of {types}")
  options = tuple(_text(option, "options", where) for option in _list(value, "options", where))
  answer = "" if is_query and not value.get("answer") else _text(value["answer"], "answer", where)
  _check_answer(answer, options, problem_type, where)
  whole = records.Span(start=0.0, end=math.inf)
  return records.Example(
    id=_text(value["id"], "id", where),
    video=_video_name(_text(value["video"], "video", where), where),
    question=_text(value["question"], "question", where),
    options=options,
    answer=answer,
    problem_type=problem_type,
    shown=whole if value.get("shown") is None else _span(value["shown"], "shown", where),
    masked=None if value.get("masked") is None else _span(value["masked"], "masked", where),
    relevant=tuple(_span(span, "relevant", where) for span in _list(value, "relevant", where)),
    steps=tuple(_step(step, where) for step in _list(value, "steps", where)),
    states=tuple(_state(state, where) for state in _list(value, "states", where)),
    source=_text(value["source"], "source", where) if value.get("source") else "",
    **{  # pyright: ignore[reportArgumentType] these fields are texts
      field: video_r1.strip_tags(_text(value[field], field, where))
      for field in _TRACE
      if value.get(field)
    },
    extra=extra,
  )


def _pool_frames(value: dict[str, Any], where: str) -> tuple[int, ...]:
  frames = _list(value, _POOL_FRAMES, where)
  if not all(type(frame) is int and frame >= 0 for frame in frames):
    raise InputError(f"{where}: field 'relevant_sample_frames': needs whole numbers, 0 or more")
  return tuple(sorted(set(frames)))


def _check_answer(answer: str, options: tuple[str, ...], problem_type: str, where: str) -> None:
  if problem_type == records.SEGMENTATION and answer:
    raise InputError(f"{where}: field 'answer': a {problem_type} query has masks instead")
  if problem_type != "multiple choice":
    if options:
      raise InputError(f"{where}: field 'options': a {problem_type} question has none")
    return
  letters = []
  for option in options:
    match = _OPTION.match(option)
    if _LABEL.fullmatch(option):
      raise InputError(
        f"{where}: field 'options': {option!r} is a letter without a text; write what it stands for"
      )
    if not match:
      raise InputError(
        f"{where}: field 'options': {option!r} does not begin with a letter as 'A. '"
      )
    letters.append(match.group(1))
  if len(letters) < 2 or len(set(letters)) < len(letters):
    raise InputError(f"{where}: field 'options': two or more with letters of their own are needed")
  if answer not in letters:
    raise InputError(
      f"{where}: field 'answer': {answer!r} is none of the options {', '.join(letters)}"
    )


def _video_name(name: str, where: str) -> str:
  path = PurePosixPath(name)
  # Backslashes are named with what may be meant, once it is known that there is no such video.
  if not inner_path.is_inner(name.replace("\\", "/") if "\\" in name else name):
    raise InputError(f"{where}: field 'video': {name!r} is not a path below the video directory")
  return path.as_posix()


def _step(value: Any, where: str) -> records.Step:
  if not isinstance(value, dict) or ("start" not in value and "end" not in value):
    value = _object(value, "steps", ("text",), where)
    return records.Step(text=_text(value["text"], "steps", where), start=0.0, end=math.inf)
  value = _object(value, "steps", ("text", "start", "end"), where)
  # A step may describe an instant, but a span of frames can't be empty.
  span = _span([value["start"], value["end"]], "steps", where, empty=True)
  return records.Step(text=_text(value["text"], "steps", where), start=span.start, end=span.end)


def _state(value: Any, where: str) -> records.State:
  value = _object(value, "states", ("object", "time", "attribute", "value"), where)
  return records.State(
    object=_text(value["object"], "states", where),
    time=_seconds(value["time"], "states", where),
    attribute=_text(value["attribute"], "states", where),
    value=_text(value["value"], "states", where),
  )


def _object(value: Any, field: str, keys: tuple[str, ...], where: str) -> dict[str, Any]:
  if not isinstance(value, dict) or any(key not in value for key in keys):
    raise InputError(f"{where}: field {field!r}: needs objects with {', '.join(keys)}")
  return value


def _list(value: dict[str, Any], field: str, where: str) -> list:
  entry = value.get(field)
  if entry is None:
    return []
  if not isinstance(entry, list):
    raise InputError(f"{where}: field {field!r}: is {_kind(entry)}, not a list")
  return entry


def _span(value: Any, field: str, where: str, *, empty: bool = False) -> records.Span:
  if not isinstance(value, list) or len(value) != 2:
    raise InputError(f"{where}: field {field!r}: needs [start, end] in seconds")
  start, end = (_seconds(time, field, where) for time in value)
  if end < start or (end == start and not empty):
    raise InputError(f"{where}: field {field!r}: [{start:g}, {end:g}] does not end after it starts")
  return records.Span(start=start, end=end)


def _seconds(value: Any, field: str, where: str) -> float:
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise InputError(f"{where}: field {field!r}: a time is {_kind(value)}, not a number of seconds")
  if not 0 <= value < 1e9:
    raise InputError(f"{where}: field {field!r}: {value} is not a time within a video")
  return _microsecond(float(value))


def _microsecond(seconds: float) -> float:
  return round(seconds * MICROSECONDS) / MICROSECONDS


def _text(value: Any, field: str, where: str) -> str:
  # Many files have numbers instead of texts, as ids and numerical answers.
  value = _whole(value)
  if isinstance(value, int | float) and not isinstance(value, bool):
    value = str(value)
  if not isinstance(value, str):
    raise InputError(f"{where}: field {field!r}: is {_kind(value)}, not a text")
  if not value.strip():
    raise InputError(f"{where}: field {field!r} is empty")
  try:
    value.encode()
  except UnicodeEncodeError as error:
    raise InputError(f"{where}: field {field!r}: holds half a surrogate pair") from error
  return value


def _whole(value: Any) -> Any:
  """The JSON number 3.0 as 3: programs that write tables make decimals of whole numbers."""
  return int(value) if isinstance(value, float) and value.is_integer() else value


def _kind(value: Any) -> str:
  names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
  return names.get(type(value), "null" if value is None else "a number")
