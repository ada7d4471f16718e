"""The report's results: a few large numbers, then every metric of every evaluation side by side."""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

from vr_jax.eval import report_data


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
  """How a metric is shown. better: +1 higher is better, -1 lower is, 0 neither."""

  title: str
  note: str = ""
  percent: bool = True
  digits: int = 1
  better: int = 1


METRICS = {
  "accuracy": Metric(title="Accuracy"),
  "process_reward": Metric(
    title="Process reward",
    note="PRR: reasoning steps aligned with the reference, 0 to 1",
    percent=False,
    digits=3,
  ),
  "trace_consistency": Metric(
    title="Trace consistency", note="claims of the trace that the true states confirm"
  ),
  "think_answer_mismatch": Metric(
    title="Think-answer mismatch", note="answers that their own trace contradicts", better=-1
  ),
  "frame_recall": Metric(
    title="Frame recall", note="frames with the evidence that were shown, of all"
  ),
  "turns": Metric(title="Turns", note="of an episode", percent=False, digits=2, better=0),
  "retrievals": Metric(title="Retrievals", note="of an episode", percent=False, digits=2, better=0),
  "format": Metric(title="Right format"),
  "blind_accuracy": Metric(title="Blind accuracy", note="no frames shown", better=0),
  "shuffled_accuracy": Metric(
    title="Shuffled-frame accuracy", note="frames out of order", better=0
  ),
  "reply_tokens": Metric(title="Reply tokens", percent=False, better=0),
}
HEADLINES = ("accuracy", "process_reward", "frame_recall", "trace_consistency")
ABSENT = "–"


def results(evaluations: Sequence[report_data.Evaluation]) -> dict[str, Any]:
  """What results.html shows: headlines, a column an evaluation, and a row a metric."""
  return {
    "headlines": _headlines(evaluations),
    "columns": evaluations,
    "rows": [_row(name, evaluations) for name in _row_names(evaluations)],
  }


def _headlines(evaluations: Sequence[report_data.Evaluation]) -> list[dict[str, Any]]:
  if not evaluations:
    return []
  first, last = evaluations[0], evaluations[-1]
  return [
    {
      "title": METRICS[name].title,
      "before": _format(METRICS[name], first.metrics[name])
      if first is not last and _known(first, name)
      else None,
      "now": _format(METRICS[name], last.metrics[name]),
    }
    for name in HEADLINES
    if _known(last, name)
  ]


def _row_names(evaluations: Sequence[report_data.Evaluation]) -> list[str]:
  """Metrics in the order of METRICS, each before its parts (`accuracy/OCR`); then others."""
  present = {name for each in evaluations for name in each.metrics if not _is_interval(name)}
  ranks = {name: rank for rank, name in enumerate(METRICS)}
  return sorted(present, key=lambda name: (ranks.get(name.split("/")[0], len(ranks)), name))


def _row(name: str, evaluations: Sequence[report_data.Evaluation]) -> dict[str, Any]:
  head, _, part = name.partition("/")
  metric = METRICS.get(head, _unknown(head, part))
  cells = [
    {
      "number": _format(metric, each.metrics.get(name, math.nan)),
      "interval": _spread(metric, each, name),
    }
    for each in evaluations
  ]
  return {
    "name": name,
    "title": metric.title,
    "part": part,
    "note": metric.note,
    "cells": cells,
    "change": _change(metric, name, evaluations) if len(evaluations) > 1 else None,
  }


def _unknown(head: str, part: str) -> Metric:
  title = " · ".join(filter(None, (head, part))).replace("_", " ")
  return Metric(title=title.capitalize(), percent=False, digits=3, better=0)


def _change(
  metric: Metric, name: str, evaluations: Sequence[report_data.Evaluation]
) -> dict[str, Any]:
  """From the first evaluation to the last, with a tone where it is larger than both intervals."""
  first, last = evaluations[0], evaluations[-1]
  if not (_known(first, name) and _known(last, name)):
    return {"text": ABSENT, "tone": None}
  difference = last.metrics[name] - first.metrics[name]
  spread = math.hypot(_interval(first, name), _interval(last, name))  # nan where a side has none
  tone = None
  if metric.better and abs(difference) > spread:
    tone = "good" if difference * metric.better > 0 else "bad"
  sign = "+" if difference > 0 else "−" if difference < 0 else "±"
  return {"text": sign + _format(metric, abs(difference)).replace("%", "points"), "tone": tone}


def _spread(metric: Metric, evaluation: report_data.Evaluation, name: str) -> str | None:
  interval = _interval(evaluation, name)
  if math.isnan(interval) or not _known(evaluation, name):
    return None
  return _format(metric, interval).removesuffix(" %")


def _interval(evaluation: report_data.Evaluation, name: str) -> float:
  """That of `accuracy` is `accuracy_interval`, that of `accuracy/OCR` `accuracy_interval/OCR`."""
  head, slash, part = name.partition("/")
  return evaluation.metrics.get(f"{head}_interval{slash}{part}", math.nan)


def _is_interval(name: str) -> bool:
  return name.split("/")[0].endswith("_interval")


def _known(evaluation: report_data.Evaluation, name: str) -> bool:
  return math.isfinite(evaluation.metrics.get(name, math.nan))


def _format(metric: Metric, value: float) -> str:
  if not math.isfinite(value):
    return ABSENT
  return f"{100 * value:.{metric.digits}f} %" if metric.percent else f"{value:.{metric.digits}f}"
