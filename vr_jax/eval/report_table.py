"""The report's results: a few headline numbers, then a table of all metrics and evaluations."""

from collections.abc import Sequence
import math
from typing import Any

from vr_jax.envs import metric as metric_lib
from vr_jax.envs.metric import Metric
from vr_jax.eval import report_data

ABSENT = "–"


def results(evaluations: Sequence[report_data.Evaluation]) -> dict[str, Any]:
  """Computes what results.html shows: headlines, a column per evaluation and a row per metric."""
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
      "title": metric.title,
      "before": _format(metric, first.metrics[name])
      if first is not last and _known(first, name)
      else None,
      "now": _format(metric, last.metrics[name]),
    }
    for name, metric in last.shown_as.items()
    if metric.headline and _known(last, name)
  ]


def _row_names(evaluations: Sequence[report_data.Evaluation]) -> list[str]:
  """Sorts metrics: declared ones first, in order, each before its parts (`accuracy/OCR`)."""
  present = {name for each in evaluations for name in each.metrics}
  present = {name for name in present if not metric_lib.is_about_another(name)}
  ranks = {name: rank for rank, name in enumerate(_shown_as(evaluations))}

  def rank(name: str) -> int:
    return ranks.get(name, ranks.get(name.split("/")[0], len(ranks)))

  return sorted(present, key=lambda name: (rank(name), name))


def _shown_as(evaluations: Sequence[report_data.Evaluation]) -> metric_lib.Metrics:
  return {name: metric for each in evaluations for name, metric in each.shown_as.items()}


def _row(name: str, evaluations: Sequence[report_data.Evaluation]) -> dict[str, Any]:
  metric, part = metric_lib.by_name(name, _shown_as(evaluations))
  cells = [
    {
      "number": _format(metric, each.metrics.get(name, math.nan)),
      "interval": _format_interval(metric, each, name),
    }
    for each in evaluations
  ]
  chance = evaluations[-1].metrics.get(f"{name}_chance", 0.0)
  by_chance = f"chance {_format(metric, chance)}" if chance else ""
  return {
    "name": name,
    "title": metric.title,
    "part": part,
    "note": " · ".join(filter(None, (metric.note, by_chance))),
    "cells": cells,
    "change": _change(metric, name, evaluations) if len(evaluations) > 1 else None,
  }


def _change(
  metric: Metric, name: str, evaluations: Sequence[report_data.Evaluation]
) -> dict[str, Any]:
  """The change from the first to the last evaluation; coloured if it exceeds both intervals."""
  first, last = evaluations[0], evaluations[-1]
  if not (_known(first, name) and _known(last, name)):
    return {"text": ABSENT, "tone": None}
  difference = last.metrics[name] - first.metrics[name]
  spread = math.hypot(_interval(first, name), _interval(last, name))  # NaN if one has none
  tone = None
  if metric.better and abs(difference) > spread:
    tone = "good" if difference * metric.better > 0 else "bad"
  sign = "+" if difference > 0 else "−" if difference < 0 else "±"
  return {"text": sign + _format(metric, abs(difference)).replace("%", "points"), "tone": tone}


def _format_interval(metric: Metric, evaluation: report_data.Evaluation, name: str) -> str | None:
  interval = _interval(evaluation, name)
  if math.isnan(interval) or not _known(evaluation, name):
    return None
  return _format(metric, interval).removesuffix(" %")


def _interval(evaluation: report_data.Evaluation, name: str) -> float:
  """Looks up the interval of a metric; for `accuracy/OCR` it is `accuracy_interval/OCR`."""
  head, slash, part = name.partition("/")
  return evaluation.metrics.get(f"{head}_interval{slash}{part}", math.nan)


def _known(evaluation: report_data.Evaluation, name: str) -> bool:
  return math.isfinite(evaluation.metrics.get(name, math.nan))


def _format(metric: Metric, value: float) -> str:
  return metric_lib.formatted(metric, value) if math.isfinite(value) else ABSENT
