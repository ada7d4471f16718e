"""Records of the Video-R1 family (Video-R1, VideoP2R and kin), brought to our fields.

In some of the released files (VideoP2R's for RL) every value is a text: a list of options is one that spells it, and nothing is
"", "null" or "None".

Reconstruction: their traces carry no times, so that each reference step made of one spans the whole of what is shown.
"""

import ast
import json
import re
from typing import Any

from vr_jax.data import picture_file
from vr_jax.errors import InputError

# Frames that `relevant_sample_frames` counts, evenly over what is shown: one a second, but so many [Video-MTR's released code].
POOL = (4, 64)

_ANSWER = re.compile(r"\s*<answer>(.*)</answer>\s*", re.DOTALL)
_TAG = re.compile(r"</?[a-z_]+>")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_REQUIRED = ("problem_id", "problem", "data_type", "solution", "problem_type", "path")
_OPTIONAL = ("options", "data_source", "answer", "observation", "process", "relevant_sample_frames")
_NOTHING = ("", "null", "None")


def is_record(value: dict[str, Any]) -> bool:
  """Whether a JSON object is of the Video-R1 family rather than ours."""
  return "problem" in value and "question" not in value


def to_record(value: dict[str, Any], where: str) -> dict[str, Any]:
  """The same question in the fields of our schema; their values are not checked yet.

  `observation` and `process`, where given, become the reference steps, sentence by sentence, and stay as `observation`
  and `reasoning`.

  Raises:
    InputError: a field is missing, `data_type` is not that of the file, `options` spells no list, or there is no answer in tags.
  """
  for field in _REQUIRED:
    if field not in value:
      raise InputError(f"{where}: field {field!r} is missing")
  _check_data_type(value, where)
  traces = [_given(value.get(field)) for field in ("observation", "process")]
  return {
    "id": value["problem_id"],
    "video": value["path"],
    "question": value["problem"],
    "options": _options(value.get("options"), where),
    "answer": _answer(value, where),
    "problem_type": value["problem_type"],
    "steps": [{"text": step} for trace in traces for step in _sentences(str(trace or ""))],
    "source": _given(value.get("data_source")),
    "observation": traces[0],
    "reasoning": traces[1],
  }


def extra_fields(value: dict[str, Any]) -> dict[str, Any]:
  """The fields that `to_record` does not read."""
  return {name: entry for name, entry in value.items() if name not in (*_REQUIRED, *_OPTIONAL)}


def without_tags(trace: str) -> str:
  """A trace without the tags of a reply, and without outer white space."""
  return _TAG.sub(" ", trace).strip()


def _given(value: Any) -> Any:
  """A value, or None for what is no value."""
  return None if isinstance(value, str) and value.strip() in _NOTHING else value


def _check_data_type(value: dict[str, Any], where: str) -> None:
  kind, path = value["data_type"], value["path"]
  if kind not in ("video", "image"):
    raise InputError(f"{where}: field 'data_type': {kind!r} is neither 'video' nor 'image'")
  if (kind == "image") != picture_file.is_picture(str(path)):
    pictures = ", ".join(picture_file.SUFFIXES)
    raise InputError(
      f"{where}: field 'data_type': {kind!r}, but field 'path' is {path!r}; images end with {pictures}"
    )


def _options(value: Any, where: str) -> Any:
  """What a text spells: a list of texts, as JSON or as Python writes it. What is no text is left as it is."""
  value = _given(value)
  if not isinstance(value, str):
    return value
  for parse in (json.loads, ast.literal_eval):
    try:
      options = parse(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
      continue
    if isinstance(options, list):
      return options
  raise InputError(f"{where}: field 'options': is a text that spells no list: {value[:80]!r}")


def _answer(value: dict[str, Any], where: str) -> Any:
  """What stands in the tags of the solution; where it has none, the field `answer`, which later files have."""
  match = _ANSWER.fullmatch(str(value["solution"]))
  if match:
    return match.group(1).strip()
  if (answer := _given(value.get("answer"))) is None:
    raise InputError(f"{where}: field 'solution': is not of the form <answer>...</answer>")
  return answer


def _sentences(trace: str) -> list[str]:
  pieces = _SENTENCE_END.split(without_tags(trace))
  return [piece.strip() for piece in pieces if piece.strip()]
