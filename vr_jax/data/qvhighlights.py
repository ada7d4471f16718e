"""Reads QVHighlights: sentences that describe moments of videos, and questions made from them.

The released file has one JSON object a line:

    highlight_train_release.jsonl
      {"qid", "query", "vid", "duration": s, "relevant_windows": [[start, end], …], …}

A rewriter turns each sentence into a multiple-choice question, or marks it as unsuitable:

    rewrites.jsonl    {"qid", "suitable": true, "question", "options": [four texts], "answer": "B"}
                      {"qid", "suitable": false}

The test split is released without windows.

Source: github.com/jayleicn/moment_detr (data/README.md); for the rewrites Video-MTR,
arXiv 2508.20478, appendix B.
"""

from collections.abc import Iterator
import dataclasses
from pathlib import Path
import re
from typing import Any

from vr_jax.data import temporal_grounding
from vr_jax.errors import InputError

_FIELDS = ("qid", "query", "vid", "duration", "relevant_windows")
_LETTER = re.compile(r"\s*\(?([A-Z])[.):]\s*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moment:
  """A sentence, and the spans [start, end] of its video that it describes, in seconds."""

  qid: str
  query: str
  video: str
  spans: temporal_grounding.Spans


def moments(
  path: Path, *, limits: temporal_grounding.SpanFilter | None = None
) -> temporal_grounding.Converted:
  """Reads the moments that are worth a question, for a rewriter.

  Drops and counts the others: "no span", "short" and "wide". The paper rewrites all and filters
  afterwards, which gives the same questions.

  Raises:
    InputError: the file is missing or has another layout; names file, line and field.
  """
  return temporal_grounding.separate(_moments(path, limits or temporal_grounding.SpanFilter()))


def read(
  path: Path, rewrites: Path, *, limits: temporal_grounding.SpanFilter | None = None
) -> temporal_grounding.Converted:
  """Reads the questions made from moments, in the fields of docs/data.md.

  Drops and counts what `moments` drops, and moments that are "not rewritten" or "unsuitable".

  Raises:
    InputError: a file is missing or has another layout, or a rewrite is not a valid question; names
      file, line and field.
  """
  rewrite_of = {str(value["qid"]): value for value in read_rewrites(rewrites)}
  return temporal_grounding.separate(
    moment if isinstance(moment, str) else _record(moment, rewrite_of)
    for moment in _moments(path, limits or temporal_grounding.SpanFilter())
  )


def _moments(path: Path, limits: temporal_grounding.SpanFilter) -> Iterator[Moment | str]:
  """Yields each moment, or the reason why it is dropped."""
  for where, value in temporal_grounding.read_json_lines(path, _FIELDS):
    duration = temporal_grounding.parse_duration(value["duration"], f"{where}: field 'duration'")
    if not isinstance(value["query"], str):
      raise InputError(f"{where}: field 'query': a text is needed")
    spans = temporal_grounding.merge_spans(
      value["relevant_windows"], duration, f"{where}: field 'relevant_windows'"
    )
    yield temporal_grounding.rejection_reason(spans, duration, limits) or Moment(
      qid=str(value["qid"]),
      query=value["query"].strip(),
      video=f"{value['vid']}.mp4",
      spans=spans,
    )


def read_rewrites(path: Path) -> Iterator[dict[str, Any]]:
  """Reads the rewrites of a file.

  Raises InputError, naming file, line and field, if the file is missing or has another layout.
  """
  for where, value in temporal_grounding.read_json_lines(path, ("qid", "suitable")):
    if problem := find_problem(value):
      raise InputError(f"{where}: {problem}")
    yield value


def find_problem(rewrite: dict[str, Any]) -> str:
  """What is wrong with a rewrite; "" if it is a valid question or is marked as unsuitable."""
  if rewrite.get("suitable") is not True:
    return "" if rewrite.get("suitable") is False else "field 'suitable': true or false is needed"
  options, letters = rewrite.get("options"), "ABCDEFGHIJ"
  if not (isinstance(options, list) and 1 < len(options) <= len(letters)) or not all(
    isinstance(option, str) and option.strip() for option in options
  ):
    return "field 'options': two or more texts are needed"
  if len({option.strip() for option in _without_letters(options)}) < len(options):
    return "field 'options': texts that differ are needed"
  if rewrite.get("answer") not in list(letters[: len(options)]):
    return "field 'answer': the letter of an option is needed"
  if not isinstance(rewrite.get("question"), str) or not rewrite["question"].strip():
    return "field 'question': a text is needed"
  return ""


def _record(moment: Moment, rewrite_of: dict[str, dict[str, Any]]) -> dict[str, Any] | str:
  """The record of a moment, or the reason why it is dropped."""
  if moment.qid not in rewrite_of:
    return "not rewritten"
  rewrite = rewrite_of[moment.qid]
  if rewrite["suitable"] is not True:
    return "unsuitable"
  return {
    "id": f"qvhighlights_{moment.qid}",
    "video": moment.video,
    "question": rewrite["question"].strip(),
    "options": temporal_grounding.add_letters(_without_letters(rewrite["options"])),
    "answer": rewrite["answer"],
    "problem_type": "multiple choice",
    "relevant": moment.spans,
    "source": "QVHighlights",
  }


def _without_letters(options: list[str]) -> list[str]:
  """Removes the options' letters if all have theirs, in order: "A. red", "B. green", …"""
  matches = list(filter(None, map(_LETTER.match, options)))
  letters = [chr(ord("A") + index) for index in range(len(options))]
  if [match[1] for match in matches] != letters:
    return options
  return [match.string[match.end() :] for match in matches]
