"""Reads NExT-GQA: multiple-choice questions about home videos, with the spans of their evidence.

The released files:

    val.csv, test.csv              video_id, question, answer (the text of an option), qid,
                                   a0 … a4, and more
    gsub_val.json, gsub_test.json  {video_id: {"duration": s,
                                               "location": {qid: [[start, end], …]}, …}}
    map_vid_vidorID.json           {video_id: path of the video without .mp4}

The training split (train.csv) has no spans. Source: github.com/doc-doc/NExT-GQA.
"""

from collections.abc import Iterator
import csv
import io
from pathlib import Path
from typing import Any

from vr_jax.data import temporal_grounding
from vr_jax.errors import InputError

_OPTIONS = ("a0", "a1", "a2", "a3", "a4")
_COLUMNS = ("video_id", "qid", "question", "answer", *_OPTIONS)


def read(
  questions: Path,
  spans: Path,
  videos: Path,
  *,
  limits: temporal_grounding.SpanFilter | None = None,
) -> temporal_grounding.Converted:
  """Reads questions in the fields of docs/data.md.

  Drops and counts questions for these reasons:

  - "options": the text or an option is empty, two options are equal, or the answer is no option;
  - "no video": the video is not in the map;
  - "no span": there are no spans;
  - "short", "wide": outside `limits`.

  Args:
    questions: val.csv or test.csv.
    spans: the JSON file of the same split.
    videos: map_vid_vidorID.json.
    limits: which questions to keep; default: those of the paper.

  Raises:
    InputError: a file is missing or has another layout; names file, line and field.
  """
  grounded, paths = (
    temporal_grounding.read_json_object(spans),
    temporal_grounding.read_json_object(videos),
  )
  limits = limits or temporal_grounding.SpanFilter()
  return temporal_grounding.separate(
    _record(row, grounded, paths, spans, limits) for row in _rows(questions)
  )


def _rows(path: Path) -> Iterator[dict[str, str]]:
  rows = csv.DictReader(io.StringIO(temporal_grounding.read_text(path)))
  try:
    yield from _check_rows(rows, path)
  except csv.Error as error:
    raise InputError(f"{path}:{rows.line_num}: is not CSV: {error}") from error


def _check_rows(rows: csv.DictReader, path: Path) -> Iterator[dict[str, str]]:
  """Yields the rows. Raises InputError if a column or a row's field is missing."""
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
  limits: temporal_grounding.SpanFilter,
) -> dict[str, Any] | str:
  """The record of a row, or the reason why it is dropped."""
  video, question = row["video_id"], row["question"].strip()
  options = [row[column].strip() for column in _OPTIONS]
  answer = row["answer"].strip()
  if not question or not all(options) or len({*options}) < len(options) or answer not in options:
    return "options"
  if video not in paths:
    return "no video"
  if video not in grounded:
    return "no span"
  entry, where = grounded[video], f"{spans_file}: video {video}"
  if not isinstance(entry, dict) or not isinstance(entry.get("location"), dict):
    raise InputError(f"{where}: needs a duration and a location")
  duration = temporal_grounding.parse_duration(entry.get("duration"), where)
  spans = temporal_grounding.merge_spans(
    entry["location"].get(row["qid"], []), duration, f"{where}, question {row['qid']}"
  )
  if reason := temporal_grounding.rejection_reason(spans, duration, limits):
    return reason
  return {
    "id": f"{video}_{row['qid']}",
    "video": f"{paths[video]}.mp4",
    "question": f"{question[0].upper()}{question[1:]}?",
    "options": temporal_grounding.add_letters(options),
    "answer": chr(ord("A") + options.index(answer)),
    "problem_type": "multiple choice",
    "relevant": spans,
    "source": "NExT-GQA",
  }
