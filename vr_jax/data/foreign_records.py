"""Recognizes what people bring from elsewhere, and says in one line what to do with it.

Such as records of other trainers (conversations, parquet), misspelt fields, ids of the Hugging Face
Hub, and addresses.
"""

from collections.abc import Collection, Mapping
import difflib
import json
from pathlib import Path
import re
from typing import Any

from vr_jax.errors import InputError

OTHER_FORMATS = "docs/data.md#records-of-other-trainers"
_CONVERSATIONS = ("conversations", "messages", "conversation")
# Words in the names of fields that say which part of a video is meant: at one end of it, or in all.
_EDGES = {"start", "end", "begin", "stop"}
_ABOUT = {"video", "clip", "segment", "time", "timestamp", "ts", "sec", "secs", "second", "seconds"}
_ABOUT |= {"ms", "s", "frame", "idx", "index"}
_SPANS = {
  "timestamps",
  "timestamp",
  "range",
  "segment",
  "clip",
  "span",
  "window",
  "interval",
  "time",
}
_SPANS |= {"video", "temporal", "ts"}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # of a name: time_range, timeRange
# "3", "2.5s", "00:03", "0:00:03.5"; and two of them, of which one says that it is a time.
_TIME = r"(?:\d+:)?(?:\d+:)?\d+(?:[.,]\d+)?\s?(?:s|secs?|seconds?)?"
_TIME_TEXT = re.compile(rf"\s*{_TIME}\s*", re.I)
_SPAN_TEXT = re.compile(rf"\s*(?=.*[:.s]){_TIME}\s*(?:-|–|to|,)\s*{_TIME}\s*", re.I)
# What other data sets call our required fields.
_OTHER_NAMES = {
  "id": ("question_id", "qid", "uid", "sample_id", "index", "idx"),
  "video": ("video_path", "video_file", "video_name", "video_id", "videos", "path", "file", "vid"),
  "question": ("problem", "query", "prompt", "instruction", "question_text", "q"),
  "answer": ("solution", "gt", "ground_truth", "correct_answer", "response", "label", "ans", "a"),
  "problem_type": ("question_type", "type", "task_type", "qtype", "task"),
}
_TABLE = re.compile(r"[\"\w ]+(?:[,;\t][\"\w ]+)+\r?$")  # the head of a table
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")  # a path has one slash where it had two
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_BINARY = {
  b"PAR1": "Parquet",
  b"PK\x03\x04": "a zip archive",
  b"ARROW1": "Arrow",
  b"\xff\xff\xff\xff": "Arrow",
  b"\xfd7zXZ": "xz",
  b"\x28\xb5\x2f\xfd": "Zstandard",
  b"BZh": "bzip2",
  b"SQLite format 3": "SQLite",
}


def check_record(value: Mapping[str, Any], where: str) -> None:
  """Raises InputError if a JSON object is a record of another trainer, which has no question."""
  if "question" in value or isinstance(value.get("problem"), str):
    return
  for field in _CONVERSATIONS:
    if isinstance(value.get(field), list):
      raise InputError(
        f"{where}: field {field!r}: is a conversation, as LLaVA, ms-swift or TRL have it; write "
        f"its turns as 'question' and 'answer' ({OTHER_FORMATS})"
      )
  if isinstance(value.get("prompt"), list) or "reward_model" in value:
    field = "prompt" if "prompt" in value else "reward_model"
    raise InputError(
      f"{where}: field {field!r}: is a record of verl; "
      f"write its prompt and ground_truth as 'question' and 'answer' ({OTHER_FORMATS})"
    )


def missing_field(
  field: str, value: Mapping[str, Any], known: Collection[str], where: str
) -> InputError:
  """The error about a required field that a record lacks; names the field that may be meant."""
  unknown = [name for name in value if name not in known]
  near = difflib.get_close_matches(field, unknown, n=1, cutoff=0.8)
  meant = near or [name for name in _OTHER_NAMES[field] if value.get(name) is not None]
  hint = f"; is {meant[0]!r} meant? Rename it" if meant else ""
  return InputError(f"{where}: field {field!r} is missing{hint}")


