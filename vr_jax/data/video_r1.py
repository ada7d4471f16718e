"""Converts records of the Video-R1 family (Video-R1, VideoP2R, …) to this project's fields.

In some released files (VideoP2R's for RL) every value is a string: a list of options is written as
JSON or Python, and a missing value is "", "null" or "None".

Reconstruction: their traces have no times, so each reference step spans the whole shown span.
"""

import ast
import json
import re
from typing import Any

from vr_jax.data import picture_file
from vr_jax.errors import InputError

# `relevant_sample_frames` refers to frames spread evenly over the shown span, one a second, but at
# least and at most this many. Source: Video-MTR's released code.
POOL = (4, 64)

_ANSWER = re.compile(r"\s*<answer>(.*)</answer>\s*", re.DOTALL)
_TAG = re.compile(r"</?[a-z_]+>")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_REQUIRED = ("problem_id", "problem", "data_type", "solution", "problem_type", "path")
_OPTIONAL = (
  *("options", "data_source", "answer", "observation", "process", "relevant_sample_frames"),
  "output",  # the whole reply, of which the other fields are parts
)
_MISSING = ("", "null", "None")


def is_record(value: dict[str, Any]) -> bool:
  """Whether a JSON object is a record of the Video-R1 family rather than of this project."""
  return "problem" in value and "question" not in value


def to_record(value: dict[str, Any], where: str) -> dict[str, Any]:
  """Converts a record to the fields of this project's schema, without checking their values.

  The sentences of `observation` and `process`, if given, become the reference steps. The texts are
  also kept as `observation` and `reasoning`.

  Raises:
    InputError: a field is missing, `data_type` does not match the file, `options` is not a list, or
      there is no answer in tags.
  """
  for field in _REQUIRED:
    if field not in value:
      raise InputError(f"{where}: field {field!r} is missing")
  _check_data_type(value, where)
  traces = [_none_if_missing(value.get(field)) for field in ("observation", "process")]
  return {
    "id": value["problem_id"],
    "video": value["path"],
    "question": value["problem"],
    "options": _options(value.get("options"), where),
    "answer": _answer(value, where),
    "problem_type": value["problem_type"],
    "steps": [{"text": step} for trace in traces for step in _sentences(str(trace or ""))],
    "source": _none_if_missing(value.get("data_source")),
    "observation": traces[0],
    "reasoning": traces[1],
  }


def extra_fields(value: dict[str, Any]) -> dict[str, Any]:
  """The fields that `to_record` does not read."""
  return {name: entry for name, entry in value.items() if name not in (*_REQUIRED, *_OPTIONAL)}


def strip_tags(trace: str) -> str:
  """Removes tags from a trace, and white space at its ends."""
  return _TAG.sub(" ", trace).strip()


def _none_if_missing(value: Any) -> Any:
  """Replaces texts that stand for a missing value by None."""
  return None if isinstance(value, str) and value.strip() in _MISSING else value


def _check_data_type(value: dict[str, Any], where: str) -> None:
  kind, path = value["data_type"], value["path"]
  if kind not in ("video", "image"):
    raise InputError(f"{where}: field 'data_type': {kind!r} is neither 'video' nor 'image'")
  if (kind == "image") != picture_file.is_picture(str(path)):
    pictures = ", ".join(picture_file.SUFFIXES)
    raise InputError(
      f"{where}: field 'data_type': {kind!r}, but field 'path' is {path!r}; "
      f"images end with {pictures}"
    )


def _options(value: Any, where: str) -> Any:
  """Parses a list that was written as JSON or Python. Other values than strings stay."""
  value = _none_if_missing(value)
  if not isinstance(value, str):
    return value
  for parse in (json.loads, ast.literal_eval):
    try:
      options = parse(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
      continue
    if isinstance(options, list):
      return options
  raise InputError(f"{where}: field 'options': is a text but not a list: {value[:80]!r}")


def _answer(value: dict[str, Any], where: str) -> Any:
  """The answer in the tags of `solution`; without tags the field `answer`, as in later files."""
  match = _ANSWER.fullmatch(str(value["solution"]))
  if match:
    return match.group(1).strip()
  if (answer := _none_if_missing(value.get("answer"))) is None:
    raise InputError(f"{where}: field 'solution': is not of the form <answer>...</answer>")
  return answer


def _sentences(trace: str) -> list[str]:
  sentences = _SENTENCE_END.split(strip_tags(trace))
  return [sentence.strip() for sentence in sentences if sentence.strip()]
