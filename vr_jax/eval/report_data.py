"""Reads and checks what a report shows: a run's config, metrics and evaluations.

Missing files are allowed: the run may not have written them yet. A file with a wrong format raises
an InputError that names it.
"""

from collections.abc import Sequence
import dataclasses
import math
from pathlib import Path
import re
from typing import Any

from vr_jax import errors, plain_json
from vr_jax.envs import metric
from vr_jax.eval import evaluated_replies, report_grounding, report_json
from vr_jax.train import metrics as metrics_lib

STAGES = ("base", "sft", "rl")  # in the order of training; base: the weights to start from
JUDGED = "judged.json"  # in eval/: what judges say about traces (trace_judging); no evaluation

Curves = dict[str, dict[str, tuple[list[int], list[float]]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReferenceStep:
  """One step of the reference reasoning; start and end in seconds."""

  text: str
  start: float
  end: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportAlignment:
  """The alignment of generated steps with reference steps.

  cost: [reference step][generated step], in [0, 1].
  path: (reference step, generated step) pairs in order.
  distance: None if no alignment exists.
  """

  cost: tuple[tuple[float, ...], ...]
  path: tuple[tuple[int, int], ...]
  distance: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportSegment:
  """A part of a reply that belongs to the segment `name`. A segment may have several parts."""

  name: str
  text: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportTurn:
  """One turn: the frames that it showed, and the reply.

  kind: answer, retrieve or invalid.
  problem: why the reply is invalid.
  first, last: indices in the pool of the first and last frame that the reply asks for.
  shown: indices in the pool of the frames before the reply.
  rewards: by name.
  """

  reply: str
  kind: str
  problem: str
  first: int | None
  last: int | None
  shown: tuple[int, ...]
  rewards: dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportEpisode:
  """The turns of an episode about a pool of frames.

  times: of the pool's frames, in seconds.
  relevant: (start, end) of the evidence, in seconds.
  """

  turns: tuple[ReportTurn, ...]
  times: tuple[float, ...]
  relevant: tuple[tuple[float, float], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
  """One evaluated reply to one question, with its scores.

  shown: (start, end) of the part of the video that the model could see, in seconds.
  times: of the clip's frames, in seconds.
  reply: with several turns, the last one.
  parsed_answer: the answer as it was read from the reply; None if it has none.
  truncated: whether a reply reached the token limit before it ended.
  problem: why the question failed; "" if it did not.
  metrics: what the reply contributes to each metric of the evaluation.
  rewards: by name; with several turns, metrics of the episode.
  steps: reasoning steps of the reply.
  segments: the whole reply in parts; empty if it is rewarded as a whole.
  segment_rewards: by segment, then by name; {} for a segment that is not scored.
  segment_advantages: by segment.
  episode: all turns; None if there is only one.
  grounding: where it found an object; None if the recipe looks for none.
  """

  id: str
  video: str
  shown: tuple[float, float]
  question: str
  options: tuple[str, ...]
  answer: str
  problem_type: str
  times: tuple[float, ...]
  reply: str
  parsed_answer: str | None
  accuracy: float | None
  tokens: int
  truncated: bool
  problem: str
  metrics: dict[str, float]
  reference: tuple[ReferenceStep, ...]
  steps: tuple[str, ...]
  alignment: ReportAlignment | None
  rewards: dict[str, float]
  segments: tuple[ReportSegment, ...]
  segment_rewards: dict[str, dict[str, float]]
  segment_advantages: dict[str, float]
  episode: ReportEpisode | None
  grounding: report_grounding.ReportGrounding | None

  @property
  def frames_seen(self) -> list[int]:
    """Indices in the clip of the frames that the reply saw, and of those with what it found."""
    if self.episode:
      found = self.grounding.frames if self.grounding else []
      return [index for turn in self.episode.turns for index in turn.shown] + found
    return list(range(len(self.times)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
  """One evaluation: metrics over `examples` held-out questions, and all replies.

  intervals: (low, high) of the 95 % confidence interval of a metric, by name.
  device: that it ran on; "" if it is not recorded.
  seconds: how long it took; None if it is not recorded.
  """

  name: str
  title: str
  stage: str
  step: int
  examples: int
  metrics: dict[str, float]
  intervals: dict[str, tuple[float, float]]
  shown_as: metric.Metrics
  device: str
  seconds: float | None
  replies: tuple[Sample, ...]

  @property
  def failed(self) -> list[str]:
    """Why questions failed, one each."""
    return [reply.problem for reply in self.replies if reply.problem]


# Frames of the questions that the report shows: id -> index in the clip -> base64 JPEG.
Frames = dict[str, dict[int, str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportRun:
  """What the report shows of a workdir.

  curves: stage -> metric -> (steps, values), steps ascending. If a resumed run logged a step again,
    the last value counts.
  """

  workdir: Path
  config: dict | None
  curves: Curves
  evaluations: tuple[Evaluation, ...]
  frames: Frames


def read_run(workdir: Path) -> ReportRun:
  """Reads config.json, metrics.jsonl and eval/ of a workdir. Any of them may be missing.

  Evaluations are sorted in the order of training: by stage, step and name.

  Raises:
    InputError: there is no such directory, or a file in it has a wrong format.
  """
  if not workdir.is_dir():
    raise errors.InputError(f"{workdir}: no such directory; give the workdir of a run")
  config, metrics = workdir / "config.json", workdir / "metrics.jsonl"
  files = sorted(each for each in (workdir / "eval").glob("*.json") if each.name != JUDGED)
  evaluations = [read_evaluation(path) for path in files]
  evaluations.sort(key=lambda each: (_order(each.stage), each.step, each.name))
  frames = workdir / "eval" / evaluated_replies.FRAMES
  return ReportRun(
    workdir=workdir,
    config=report_json.read_record(config).values if config.exists() else None,
    curves=read_curves(metrics) if metrics.exists() else {},
    evaluations=tuple(evaluations),
    frames=read_frames(frames, evaluations) if frames.exists() else {},
  )


def read_benchmarks(workdir: Path) -> list[dict[str, Any]]:
  """Reads the rows of benchmarks/table.json that a table shows; [] if there is none.

  Raises:
    InputError: the file has a wrong format.
  """
  path = workdir / "benchmarks" / "table.json"
  if not path.is_file():
    return []
  shown = {
    "protocol": str,
    "cells": tuple[str, ...],
    "notes": tuple[str, ...],
    "intervals": tuple[tuple[str, str, str, int], ...],
  }
  try:
    rows = plain_json.parse(path.read_bytes())
    if not isinstance(rows, list):
      raise ValueError("is no list")
    for row in rows:
      for name, wanted in shown.items():
        if not plain_json.has_type(row[name], wanted):
          raise ValueError(f"field {name!r} can't be {row[name]!r:.60}")
  except (ValueError, KeyError, TypeError) as error:
    raise errors.InputError(f"{path}: is damaged: {error}; run vr-jax eval again") from error
  return [{name: row[name] for name in shown} for row in rows]


def read_curves(path: Path) -> Curves:
  """Reads the curves of a metrics.jsonl. An incomplete last line is ignored.

  Raises:
    InputError: a line is no JSON object with stage, step and values; names file and line.
  """
  points: dict[str, dict[str, dict[int, float]]] = {}
  for number, line in enumerate(metrics_lib.read(path, complete=False), start=1):
    record = report_json.Record(line, f"{path}:{number}")
    stage, step = points.setdefault(record.text("stage"), {}), record.integer("step")
    for name, value in record.named_numbers("values").items():
      stage.setdefault(name, {})[step] = value
  return {
    stage: {
      name: (sorted(curve), [curve[step] for step in sorted(curve)])
      for name, curve in points[stage].items()
    }
    for stage in sorted(points, key=_order)
  }


def read_evaluation(path: Path) -> Evaluation:
  """Reads eval/<name>.json, and its replies from eval/<name>.jsonl.

  Raises:
    InputError: one is not JSON or missing, a field is missing or has a wrong type, or an alignment
      doesn't fit its steps.
  """
  record = report_json.read_record(path)
  replies = path.with_suffix(".jsonl")
  if not replies.exists():
    raise errors.InputError(f"{replies}: no such file; run --mode=eval, or delete {path}")
  shown = record.record("intervals")
  return Evaluation(
    name=record.text("name"),
    title=record.text("title"),
    stage=record.text("stage"),
    step=record.integer("step"),
    examples=record.integer("examples"),
    metrics=record.named_numbers("metrics"),
    intervals={
      name: (each.number("low"), each.number("high"))
      for name in shown.values
      for each in [shown.record(name)]
    },
    shown_as=_shown_as(record),
    device=record.text("device") if record.has("device") else "",
    seconds=record.number("seconds") if record.has("seconds") else None,
    replies=tuple(_sample(each) for each in report_json.read_records(replies)),
  )


def read_frames(path: Path, evaluations: Sequence[Evaluation]) -> Frames:
  """Reads the frames of the questions that the report shows.

  Raises:
    InputError: the file has a wrong format, or lacks a frame that a reply saw.
  """
  frames: Frames = {}
  for record in report_json.read_records(path):
    named = record.record("frames")
    if odd := [name for name in named.values if not re.fullmatch("[0-9]{1,9}", name)]:
      raise errors.InputError(f"{named.where}: {odd[0]!r:.60} should be the index of a frame")
    frames[record.text("id")] = {int(name): named.text(name) for name in named.values}
  for evaluation in evaluations:
    for reply in evaluation.replies:
      kept = frames.get(reply.id)
      if kept is not None and (lacking := set(reply.frames_seen) - kept.keys()):
        raise errors.InputError(
          f"{path}: question {reply.id!r} lacks frame {min(lacking)}; run --mode=eval again"
        )
  return frames


def _shown_as(record: report_json.Record) -> metric.Metrics:
  """Reads how to show metrics, in order."""
  if not record.has("shown_as"):
    return {}
  section = record.record("shown_as")
  shown = {name: section.record(name) for name in section.values}
  return {
    name: metric.Metric(
      title=each.text("title"),
      note=each.text("note"),
      unit=each.text("unit"),
      digits=each.integer("digits"),
      better=each.integer("better"),
      headline=bool(each.values.get("headline")),
      fraction=bool(each.values.get("fraction")),
    )
    for name, each in shown.items()
  }


def _sample(record: report_json.Record) -> Sample:
  times = record.numbers("times")
  reference = tuple(
    ReferenceStep(text=step.text("text"), start=step.number("start"), end=step.number("end"))
    for step in record.records("reference")
  )
  steps, shown = record.texts("steps"), record.numbers("shown")
  if len(shown) != 2:
    raise errors.InputError(f"{record.where}: shown should be [start, end]")
  return Sample(
    id=record.text("id"),
    video=record.text("video"),
    shown=(shown[0], shown[1]),
    question=record.text("question"),
    options=record.texts("options"),
    answer=record.text("answer"),
    problem_type=record.text("problem_type"),
    times=times,
    reply=record.text("reply"),
    parsed_answer=record.text("parsed_answer") if record.has("parsed_answer") else None,
    accuracy=record.number("accuracy") if record.has("accuracy") else None,
    tokens=record.integer("tokens"),
    truncated=bool(record.values.get("truncated")),
    problem=record.text("problem") if record.has("problem") else "",
    metrics=record.named_numbers("metrics"),
    reference=reference,
    steps=steps,
    alignment=_alignment(record.record("alignment"), len(reference), len(steps))
    if record.has("alignment")
    else None,
    rewards=record.named_numbers("rewards"),
    segments=_segments(record),
    segment_rewards=_segment_rewards(record),
    segment_advantages=record.named_numbers("segment_advantages")
    if record.has("segment_advantages")
    else {},
    episode=_episode(record, times) if record.has("turns") else None,
    grounding=report_grounding.read(record.record("grounding"), len(times))
    if record.has("grounding")
    else None,
  )


def _episode(record: report_json.Record, times: Sequence[float]) -> ReportEpisode:
  relevant = record.rows("relevant")
  turns = tuple(_turn(each, times) for each in record.records("turns"))
  if not times or not turns:
    raise errors.InputError(f"{record.where}: turns or times are empty")
  if list(times) != sorted(times) or not all(len(span) == 2 for span in relevant):
    raise errors.InputError(f"{record.where}: times should rise, relevant be [start, end]")
  return ReportEpisode(turns=turns, times=tuple(times), relevant=tuple((a, b) for a, b in relevant))


def _turn(record: report_json.Record, times: Sequence[float]) -> ReportTurn:
  first, last = (record.integer(n) if record.has(n) else None for n in ("first", "last"))
  shown = record.numbers("shown")
  if record.text("kind") == "retrieve" and None in (first, last):
    raise errors.InputError(f"{record.where}: a retrieval without first and last")
  named = [*shown, *(index for index in (first, last) if index is not None)]
  if odd := [index for index in named if index not in range(len(times))]:
    raise errors.InputError(f"{record.where}: frame {odd[0]:g} is not in a pool of {len(times)}")
  return ReportTurn(
    reply=record.text("reply"),
    kind=record.text("kind"),
    problem=record.text("problem"),
    first=first,
    last=last,
    shown=tuple(map(int, shown)),
    rewards=record.named_numbers("rewards"),
  )


def _segments(record: report_json.Record) -> tuple[ReportSegment, ...]:
  if not record.has("segments"):
    return ()
  segments = tuple(
    ReportSegment(name=each.text("name"), text=each.text("text"))
    for each in record.records("segments")
  )
  if "".join(segment.text for segment in segments) != record.text("reply"):
    raise errors.InputError(f"{record.where}: segments are not the whole reply, part by part")
  return segments


def _segment_rewards(record: report_json.Record) -> dict[str, dict[str, float]]:
  if not record.has("segment_rewards"):
    return {}
  by_segment = record.record("segment_rewards")
  return {name: by_segment.named_numbers(name) for name in by_segment.values}


def _alignment(record: report_json.Record, ref: int, gen: int) -> ReportAlignment:
  cost, path = record.rows("cost"), record.rows("path")
  if len(cost) != ref or any(len(row) != gen for row in cost):
    raise errors.InputError(f"{record.where}: cost should be {ref} reference x {gen} reply steps")
  inside = all(len(pair) == 2 and pair[0] in range(ref) and pair[1] in range(gen) for pair in path)
  if not inside:
    raise errors.InputError(f"{record.where}: path leaves the {ref} x {gen} matrix of costs")
  distance = record.number("distance") if record.has("distance") else math.inf
  return ReportAlignment(
    cost=cost,
    path=tuple((int(row), int(column)) for row, column in path),
    distance=distance if math.isfinite(distance) else None,
  )


def _order(stage: str) -> tuple[int, str]:
  return (STAGES.index(stage) if stage in STAGES else len(STAGES), stage)
