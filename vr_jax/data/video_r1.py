"""Records of the Video-R1 family (Video-R1, VideoP2R and kin), brought to our fields.

Reconstruction: their traces carry no times, so that each reference step made of one spans the whole of what is shown.
"""

import re
from typing import Any

from vr_jax.errors import InputError

_ANSWER = re.compile(r"\s*<answer>(.*)</answer>\s*", re.DOTALL)
_TAG = re.compile(r"</?[a-z_]+>")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")
_REQUIRED = ("problem_id", "problem", "data_type", "solution", "problem_type", "path")


def is_record(value: dict[str, Any]) -> bool:
  """Whether a JSON object is of the Video-R1 family rather than ours."""
  return "problem" in value and "question" not in value


def to_record(value: dict[str, Any], where: str) -> dict[str, Any]:
  """The same question in the fields of our schema; their values are not checked yet.

  `observation` and `process`, where given, become the reference steps, sentence by sentence, and stay as `observation`
  and `reasoning`.

  Raises:
    InputError: a field is missing, the record is about an image, or its solution has no answer tags.
  """
  for field in _REQUIRED:
    if field not in value:
      raise InputError(f"{where}: field {field!r} is missing")
  if value["data_type"] != "video":
    raise InputError(f"{where}: field 'data_type': {value['data_type']!r} is not 'video'")
  match = _ANSWER.fullmatch(str(value["solution"]))
  if not match:
    raise InputError(f"{where}: field 'solution': is not of the form <answer>...</answer>")
  traces = [value.get(field) or "" for field in ("observation", "process")]
  return {
    "id": value["problem_id"],
    "video": value["path"],
    "question": value["problem"],
    "options": value.get("options"),
    "answer": match.group(1).strip(),
    "problem_type": value["problem_type"],
    "steps": [{"text": step} for trace in traces for step in _sentences(str(trace))],
    "source": value.get("data_source"),
    "observation": value.get("observation"),
    "reasoning": value.get("process"),
  }


def without_tags(trace: str) -> str:
  """A trace without the tags of a reply, and without outer white space."""
  return _TAG.sub(" ", trace).strip()


def _sentences(trace: str) -> list[str]:
  pieces = _SENTENCE_END.split(without_tags(trace))
  return [piece.strip() for piece in pieces if piece.strip()]
