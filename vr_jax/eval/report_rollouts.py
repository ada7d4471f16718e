"""The report's rollouts: questions with their frames and the model's replies."""

import collections
from collections.abc import Mapping, Sequence
import json
import math
from pathlib import Path
import re
from typing import Any

from vr_jax.eval import (
  ask_command,
  report_changes,
  report_data,
  report_grounding,
  report_timeline,
)

COLOURS = 4  # of segments; the style sheet defines them
TAG = re.compile(r"(</?(?:observation|think|retrieve|answer)>)")
CELL = 34  # size of a cell of the alignment matrix, in pixels
GAP = 2  # between cells, in pixels
LETTER = 6.6  # average width of a letter in a wide font, in pixels
LETTERS = 32  # most letters of a step's label
SMALLEST = 0.8  # least scale of the matrix on a narrow screen, before it scrolls
SLANT = 52  # angle of column labels, in degrees


def groups(run: report_data.ReportRun) -> list[dict[str, Any]]:
  """Computes what rollouts.html shows: by outcome, a card per question with all replies to it.

  Groups have the order of OUTCOMES, their cards that of `run.frames`. In the groups that training
  changed, the first card is open; if there are none, in the first group.
  """
  replies: dict[str, list[tuple[report_data.Evaluation, report_data.Sample]]] = {}
  for evaluation in run.evaluations:
    for sample in evaluation.replies:
      replies.setdefault(sample.id, []).append((evaluation, sample))
  outcomes = report_changes.outcomes(run.evaluations)
  samples = [sample for each in replies.values() for _, sample in each]
  # Where neither data nor recipe know reference steps, none is missed.
  has_steps = any(sample.reference or sample.alignment for sample in samples)
  found: dict[str, list[dict[str, Any]]] = {name: [] for name in report_changes.OUTCOMES}
  for identity, frames in run.frames.items():
    if identity in outcomes:
      card = _card(run.workdir, replies[identity], frames, has_steps=has_steps)
      found[outcomes[identity]].append(card)
  cards = {outcome: each for outcome, each in found.items() if each}
  opened = set(report_changes.CHANGED) & cards.keys() or {*list(cards)[:1]}
  counts = collections.Counter(outcomes.values())
  return [
    {
      "outcome": outcome,
      "title": report_changes.OUTCOMES[outcome],
      "count": counts[outcome],
      "cards": each,
      "unfolded": outcome in opened,
    }
    for outcome, each in cards.items()
  ]


