"""From verdicts to numbers: mean grades, agreement of runs and judges, position bias, truth.

A trace's score on a scale is the mean of its grades: first over the verdicts that show it at one
place of the prompt, then over the places, so that a missing verdict does not favour a place. A
trace without any verdict has no score and takes part in nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import itertools
import statistics
from typing import Any

import numpy as np

from vr_jax.eval import intervals
from vr_jax.eval.trace_judging import (
  agreement,
  grade,
  judged_questions,
  position,
  rubric,
  video_bootstrap,
)

_LEVELS = grade.HIGHEST
_SPAN = grade.HIGHEST - grade.LOWEST


def summarize(
  judged: judged_questions.JudgedSet, verdicts: Mapping[str, Sequence[grade.TraceVerdict]]
) -> dict[str, Any]:
  """Computes what judged.json holds, apart from the judges' settings.

  verdicts: those of each judge, by its name.

  Returns {"made_of", "evaluations", "questions", "videos", "left_out", "addressing", "judges",
  "agreement"}; see docs/judges.md.
  """
  names = list(judged.evaluations)
  return {
    "made_of": judged.fingerprint,
    "evaluations": dict(judged.evaluations),
    "questions": len(judged.questions),
    "videos": len({each.video for each in judged.questions}),
    "left_out": {
      "without_reference": judged.without_reference,
      "not_in_all_evaluations": judged.asked_once,
    },
    "addressing": {
      name: sum(rubric.addresses_judge(each.traces[name]) for each in judged.questions)
      for name in names
    },
    "judges": [_of_judge(judged, judge, each) for judge, each in verdicts.items()],
    "agreement": [
      {
        "judges": [one, other],
        "scales": {
          scale: _between(judged, verdicts[one], verdicts[other], scale) for scale in grade.SCALES
        },
      }
      for one, other in itertools.combinations(verdicts, 2)
    ],
  }


def scores(verdicts: Sequence[grade.TraceVerdict], scale: str) -> dict[tuple[str, str], float]:
  """The score of each trace that has a verdict, by question and evaluation: from 1 to 5."""
  grades: dict[tuple[str, str], dict[int, list[int]]] = {}
  for verdict, name, value in _grades(verdicts, scale):
    places = grades.setdefault((verdict.id, name), {})
    places.setdefault(verdict.order.index(name), []).append(value)
  return {
    trace: statistics.fmean(map(statistics.fmean, places.values()))
    for trace, places in grades.items()
  }


def _of_judge(
  judged: judged_questions.JudgedSet, judge: str, verdicts: Sequence[grade.TraceVerdict]
) -> dict[str, Any]:
  problems: dict[str, int] = {}
  for each in verdicts:
    if each.grades is None:
      problems[each.problem] = problems.get(each.problem, 0) + 1
  return {
    "judge": judge,
    "verdicts": len(verdicts),
    "missing": sum(problems.values()),
    "problems": problems,
    "scales": {scale: _of_scale(judged, verdicts, scale) for scale in grade.SCALES},
  }


def _of_scale(
  judged: judged_questions.JudgedSet, verdicts: Sequence[grade.TraceVerdict], scale: str
) -> dict[str, Any]:
  found, names = scores(verdicts, scale), list(judged.evaluations)
  pairs = [
    (found[each.id, names[0]], found[each.id, names[-1]], each.video)
    for each in judged.questions
    if len(names) > 1 and (each.id, names[0]) in found and (each.id, names[-1]) in found
  ]
  return {
    "scores": {
      name: _mean(
        [
          (found[each.id, name], each.video)
          for each in judged.questions
          if (each.id, name) in found
        ]
      )
      for name in names
    },
    "change": _change(pairs),
    "better": sum(after > before for before, after, _ in pairs),
    "equal": sum(after == before for before, after, _ in pairs),
    "worse": sum(after < before for before, after, _ in pairs),
    "runs": _among_runs(verdicts, scale),
    "position": position.bias(verdicts, scale),
    "truth": _truth(judged, found) if scale == "consistency" else None,
  }


def _mean(rows: Sequence[tuple[float, str]]) -> dict[str, Any] | None:
  """Mean score with its interval; None without a score."""
  if not rows:
    return None
  values, videos = zip(*rows, strict=True)
  interval = intervals.mean_interval([(each - grade.LOWEST) / _SPAN for each in values], videos)
  ends = {name: grade.LOWEST + _SPAN * getattr(interval, name) for name in ("mean", "low", "high")}
  return {**dataclasses.asdict(interval), **ends}


def _change(pairs: Sequence[tuple[float, float, str]]) -> dict[str, Any] | None:
  """Mean change of the score with its interval; None without a question that has both scores."""
  if not pairs:
    return None
  before, after, videos = zip(*pairs, strict=True)
  old, new = ([(each - grade.LOWEST) / _SPAN for each in side] for side in (before, after))
  interval = intervals.change_interval(old, new, videos)
  ends = {name: _SPAN * getattr(interval, name) for name in ("mean", "low", "high")}
  return {**dataclasses.asdict(interval), **ends}


def _among_runs(verdicts: Sequence[grade.TraceVerdict], scale: str) -> dict[str, Any] | None:
  """Agreement of the runs about a trace at the same place of the same prompt; None for one run.

  kappa is the mean over pairs of runs.
  """
  units: dict[tuple[str, str, tuple[str, ...]], dict[int, int]] = {}
  videos = {}
  for verdict, name, value in _grades(verdicts, scale):
    unit = (verdict.id, name, verdict.order)
    units.setdefault(unit, {})[verdict.run] = value
    videos[unit] = verdict.video
  runs = sorted({verdict.run for verdict in verdicts})
  if len(runs) < 2 or not units:
    return None
  pairs = [*itertools.combinations(runs, 2)]
  tables = np.array(
    [
      [
        agreement.confusion(_of_run(each, one), _of_run(each, other), _LEVELS)
        for one, other in pairs
      ]
      for each in units.values()
    ]
  )
  together = np.array([agreement.coincidences([*e.values()], _LEVELS) for e in units.values()])
  of = [videos[unit] for unit in units]
  kappa = video_bootstrap.of_tables(
    lambda drawn: agreement.weighted_kappa(drawn).mean(-1), tables, of
  )
  alpha = video_bootstrap.of_tables(agreement.ordinal_alpha, together, of)
  return {"kappa": dataclasses.asdict(kappa), "alpha": dataclasses.asdict(alpha)}


def _of_run(grades: Mapping[int, int], run: int) -> list[int]:
  """The grade of a run; none if it is missing."""
  return [grades[run]] if run in grades else []


def _between(
  judged: judged_questions.JudgedSet,
  one: Sequence[grade.TraceVerdict],
  other: Sequence[grade.TraceVerdict],
  scale: str,
) -> dict[str, Any]:
  """Agreement of two judges about a trace, of a grade of each drawn at random."""
  sides: list[dict[tuple[str, str], list[int]]] = [{}, {}]
  for side, verdicts in zip(sides, (one, other), strict=True):
    for verdict, name, value in _grades(verdicts, scale):
      side.setdefault((verdict.id, name), []).append(value)
  video = {each.id: each.video for each in judged.questions}
  both = [trace for trace in sides[0] if trace in sides[1]]
  of = [video[identity] for identity, _ in both]
  tables = np.array(
    [agreement.confusion(sides[0][trace], sides[1][trace], _LEVELS) for trace in both]
  ).reshape(-1, _LEVELS, _LEVELS)
  kappa = video_bootstrap.of_tables(agreement.weighted_kappa, tables, of)
  alpha = video_bootstrap.of_tables(agreement.ordinal_alpha, tables + np.swapaxes(tables, 1, 2), of)
  return {
    "traces": len(both),
    "kappa": dataclasses.asdict(kappa),
    "alpha": dataclasses.asdict(alpha),
  }


def _truth(
  judged: judged_questions.JudgedSet, found: Mapping[tuple[str, str], float]
) -> dict[str, Any] | None:
  """Spearman's correlation of scores with the traces' true consistency; None where none is known.

  All evaluations together.
  """
  rows = [
    (found[each.id, name], true, each.video)
    for each in judged.questions
    for name, true in each.truth.items()
    if (each.id, name) in found
  ]
  if not rows:
    return None
  given, true, videos = zip(*rows, strict=True)
  value = video_bootstrap.of_items(
    lambda weights: agreement.spearman(np.array(given, float), np.array(true, float), weights),
    videos,
  )
  return {"traces": len(rows), **dataclasses.asdict(value)}


def _grades(
  verdicts: Sequence[grade.TraceVerdict], scale: str
) -> Iterator[tuple[grade.TraceVerdict, str, int]]:
  """(verdict, evaluation, grade) of each grade that was given."""
  for verdict in verdicts:
    for name, each in (verdict.grades or {}).items():
      yield verdict, name, getattr(each, scale)