def check_spelling(value: Mapping[str, Any], known: Collection[str], where: str) -> None:
  """Raises InputError if an unknown field looks like one of ours that is absent.

  All other unknown fields become `extra`.
  """
  absent = [field for field in known if value.get(field) is None]
  for field in value:
    near = difflib.get_close_matches(field, absent, n=1, cutoff=0.8)
    if near and field not in known:
      raise InputError(f"{where}: field {field!r} is unknown; is {near[0]!r} meant?")


def check_times(value: Mapping[str, Any], where: str) -> None:
  """Raises InputError if fields seem to say what is shown, but `shown` is absent."""
  if value.get("shown") is not None:
    return
  for field, entry in value.items():
    words = {word.lower() for word in _WORD.findall(field)}
    is_edge = len(words & _EDGES) == 1 and words <= _EDGES | _ABOUT and _is_time(entry)
    is_span = bool(words & _SPANS) and words <= _SPANS and _is_span(entry)
    if is_edge or is_span:
      raise InputError(
        f"{where}: field {field!r} would be ignored: what the model may see is "
        "'shown': [start, end] in seconds; write that too, [0, its length] for the whole video"
      )


def _is_time(entry: Any) -> bool:
  if isinstance(entry, str):
    return _TIME_TEXT.fullmatch(entry) is not None
  return isinstance(entry, int | float) and not isinstance(entry, bool)


def _is_span(entry: Any) -> bool:
  """Whether a value is two times, in any of the usual forms."""
  if isinstance(entry, str):
    return _SPAN_TEXT.fullmatch(entry) is not None
  if isinstance(entry, dict):
    return "start" in entry and "end" in entry and _is_time(entry["start"])
  if isinstance(entry, list) and len(entry) == 1:
    return _is_span(entry[0])
  return isinstance(entry, list) and len(entry) == 2 and all(map(_is_time, entry))


def wrapping(text: str) -> str:
  """What is wrong with a file whose first line is no record: one JSON object, or a table; or ""."""
  first, _, rest = text.lstrip().partition("\n")
  if not first.startswith("{"):
    return "is a table, not JSON; write one JSON object a line" if _TABLE.match(first) else ""
  try:
    value = json.loads(text) if rest.strip() and not _is_json(first) else None
  except (ValueError, RecursionError):
    return ""
  if not isinstance(value, dict):
    return ""
  lists = [name for name, entry in value.items() if isinstance(entry, list)]
  inside = f"the list in its field {lists[0]!r}" if lists else "a list of such objects"
  return f"is one JSON object, not a list of records or one a line; write {inside}"


def _is_json(text: str) -> bool:
  try:
    json.loads(text)
  except (ValueError, RecursionError):
    return False
  return True


def unknown_video(name: str, videos: Collection[str], where: str) -> InputError:
  """The error about a name that no video file has."""
  if _ADDRESS.match(name):
    address = _ADDRESS.sub(r"\1://", name, count=1)
    return InputError(
      f"{where}: field 'video': {address!r} is an address; download it into the video directory, "
      "and write the file's path below that"
    )
  stems = {Path(video).with_suffix("").as_posix(): video for video in sorted(videos)}
  names = {Path(video).name: video for video in sorted(videos)}
  slashes = name.replace("\\", "/")
  meant = (
    slashes if slashes in videos else stems.get(slashes, names.get(slashes.rpartition("/")[2]))
  )
  hint = f"; is {meant!r} meant?" if meant else ""
  return InputError(f"{where}: field 'video': there is no file {name!r} among the videos{hint}")


def check_place(path: Path, field: str) -> None:
  """Raises InputError if a path that does not exist is an address, or an id on the Hub.

  field: of the config, such as "config.data.videos".
  """
  text = str(path)
  if _ADDRESS.match(text):
    address = _ADDRESS.sub(r"\1://", text, count=1)
    raise InputError(
      f"--{field}={address}: is an address; download it, and give the path on this disk"
    )
  if not path.exists() and not path.parent.exists() and _HUB_ID.fullmatch(text):
    raise InputError(
      f"--{field}={text}: there is no such path; if it is a data set on the Hugging Face Hub: "
      f"hf download {text} --repo-type=dataset --local-dir={path.name}, then give a path in there"
    )


def binary_kind(content: bytes) -> str:
  """What a file is that is no text, as "Parquet"; "" if that is unknown."""
  return next((kind for start, kind in _BINARY.items() if content.startswith(start)), "")