def filters(groups: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """The choices of the filters above the cards: outcomes with their counts, types and rewards."""
  samples = [r["sample"] for group in groups for card in group["cards"] for r in card["replies"]]
  counts = {group["outcome"]: len(group["cards"]) for group in groups}
  return {
    "changed": sum(counts.get(name, 0) for name in report_changes.CHANGED),
    "total": sum(counts.values()),
    "outcomes": [
      {"name": group["outcome"], "title": group["title"], "count": len(group["cards"])}
      for group in groups
    ],
    "types": sorted({sample.problem_type for sample in samples}),
    "rewards": list(dict.fromkeys(name for each in samples for name in _named_rewards(each))),
    "graded": any(each.accuracy not in (0, 1, None) for each in samples),
    "right_from": report_changes.RIGHT_FROM,
  }


def _card(
  workdir: Path,
  replies: list[tuple[report_data.Evaluation, report_data.Sample]],
  frames: Mapping[int, str],
  *,
  has_steps: bool,
) -> dict[str, Any]:
  """A question with all replies to it. has_steps: whether the run knows reference steps."""
  _, sample = replies[-1]
  marks = [_mark(evaluation, reply) for evaluation, reply in replies]
  return {
    "sample": sample,
    "marks": [mark for mark in marks if mark],
    "frames": None
    if sample.episode
    else [
      {"jpeg": frames[index], "name": f"{time:g} s"} for index, time in enumerate(sample.times)
    ],
    "misses_steps": has_steps and not sample.reference,
    "options": [{"text": each, "right": _is_right(each, sample)} for each in sample.options],
    "replies": [
      {
        "evaluation": evaluation,
        "sample": reply,
        "right": report_changes.is_right(reply.accuracy),
        "rewards": json.dumps(_named_rewards(reply)),
        "command": ask_command.make(
          workdir,
          evaluation.name,
          video=reply.video,
          question=reply.question,
          options=reply.options,
          problem_type=reply.problem_type,
        ),
        **_reply(reply, frames),
      }
      for evaluation, reply in replies
    ],
  }


def _named_rewards(sample: report_data.Sample) -> dict[str, float]:
  """All rewards of a reply by name, those of segments under `<segment> <name>`."""
  whole = {} if sample.segment_rewards and not sample.episode else sample.rewards
  named = dict(whole) | {
    f"{segment} {name}": value
    for segment, rewards in sample.segment_rewards.items()
    for name, value in rewards.items()
  }
  return {name.replace("_", " "): value for name, value in named.items() if math.isfinite(value)}


def _mark(evaluation: report_data.Evaluation, sample: report_data.Sample) -> dict[str, str] | None:
  """What a reply answered, and whether that is right, in a few words."""
  if sample.accuracy is None:
    return None
  answer = "no answer" if sample.parsed_answer is None else _shorten(sample.parsed_answer, 24)
  graded = "" if sample.accuracy in (0, 1) else f" ({sample.accuracy:.2f})"
  right = report_changes.is_right(sample.accuracy)
  return {
    "text": f"{answer}{graded} {'✓' if right else '✗'}",
    "title": evaluation.title,
    "tone": "good" if right else "bad",
  }


def _is_right(option: str, sample: report_data.Sample) -> bool:
  """Whether an option is the answer, by its text or its letter."""
  answer = sample.answer.strip()
  return option.strip() == answer or re.match(rf"{re.escape(answer)}\b", option) is not None


def _reply(sample: report_data.Sample, frames: Mapping[int, str]) -> dict[str, Any]:
  """A reply and its scores, or an episode turn by turn."""
  whole = {} if sample.segment_rewards and not sample.episode else dict(sample.rewards)
  if "trace_consistency" in sample.metrics:
    whole["trace consistency"] = sample.metrics["trace_consistency"]
  found, picture = sample.grounding, None
  if found is not None:
    picture = report_grounding.picture(found, frames, sample.times)
  if sample.episode:
    return {
      "chips": _chips(whole),
      "picture": picture,
      "timeline": report_timeline.timeline(sample.episode, COLOURS),
      "turns": [
        _turn(number, turn, sample.episode.times, frames)
        for number, turn in enumerate(sample.episode.turns)
      ],
    }
  matrix = _matrix(sample)
  return {
    "chips": _chips(whole),
    "picture": picture,
    "timeline": None,
    "segments": _segments(sample),
    "spans": None if sample.segments else _spans(sample.reply),
    "matrix": matrix,
    "unaligned": matrix is None and sample.alignment is not None,
  }


def _turn(
  number: int,
  turn: report_data.ReportTurn,
  times: Sequence[float],
  frames: Mapping[int, str],
) -> dict[str, Any]:
  """A turn: its frames, the reply and its rewards."""
  return {
    "colour": number % COLOURS,
    "name": f"turn {number + 1}",
    "action": report_timeline.action(turn, times),
    "chips": _chips(turn.rewards),
    "frames": [
      {"jpeg": frames[index], "name": f"{index} · {report_timeline.seconds(times[index])}"}
      for index in turn.shown
    ],
    "spans": _spans(turn.reply),
  }


def _segments(sample: report_data.Sample) -> list[dict[str, Any]]:
  """Segments of a reply in order. The first part of each has its name, rewards and advantage."""
  spoken = [segment.name for segment in sample.segments]
  names = list(dict.fromkeys([*sample.segment_rewards, *sample.segment_advantages, *spoken]))
  parts = [(segment.name, _spans(segment.text)) for segment in sample.segments if segment.text]
  heard = {name for name, _ in parts}
  parts += [(name, None) for name in names if name not in heard]
  segments, headed = [], set()
  for name, spans in parts:
    segments.append(
      {
        "colour": names.index(name) % COLOURS,
        "name": name,
        "head": None if name in headed else _segment_chips(sample, name),
        "spans": spans,
        "absent": bool(sample.segments),
      }
    )
    headed.add(name)
  return segments


def _segment_chips(sample: report_data.Sample, name: str) -> list[dict[str, str | None]]:
  """A segment's rewards and its advantage."""
  rewards = sample.segment_rewards.get(name)
  chips = _chips(rewards or {})
  if rewards == {}:
    chips = [{"label": "no verdict", "number": None, "tone": None}]
  if name in sample.segment_advantages:
    advantage = sample.segment_advantages[name]
    tone = "good" if advantage > 0 else "bad" if advantage < 0 else None
    chips.append({"label": "advantage", "number": _number(advantage, "+.2f"), "tone": tone})
  return chips


def _chips(numbers: dict[str, float]) -> list[dict[str, str | None]]:
  """Makes a labelled chip for each number."""
  return [
    {"label": name.replace("_", " "), "number": _number(number, ".2f"), "tone": None}
    for name, number in numbers.items()
  ]


def _number(number: float, form: str) -> str:
  return "–" if math.isnan(number) else f"{number:{form}}"


def _spans(text: str) -> list[dict[str, str]]:
  """Splits a text at its tags, without loss; each span knows the tag that it is inside of."""
  spans, inside = [], "outside"
  for piece in TAG.split(text):
    if TAG.fullmatch(piece):
      spans.append({"kind": "tag", "text": piece})
      inside = "outside" if piece.startswith("</") else piece.strip("<>")
    elif piece:
      spans.append({"kind": inside, "text": piece})
  return spans


def _matrix(sample: report_data.Sample) -> dict[str, Any] | None:
  """The matrix of alignment costs: rows are reference steps, columns the reply's; and the path.

  None if there is no alignment. Positions are in pixels.
  """
  alignment = sample.alignment
  if alignment is None or not sample.reference or not sample.steps:
    return None
  row_labels = [f"{row + 1}  {_shorten(step.text)}" for row, step in enumerate(sample.reference)]
  column_labels = [f"{column + 1}  {_shorten(step)}" for column, step in enumerate(sample.steps)]
  slant = math.radians(SLANT)
  reach = LETTER * max(map(len, column_labels))  # of the longest column label, along its slant
  left, top = 12 + round(LETTER * max(map(len, row_labels))), 16 + round(reach * math.sin(slant))
  width = left + len(column_labels) * CELL + round(reach * math.cos(slant))
  middle = (CELL - GAP) / 2
  return {
    "outcome": f"none exists with {len(sample.steps)} steps for {len(sample.reference)}; reward 0"
    if alignment.distance is None
    else f"mean cost {alignment.distance:.3f}",
    "width": width,
    "height": top + len(row_labels) * CELL,
    "narrowest": f"{SMALLEST * width:.0f}",
    "slant": SLANT,
    "square": CELL - GAP,
    "rows": [
      {"x": left - 8, "y": top + row * CELL + middle, "label": label}
      for row, label in enumerate(row_labels)
    ],
    "columns": [
      {"x": f"{left + (column + 0.5) * CELL:g}", "y": top - 8, "label": label}
      for column, label in enumerate(column_labels)
    ],
    "cells": _cells(alignment, sample, left, top),
    "points": [
      (f"{left + column * CELL + middle:g}", f"{top + row * CELL + middle:g}")
      for row, column in alignment.path
    ],
  }


def _cells(
  alignment: report_data.ReportAlignment, sample: report_data.Sample, left: int, top: int
) -> list[dict[str, Any]]:
  """A square for each pair of steps; the cheaper, the more opaque."""
  return [
    {
      "x": left + column * CELL,
      "y": top + row * CELL,
      "opacity": f"{1 - 0.94 * min(max(cost, 0.0), 1.0):.3f}",
      "tip": f"cost {cost:.2f}\n{sample.reference[row].text}\n"
      f"{_shorten(sample.steps[column], 200)}",
    }
    for row, costs in enumerate(alignment.cost)
    for column, cost in enumerate(costs)
  ]


def _shorten(text: str, letters: int = LETTERS) -> str:
  return text if len(text) <= letters else text[: letters - 1].rstrip() + "…"
