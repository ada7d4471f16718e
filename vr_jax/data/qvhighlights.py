"""QVHighlights: sentences that describe moments of videos, as it is released, and questions that were made of them.

    highlight_train_release.jsonl    {"qid", "query", "vid", "duration": s, "relevant_windows": [[start, end], …], …}

A sentence is no question. A rewriter turns it into one of four options, or says that it does not lend itself to that:

    rewrites.jsonl    {"qid", "suitable": true, "question", "options": [four texts], "answer": "B"}
                      {"qid", "suitable": false}

Source: github.com/jayleicn/moment_detr (data/README.md), and Video-MTR, arXiv 2508.20478, appendix B, for the rewrites. The test
split is released without windows.
"""

from collections.abc import Iterator
import dataclasses
from pathlib import Path
import re
from typing import Any

from vr_jax.data import grounding
from vr_jax.errors import InputError

_FIELDS = ("qid", "query", "vid", "duration", "relevant_windows")
_LETTER = re.compile(r"\s*\(?([A-Z])[.):]\s*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Moment:
  """One sentence, and the seconds [start, end] of its video that it describes."""

  qid: str
  query: str
  video: str
  spans: grounding.Spans


def moments(path: Path, *, limits: grounding.Filter | None = None) -> grounding.Converted:
  """Those that are worth a question; dropped are the others: "no span", "short" and "wide".

  What a rewriter is asked about. The paper rewrites all and leaves out afterwards, to the same end.

  Raises:
    InputError: the file is missing or of another layout; file, line and field are named.
  """
  return grounding.converted(_moments(path, limits or grounding.Filter()))


def read(
  path: Path, rewrites: Path, *, limits: grounding.Filter | None = None
) -> grounding.Converted:
  """The questions that were made of moments, in the fields of docs/data.md.

  Left out and counted is what `moments` leaves out, and what is "not rewritten" or "unsuitable".

  Raises:
    InputError: a file that is missing or of another layout, or a rewrite that is no question; file, line and field are named.
  """
  asked = {str(value["qid"]): value for value in read_rewrites(rewrites)}
  return grounding.converted(
    found if isinstance(found, str) else _record(found, asked)
    for found in _moments(path, limits or grounding.Filter())
  )


def _moments(path: Path, limits: grounding.Filter) -> Iterator[Moment | str]:
  for where, value in grounding.json_lines(path, _FIELDS):
    duration = grounding.seconds(value["duration"], f"{where}: field 'duration'")
    if not isinstance(value["query"], str):
      raise InputError(f"{where}: field 'query': a text is needed")
    spans = grounding.merged(
      value["relevant_windows"], duration, f"{where}: field 'relevant_windows'"
    )
    yield grounding.reason_against(spans, duration, limits) or Moment(
      qid=str(value["qid"]),
      query=value["query"].strip(),
      video=f"{value['vid']}.mp4",
      spans=spans,
    )


def read_rewrites(path: Path) -> Iterator[dict[str, Any]]:
  """The rewrites of a file; raises InputError where it has none or another layout: file, line and field are named."""
  for where, value in grounding.json_lines(path, ("qid", "suitable")):
    if problem := problem_of(value):
      raise InputError(f"{where}: {problem}")
    yield value


def problem_of(rewrite: dict[str, Any]) -> str:
  """Why a rewrite is neither a question nor said to be unsuitable; "" where nothing is wrong."""
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


def _record(moment: Moment, asked: dict[str, dict[str, Any]]) -> dict[str, Any] | str:
  """A record, or why there is none."""
  if moment.qid not in asked:
    return "not rewritten"
  rewrite = asked[moment.qid]
  if rewrite["suitable"] is not True:
    return "unsuitable"
  return {
    "id": f"qvhighlights_{moment.qid}",
    "video": moment.video,
    "question": rewrite["question"].strip(),
    "options": grounding.lettered(_without_letters(rewrite["options"])),
    "answer": rewrite["answer"],
    "problem_type": "multiple choice",
    "relevant": moment.spans,
    "source": "QVHighlights",
  }


def _without_letters(options: list[str]) -> list[str]:
  """Some rewriters write "A. red" and some "red"; letters are taken off where all have theirs, in order."""
  matches = [_LETTER.match(option) for option in options]
  if [match and match[1] for match in matches] != [chr(ord("A") + k) for k in range(len(options))]:
    return options
  return [option[match.end() :] for option, match in zip(options, matches, strict=True)]
