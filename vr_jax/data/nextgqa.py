"""NExT-GQA: multiple-choice questions on home videos, with the seconds that each answer rests on, as it is released.

    val.csv, test.csv              video_id, question, answer (the text of one option), qid, a0 … a4, and more
    gsub_val.json, gsub_test.json  {video_id: {"duration": s, "location": {qid: [[start, end], …]}, …}}
    map_vid_vidorID.json           {video_id: path of the video without its .mp4}

Source: github.com/doc-doc/NExT-GQA. The training split (train.csv) has no seconds.
"""

from collections.abc import Iterator
import csv
import io
from pathlib import Path
from typing import Any

from vr_jax.data import grounding
from vr_jax.errors import InputError

_OPTIONS = ("a0", "a1", "a2", "a3", "a4")
_COLUMNS = ("video_id", "qid", "question", "answer", *_OPTIONS)


def read(
  questions: Path,
  spans: Path,
  videos: Path,
  *,
  limits: grounding.Filter | None = None,
) -> grounding.Converted:
  """Questions in the fields of docs/data.md.

  Left out and counted are questions with "no span" and with "no video" in the map, those without a text, with two options that are the same or with
  an answer that is none of the "options", and what `limits` (default: those of the paper) leaves out: "short" and "wide".

  Args:
    questions: val.csv or test.csv.
    spans: the JSON file of the same split.
    videos: map_vid_vidorID.json.
    limits: which videos are long enough, and how much of them may be relevant.

  Raises:
    InputError: a file that is missing or of another layout; file, line and field are named.
  """
  grounded, paths = grounding.json_object(spans), grounding.json_object(videos)
  limits = limits or grounding.Filter()
  return grounding.converted(
    _record(row, grounded, paths, spans, limits) for row in _rows(questions)
  )


def _rows(path: Path) -> Iterator[dict[str, str]]:
  rows = csv.DictReader(io.StringIO(grounding.text(path)))
  try:
    yield from _checked(rows, path)
  except csv.Error as error:
    raise InputError(f"{path}:{rows.line_num}: is not CSV: {error}") from error


def _checked(rows: csv.DictReader, path: Path) -> Iterator[dict[str, str]]:
  missing = [column for column in _COLUMNS if column not in (rows.fieldnames or ())]
  if missing:
    raise InputError(
      f"{path}: column {missing[0]!r} is missing; this is not NExT-GQA's val or test"
    )
  for row in rows:
    if any(row[column] is None for column in _COLUMNS):
      raise InputError(f"{path}:{rows.line_num}: has fewer columns than the first line")
    yield row


def _record(
  row: dict[str, str],
  grounded: dict[str, Any],
  paths: dict[str, Any],
  spans_file: Path,
  limits: grounding.Filter,
) -> dict[str, Any] | str:
  """A record, or why there is none."""
  video, question = row["video_id"], row["question"].strip()
  options = [row[column].strip() for column in _OPTIONS]
  answer = row["answer"].strip()
  if not question or not all(options) or len({*options}) < len(options) or answer not in options:
    return "options"
  if video not in paths:
    return "no video"
  if video not in grounded:
    return "no span"
  known, place = grounded[video], f"{spans_file}: video {video}"
  if not isinstance(known, dict) or not isinstance(known.get("location"), dict):
    raise InputError(f"{place}: needs a duration and a location")
  duration = grounding.seconds(known.get("duration"), place)
  spans = grounding.merged(
    known["location"].get(row["qid"], []), duration, f"{place}, question {row['qid']}"
  )
  if reason := grounding.reason_against(spans, duration, limits):
    return reason
  return {
    "id": f"{video}_{row['qid']}",
    "video": f"{paths[video]}.mp4",
    "question": f"{question[0].upper()}{question[1:]}?",
    "options": grounding.lettered(options),
    "answer": chr(ord("A") + options.index(answer)),
    "problem_type": "multiple choice",
    "relevant": spans,
    "source": "NExT-GQA",
  }
