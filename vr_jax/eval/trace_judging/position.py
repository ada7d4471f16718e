"""Position bias: how often the order in which two traces are shown decides which one is better."""

from collections.abc import Sequence
import dataclasses
import itertools
from typing import Any

import numpy as np

from vr_jax.eval import intervals
from vr_jax.eval.trace_judging import grade, video_bootstrap


def bias(verdicts: Sequence[grade.TraceVerdict], scale: str) -> dict[str, Any] | None:
  """Compares verdicts on the same two traces in both orders; None if no prompt showed two.

  A verdict prefers the trace with the higher grade, or neither. Returns values with intervals:

  order_decides: fraction of questions and runs whose two orders don't prefer the same trace.
  runs_decide: the same of two runs with the same order: what chance alone does; None for one run.
  first_favoured, second_favoured: fraction where both orders together lean to the trace shown first
    (second): such as first, then neither.
  first_gains: mean grade of a trace shown first minus that of the same trace shown second.
  """
  signs: dict[tuple[str, int, tuple[str, ...]], int] = {}
  grades: dict[tuple[str, int, tuple[str, ...]], tuple[int, int]] = {}
  videos = {}
  for each in verdicts:
    if each.grades is None or len(each.order) != 2:
      continue
    first, second = (getattr(each.grades[name], scale) for name in each.order)
    key = (each.id, each.run, each.order)
    signs[key], grades[key] = (first > second) - (first < second), (first, second)
    videos[each.id] = each.video
  if not any(len(each.order) == 2 for each in verdicts):
    return None
  rows = []  # (video, order decides, for the first, for the second, gain)
  for (identity, run, order), sign in signs.items():
    swapped = (identity, run, order[::-1])
    if order != tuple(sorted(order)) or swapped not in signs:
      continue
    # Both signs are of the trace shown first: they cancel if the same trace is preferred.
    lean = sign + signs[swapped]
    ahead, behind = grades[identity, run, order], grades[swapped]
    gain = (ahead[0] - behind[1] + behind[0] - ahead[1]) / 2
    rows.append((videos[identity], lean != 0, lean > 0, lean < 0, gain))
  again = [
    (videos[identity], signs[identity, one, order] != signs[identity, other, order])
    for identity, order in {(identity, order) for identity, _, order in signs}
    for one, other in itertools.combinations(sorted({run for _, run, _ in signs}), 2)
    if (identity, one, order) in signs and (identity, other, order) in signs
  ]
  again.sort()
  names = ("order_decides", "first_favoured", "second_favoured")
  return {
    "compared": len(rows),
    **{
      name: _fraction([(row[0], float(row[place])) for row in rows])
      for place, name in enumerate(names, start=1)
    },
    "runs_decide": _fraction([(video, float(differs)) for video, differs in again]),
    "first_gains": _mean([(row[0], row[-1]) for row in rows]),
  }


def _fraction(rows: Sequence[tuple[str, float]]) -> dict[str, Any] | None:
  """A fraction with Wilson's interval, by videos; None without a row."""
  if not rows:
    return None
  videos, values = zip(*rows, strict=True)
  found = intervals.mean_interval(values, videos)
  return {"value": found.mean, "low": found.low, "high": found.high, "videos": found.videos}


def _mean(rows: Sequence[tuple[str, float]]) -> dict[str, Any] | None:
  """A mean with its bootstrapped interval; None without a row."""
  if not rows:
    return None
  videos, values = zip(*rows, strict=True)
  return dataclasses.asdict(
    video_bootstrap.of_items(lambda weights: weights @ np.array(values) / weights.sum(-1), videos)
  )
