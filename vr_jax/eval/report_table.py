"""The report's results: a few headline numbers, then a table of all metrics and evaluations."""

from collections.abc import Mapping, Sequence
import math
from typing import Any

from vr_jax.envs import metric as metric_lib
from vr_jax.envs.metric import Metric
from vr_jax.eval import intervals, report_changes, report_data
from vr_jax.train import metric_meanings

ABSENT = "–"


def results(evaluations: Sequence[report_data.Evaluation]) -> dict[str, Any]:
  """Computes what results.html shows: headlines, a column per evaluation and a row per metric."""
  changes = report_changes.changes(evaluations, _shown_as(evaluations))
  return {
    "headlines": _headlines(evaluations),
    "columns": evaluations,
    "rows": [_row(name, evaluations, changes) for name in _row_names(evaluations)],
  }


def _headlines(evaluations: Sequence[report_data.Evaluation]) -> list[dict[str, Any]]:
  if not evaluations:
    return []
  first, last = evaluations[0], evaluations[-1]
  return [
    {
      "name": name,
      "title": metric.title,
      "about": _about(metric, name),
      "before": _format(metric, first.metrics[name])
      if first is not last and _known(first, name)
      else None,
      "now": _format(metric, last.metrics[name]),
      "most": _format(metric, 1.0),
      "chance": _percent(last.metrics[f"{name}_chance"])
      if last.metrics.get(f"{name}_chance")
      else None,
      "whiskers": [_whisker(metric, name, each) for each in evaluations if name in each.intervals],
    }
    for name, metric in last.shown_as.items()
    if metric.headline and _known(last, name)
  ]


def _whisker(metric: Metric, name: str, evaluation: report_data.Evaluation) -> dict[str, Any]:
  """A mean and its interval as places on a line from 0 to 1, in percent of its length."""
  low, high = evaluation.intervals[name]
  mean = evaluation.metrics[name]
  label = f"{evaluation.title}: {_format(metric, mean)} {_format_interval(metric, low, high)}"
  return {"low": _percent(low), "high": _percent(high), "mean": _percent(mean), "label": label}


def _percent(place: float) -> str:
  return f"{100 * place:.2f}"


def _about(metric: Metric, name: str) -> str:
  """What a metric means, shown when the reader points at it."""
  note = metric.note or metric_meanings.meaning(name)
  better = {1: "Higher is better.", -1: "Lower is better.", 0: ""}[metric.better]
  sentence = f"{note[:1].upper()}{note[1:]}".rstrip(".") + "." if note else ""
  return " ".join(filter(None, (sentence, better))) or name


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


def _row(
  name: str,
  evaluations: Sequence[report_data.Evaluation],
  changes: Mapping[str, intervals.Interval],
) -> dict[str, Any]:
  metric, part = metric_lib.by_name(name, _shown_as(evaluations))
  return {
    "name": name,
    "title": metric.title,
    "part": part,
    "note": metric.note,
    "about": _about(metric, name),
    "chance": _format_chance(metric, evaluations, name),
    "cells": [
      {
        "number": _format(metric, each.metrics.get(name, math.nan)),
        "interval": _format_interval(metric, *each.intervals[name])
        if name in each.intervals
        else None,
      }
      for each in evaluations
    ],
    "change": _change(metric, name, evaluations, changes.get(name))
    if len(evaluations) > 1
    else None,
  }


def _format_chance(metric: Metric, evaluations: Sequence[report_data.Evaluation], name: str) -> str:
  """What guessing scores, or "" if that is not known or nothing."""
  head, slash, part = name.partition("/")
  chance = evaluations[-1].metrics.get(f"{head}_chance{slash}{part}", 0.0)
  return f"chance {_format(metric, chance)}" if chance else ""


def _change(
  metric: Metric,
  name: str,
  evaluations: Sequence[report_data.Evaluation],
  change: intervals.Interval | None,
) -> dict[str, Any]:
  """The change from the first to the last evaluation; coloured if its interval leaves out 0.

  change: over the questions that both evaluations asked; None if it has no interval.
  """
  first, last = evaluations[0], evaluations[-1]
  if not (_known(first, name) and _known(last, name)):
    return {"number": ABSENT, "interval": None, "tone": None}
  difference = change.mean if change else last.metrics[name] - first.metrics[name]
  tone = None
  if metric.better and change and not change.low <= 0 <= change.high:
    tone = "good" if difference * metric.better > 0 else "bad"
  return {
    "number": _signed(metric, difference).replace("%", "points"),
    "interval": _format_interval(metric, change.low, change.high, signed=True) if change else None,
    "tone": tone,
  }


def _signed(metric: Metric, value: float) -> str:
  sign = "+" if value > 0 else "−" if value < 0 else "±"
  return sign + _format(metric, abs(value))


def _format_interval(metric: Metric, low: float, high: float, *, signed: bool = False) -> str:
  ends = (_signed(metric, each) if signed else _format(metric, each) for each in (low, high))
  return "({} to {})".format(*(end.removesuffix(metric.unit).strip() for end in ends))


def _known(evaluation: report_data.Evaluation, name: str) -> bool:
  return math.isfinite(evaluation.metrics.get(name, math.nan))


def _format(metric: Metric, value: float) -> str:
  return metric_lib.formatted(metric, value) if math.isfinite(value) else ABSENT
