"""The report's curves: one small chart a metric, grouped by stage and subject."""

from collections.abc import Callable, Sequence
import math
import re
from typing import Any

from vr_jax.eval import report_data

Scale = Callable[[float], float]  # from a step or a value to a place on the chart

WIDTH, HEIGHT = 320, 170  # of a chart, in its own units
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 10, 22  # margins
LARGEST = 1e100  # beyond it a value is no measurement, and its differences overflow
MOST_POINTS = 2000  # of a curve; a longer one keeps the extremes of each stretch
SMOOTH_FROM = 24  # points; a shorter curve is easier to read as it is

# Subjects in reading order; the first whose pattern occurs in a metric's name takes it.
SUBJECTS = (
  ("Reward", r"^rewards?[/_]"),  # whatever the name of a reward says
  ("Speed and memory", r"^perf/|time|second|per_s|tokens/s|memory|byte|throughput"),
  ("Reward", r"reward|advantage|signal"),
  ("Quality of replies", r"accuracy|consistency|mismatch|reply|length|entropy"),
  ("Optimisation", r""),
)
ORDER = ("Reward", "Quality of replies", "Optimisation", "Speed and memory")
FOLDED = frozenset({"Speed and memory"})
STAGE_TITLES = {"sft": "Supervised warm start", "rl": "Reinforcement learning"}


def stages(curves: report_data.Curves) -> list[dict[str, Any]]:
  """What curves.html shows: for each stage that has logged, its charts by subject."""
  return [_stage(stage, metrics) for stage, metrics in curves.items() if metrics]


def chart(name: str, steps: Sequence[int], values: Sequence[float]) -> dict[str, Any]:
  """One metric over the steps of its stage. Values that are not finite leave gaps, and are counted.

  `curve` is None where no value is finite. Its paths are SVG's: `raw` joins all values, `mean`
  (long curves alone) a moving average over a tenth of the curve.
  """
  lost = sum(not _drawable(value) for value in values)
  steps, values = _thinned(steps, values)
  finite = [_drawable(value) for value in values]
  curve = _curve(steps, values, finite) if any(finite) else None
  return {"name": name, "title": _title(name), "lost": lost, "curve": curve}


def _curve(steps: Sequence[int], values: Sequence[float], finite: Sequence[bool]) -> dict[str, Any]:
  shown = [value for value, good in zip(values, finite, strict=True) if good]
  low, high = _range(shown)
  across = _scale(steps[0], steps[-1], LEFT, WIDTH - RIGHT)
  upward = _scale(low, high, HEIGHT - BOTTOM, TOP)
  smooth = _moving_average(values, finite) if len(shown) >= SMOOTH_FROM else None
  final = (smooth or values)[max(index for index, good in enumerate(finite) if good)]
  return {
    "width": WIDTH,
    "height": HEIGHT,
    "left": LEFT,
    "right": WIDTH - RIGHT,
    "top": TOP,
    "bottom": HEIGHT - BOTTOM,
    "first_step": f"{steps[0]:,}",
    "last_step": f"{steps[-1]:,}",
    "first": f"{shown[0]:.4g}",
    "last": f"{shown[-1]:.4g}",
    "final": f"{final:.3g}",
    "ticks": [{"y": f"{upward(at):.1f}", "label": f"{at:.4g}"} for at in _ticks(low, high)],
    "raw": _path(steps, values, finite, across, upward),
    "mean": _path(steps, smooth, finite, across, upward) if smooth else None,
    "steps": " ".join(str(step) for step, good in zip(steps, finite, strict=True) if good),
    "numbers": " ".join(f"{value:.6g}" for value in shown),
  }


