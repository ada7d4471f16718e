"""What training changed: which questions became right or wrong, and by how much metrics changed.

The first evaluation is compared with the last one, question by question.
"""

import collections
from collections.abc import Iterator, Mapping, Sequence
import itertools
from typing import Any

from vr_jax.envs import metric as metric_lib
from vr_jax.eval import intervals, report_data

RIGHT_FROM = 0.5  # least accuracy of a right reply, where accuracy has values between 0 and 1
# Outcome -> title. The report shows questions in this order.
OUTCOMES: Mapping[str, str] = {
  "wrong-to-right": "wrong → right",
  "right-to-wrong": "right → wrong",
  "wrong": "wrong",
  "right": "right",
}
CHANGED = ("wrong-to-right", "right-to-wrong")
ACCURACY = metric_lib.Metric(title="Accuracy")
# Each round of choosing questions for the report takes so many of each outcome.
ROUND = ("wrong-to-right", "right-to-wrong", "wrong", "wrong-to-right", "right-to-wrong", "right")


def is_right(accuracy: float | None) -> bool:
  """Whether a reply of this accuracy counts as right."""
  return accuracy is not None and accuracy >= RIGHT_FROM


def outcomes(evaluations: Sequence[report_data.Evaluation]) -> dict[str, str]:
  """The outcome of each question, by its id, from its first evaluation to its last.

  A question that was evaluated once is "right" or "wrong".
  """
  replies: dict[str, list[bool]] = {}
  for evaluation in evaluations:
    for reply in evaluation.replies:
      replies.setdefault(reply.id, []).append(is_right(reply.accuracy))
  names = ("wrong", "right")
  return {
    identity: names[each[-1]] if each[0] == each[-1] else f"{names[each[0]]}-to-{names[each[-1]]}"
    for identity, each in replies.items()
  }


def choose_shown(outcome: Mapping[str, str], limit: int) -> list[str]:
  """Chooses the questions that the report shows: some of each outcome, changed ones first.

  outcome: of each question, by id. limit: of questions.
  """
  by_outcome = {name: [i for i, each in outcome.items() if each == name] for name in OUTCOMES}
  chosen = set(itertools.islice(_in_rounds({k: iter(v) for k, v in by_outcome.items()}), limit))
  return [each for name in OUTCOMES for each in by_outcome[name] if each in chosen]


def _in_rounds(left: Mapping[str, Iterator[str]]) -> Iterator[str]:
  """Takes questions of all outcomes in rounds, until none is left."""
  while True:
    taken = [each for name in ROUND if (each := next(left[name], None)) is not None]
    if not taken:
      return
    yield from taken


def changes(
  evaluations: Sequence[report_data.Evaluation], shown_as: metric_lib.Metrics
) -> dict[str, intervals.Interval]:
  """The mean change of each fraction, with its interval, over questions that have it both times."""
  if len(evaluations) < 2:
    return {}
  first = {reply.id: reply.metrics for reply in evaluations[0].replies}
  pairs: dict[str, list[tuple[float, float, str]]] = {}
  for reply in evaluations[-1].replies:
    before = first.get(reply.id, {})
    for name in reply.metrics.keys() & before.keys():
      pairs.setdefault(name, []).append((before[name], reply.metrics[name], reply.video))
  found = {}
  for name, rows in pairs.items():
    before, after, videos = zip(*rows, strict=True)
    within = all(0 <= value <= 1 for value in (*before, *after))
    if within and metric_lib.by_name(name, shown_as)[0].is_fraction:
      found[name] = intervals.change_interval(before, after, videos)
  return found


def summary(evaluations: Sequence[report_data.Evaluation]) -> dict[str, Any] | None:
  """What the report says first: how accuracy changed, and the number of questions by outcome.

  None if there are no two evaluations of the same questions.
  """
  found = changes(evaluations, {"accuracy": ACCURACY}).get("accuracy")
  if found is None:
    return None
  first, last = evaluations[0], evaluations[-1]
  asked = {reply.id for reply in first.replies}
  by_outcome = outcomes(evaluations)
  counts = collections.Counter(each for i, each in by_outcome.items() if i in asked)
  return {
    "questions": found.questions,
    "videos": found.videos,
    "first": first,
    "last": last,
    "before": metric_lib.formatted(ACCURACY, first.metrics["accuracy"]),
    "after": metric_lib.formatted(ACCURACY, last.metrics["accuracy"]),
    "change": _points(found.mean),
    "low": _points(found.low),
    "high": _points(found.high),
    "is_clear": not found.low <= 0 <= found.high,
    "counts": {name: counts[name] for name in OUTCOMES},
  }


def _points(fraction: float) -> str:
  """A change in points, with its sign."""
  return f"{100 * fraction:+.1f}".replace("-", "−")
