"""Writes the data set, once all chunks are done: annotations by split, lists of what was left out.

annotations.jsonl                         all questions, in our annotation fields
train.jsonl, validation.jsonl, test.jsonl the same by split of their videos
rejected.jsonl                            questions that were left out, each with its reason
bad_records.jsonl                         lines and videos that could not be used
statistics.md, summary.json               counts; summary.json is written last
"""

from collections.abc import Callable, Mapping, Sequence
import json
from pathlib import Path
from typing import Any

import ml_collections

from vr_jax import atomic, errors
from vr_jax.data import examples
from vr_jax.traces.construct import chunk_work, duplicates, statistics_page, video_files

SUMMARY = "summary.json"


def assemble(
  output: Path,
  chunks: Sequence[chunk_work.CaptionChunk],
  config: ml_collections.ConfigDict,
  known: video_files.VideoKnowledge,
  bad: Sequence[Mapping[str, str]],
) -> dict[str, Any]:
  """Writes the files above and returns the summary.

  bad: lines and videos that could not be used, {"where", "problem"}.

  Raises:
    InputError: a chunk is damaged, no question is left, or writing fails.
  """
  videos = [video for chunk in chunks for video in chunk_work.load(output, chunk)]
  rows = [dict(row) for video in videos for row in video.questions]
  _filter_across(rows, known, config.construct.near_duplicate)
  kept = [row for row in rows if not row["reason"]]
  lost = [video for video in videos if video.problem]
  lost += [v for v in videos if any(row["reason"] == "no verdict" for row in v.questions)]
  if lost:
    check_complete(output, config, f"{len(lost)} videos, as of {lost[0].where}")
  bad = [*bad, *({"where": v.where, "problem": v.problem} for v in videos if v.problem)]
  atomic.write_json_lines(output / "bad_records.jsonl", bad)
  atomic.write_json_lines(output / "rejected.jsonl", [row for row in rows if row["reason"]])
  if not kept:
    raise errors.InputError(
      f"{output}: no question is left of {len(rows)} about {len(videos)} videos; rejected.jsonl "
      "and bad_records.jsonl say why"
    )
  split_of = _split(kept, config.data, known.copies)
  splits = {split: [] for split in examples.SPLITS}
  for row in kept:
    splits[split_of(row["record"]["video"])].append(row)
  atomic.write_json_lines(output / "annotations.jsonl", [row["record"] for row in kept])
  for split, part in splits.items():
    atomic.write_json_lines(output / f"{split}.jsonl", [row["record"] for row in part])
  summary = statistics_page.summarize(
    videos, rows, splits, bad=len(bad), copies=len(known.copies), comparison=known.comparison
  )
  page = statistics_page.page(summary, compared=known.compared)
  atomic.write_bytes(output / "statistics.md", [page.encode()])
  atomic.write_bytes(output / SUMMARY, [json.dumps(summary, indent=2).encode() + b"\n"])
  return summary


def check_complete(output: Path, config: ml_collections.ConfigDict, lost: str) -> None:
  """Raises InputError unless what an earlier start left out may be left out. lost: what it is."""
  if config.construct.on_bad == "stop":
    raise errors.InputError(
      f"{output}: an earlier start left out parts of {lost}, with config.construct.on_bad=skip; "
      "give it, or another config.construct.directory"
    )


def _filter_across(
  rows: Sequence[dict[str, Any]], known: video_files.VideoKnowledge, threshold: float
) -> None:
  """Adds reasons that depend on other questions, or on frames, in place."""
  for row in rows:
    if detail := known.in_benchmark.get(row["record"]["video"]):
      row |= {"reason": row["reason"] or "in a benchmark", "detail": row["detail"] or detail}
  kept = [row for row in rows if not row["reason"]]
  found = duplicates.find(
    [row["record"] for row in kept], lambda video: known.copies.get(video, video), threshold
  )
  for index, reason, detail in found:
    kept[index] |= {"reason": reason, "detail": detail}


def _split(
  kept: Sequence[Mapping[str, Any]], data: ml_collections.ConfigDict, copies: Mapping[str, str]
) -> Callable[[str], str]:
  """Divides the videos by the rule, fractions and seed of ingestion; copies count as one video.

  The one that counts is the first by name that has a question.
  """
  first: dict[str, str] = {}
  for name in sorted({row["record"]["video"] for row in kept}):
    first.setdefault(copies.get(name, name), name)
  names = sorted(first.values())
  train = 1 - data.validation_fraction - data.test_fraction
  shares = (train, data.validation_fraction, data.test_fraction)
  fractions: dict[str, float] = dict(zip(examples.SPLITS, shares, strict=True))
  parts = examples.split_videos(names, fractions, seed=data.split_seed)
  split_of = {video: split for split, part in parts.items() for video in part}
  return lambda video: split_of[first[copies.get(video, video)]]