def _stage(stage: str, metrics: dict[str, tuple[list[int], list[float]]]) -> dict[str, Any]:
  subjects: dict[str, list[dict[str, Any]]] = {subject: [] for subject in ORDER}
  for name in sorted(metrics, key=_reading_order):
    subjects[_subject(name)].append(chart(name, *metrics[name]))
  return {
    "name": stage,
    "title": STAGE_TITLES.get(stage, stage),
    "last_step": max(steps[-1] for steps, _ in metrics.values()),
    "groups": [
      {"subject": subject, "charts": charts, "unfolded": subject not in FOLDED}
      for subject, charts in subjects.items()
      if charts
    ],
  }


def _subject(name: str) -> str:
  return next(subject for subject, pattern in SUBJECTS if re.search(pattern, name))


def _reading_order(name: str) -> tuple[int, str]:
  """Means before spreads, totals before parts."""
  first = ("total", "accuracy", "loss", "kl", "entropy", "length")
  rank = next((rank for rank, word in enumerate(first) if word in name), len(first))
  return (len(first) + rank if re.search(r"std|zero|share", name) else rank, name)


def _title(name: str) -> str:
  return name.replace("_", " ").replace("/", " · ")


def _ticks(low: float, high: float) -> list[float]:
  """Two to five round numbers between low and high."""
  magnitude = 10.0 ** math.floor(math.log10(high - low))
  step = next(
    magnitude * factor for factor in (0.5, 1, 2, 5) if high - low < 5 * magnitude * factor
  )
  return [index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _range(values: Sequence[float]) -> tuple[float, float]:
  """Smallest and largest value; a constant gets room above and below, to stand in the middle."""
  low, high = min(values), max(values)
  size = max(abs(low), abs(high))
  if high - low > 1e-6 * size:
    return low, high
  room = size / 2 or 1.0
  return low - room, high + room


def _scale(low: float, high: float, start: float, end: float) -> Scale:
  """The linear map from [low, high] to [start, end]; a single value goes to the middle."""
  if high == low:
    return lambda value: (start + end) / 2
  return lambda value: start + (value - low) / (high - low) * (end - start)


def _path(
  steps: Sequence[int],
  values: Sequence[float],
  finite: Sequence[bool],
  across: Scale,
  upward: Scale,
) -> str:
  """Every finite point, joined to the point before it where that one is finite too."""
  parts = []
  for index, good in enumerate(finite):
    if good:
      point = f"{across(steps[index]):.1f} {upward(values[index]):.1f}"
      joins = index > 0 and finite[index - 1]
      parts.append(
        f"L{point}" if joins else f"M{point}h0"
      )  # h0: a dot where no neighbour is finite
  return "".join(parts)


def _thinned(steps: Sequence[int], values: Sequence[float]) -> tuple[list[int], list[float]]:
  """At most MOST_POINTS points: the lowest and the highest of each stretch."""
  if len(values) <= MOST_POINTS:
    return list(steps), list(values)
  stretch = math.ceil(2 * len(values) / MOST_POINTS)
  kept = set()
  for start in range(0, len(values), stretch):
    indices = range(start, min(start + stretch, len(values)))
    finite = [index for index in indices if _drawable(values[index])] or [start]
    kept |= {min(finite, key=values.__getitem__), max(finite, key=values.__getitem__)}
  return [steps[index] for index in sorted(kept)], [values[index] for index in sorted(kept)]


def _moving_average(values: Sequence[float], finite: Sequence[bool]) -> list[float]:
  """Mean of the finite values in a centred window of a tenth of the curve, cut off at both ends."""
  half = max(len(values) // 20, 1)
  sums, counts = [0.0], [0]
  for value, good in zip(values, finite, strict=True):
    sums.append(sums[-1] + (value if good else 0.0))
    counts.append(counts[-1] + good)
  spans = [
    (max(index - half, 0), min(index + half + 1, len(values))) for index in range(len(values))
  ]
  return [(sums[end] - sums[start]) / max(counts[end] - counts[start], 1) for start, end in spans]


def _drawable(value: float) -> bool:
  return abs(value) < LARGEST  # false for NaN
