"""The report's curves: one small chart per metric, grouped by stage and subject."""

from collections.abc import Callable, Sequence
import math
import re
from typing import Any

from vr_jax.eval import report_data
from vr_jax.train import metric_meanings

Scale = Callable[[float], float]  # maps a step or a value to a position on the chart

WIDTH, HEIGHT = 320, 170  # of a chart, in its own units
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 10, 22  # margins
LARGEST = 1e100  # larger values are not drawn: their differences would overflow
MOST_POINTS = 2000  # of a curve; longer ones keep the extremes of each interval
SMOOTH_FROM = 24  # points; shorter curves get no moving average

# A metric belongs to the first subject whose pattern occurs in its name.
SUBJECTS = (
  ("Reward", r"^rewards?[/_]"),  # whatever the reward's name is
  ("Speed and memory", r"^perf/|time|second|per_s|tokens/s|memory|byte|throughput"),
  ("Optimisation", r"^sampling/"),
  ("Reward", r"reward|advantage|signal"),
  ("Quality of replies", r"accuracy|consistency|mismatch|reply|length|entropy"),
  ("Optimisation", r""),
)
ORDER = ("Reward", "Quality of replies", "Optimisation", "Speed and memory")
FOLDED = frozenset({"Speed and memory"})
STAGE_TITLES = {"sft": "Supervised warm start", "rl": "Reinforcement learning"}


def stages(curves: report_data.Curves) -> list[dict[str, Any]]:
  """Computes what curves.html shows: charts by stage and subject."""
  return [_stage(stage, metrics) for stage, metrics in curves.items() if metrics]


def chart(name: str, steps: Sequence[int], values: Sequence[float]) -> dict[str, Any]:
  """Computes the chart of one metric. Values that are not finite leave gaps, and are counted.

  `curve` is None if no value is finite. Its SVG paths are `raw`, all values, and for long curves
  `mean`, a moving average over a tenth of the curve.
  """
  lost = sum(not _is_drawable(value) for value in values)
  steps, values = _thin(steps, values)
  finite = [_is_drawable(value) for value in values]
  curve = _curve(steps, values, finite) if any(finite) else None
  return {**_naming(name), "lost": lost, "curve": curve}


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
  constants = []
  for name in sorted(metrics, key=_reading_order):
    steps, values = metrics[name]
    if _is_constant(values):
      constants.append({**_naming(name), "value": f"{values[0]:.6g}"})
    else:
      subjects[_subject(name)].append(chart(name, steps, values))
  return {
    "name": stage,
    "title": STAGE_TITLES.get(stage, stage),
    "last_step": max(steps[-1] for steps, _ in metrics.values()),
    "groups": [
      {"subject": subject, "charts": charts, "unfolded": subject not in FOLDED}
      for subject, charts in subjects.items()
      if charts
    ],
    "constants": constants,
  }


def _is_constant(values: Sequence[float]) -> bool:
  """Whether a curve of several points has one value: a number says as much as a chart."""
  return len(values) > 1 and _is_drawable(values[0]) and len(set(values)) == 1


def _subject(name: str) -> str:
  return next(subject for subject, pattern in SUBJECTS if re.search(pattern, name))


def _reading_order(name: str) -> tuple[int, str]:
  """Sort key of metrics: totals before parts, and means before standard deviations."""
  first = ("total", "accuracy", "loss", "kl", "entropy", "length")
  rank = next((rank for rank, word in enumerate(first) if word in name), len(first))
  return (len(first) + rank if re.search(r"std|zero|share", name) else rank, name)


def _naming(name: str) -> dict[str, str]:
  """The name of a metric, as it is logged and as a title, and what it means."""
  meaning = metric_meanings.meaning(name)
  return {
    "name": name,
    "title": name.replace("_", " ").replace("/", " · "),
    "about": f"{name}\n{meaning}".strip(),
  }


def _ticks(low: float, high: float) -> list[float]:
  """Two to five round numbers between low and high."""
  magnitude = 10.0 ** math.floor(math.log10(high - low))
  step = next(
    magnitude * factor for factor in (0.5, 1, 2, 5) if high - low < 5 * magnitude * factor
  )
  return [index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _range(values: Sequence[float]) -> tuple[float, float]:
  """Smallest and largest value. A constant gets a margin, so that it is drawn in the middle."""
  low, high = min(values), max(values)
  size = max(abs(low), abs(high))
  if high - low > 1e-6 * size:
    return low, high
  margin = size / 2 or 1.0
  return low - margin, high + margin


def _scale(low: float, high: float, start: float, end: float) -> Scale:
  """The linear map from [low, high] to [start, end]. If low == high, it maps to the middle."""
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
  """An SVG path of all finite points, with a line between neighbours."""
  parts = []
  for index, good in enumerate(finite):
    if good:
      point = f"{across(steps[index]):.1f} {upward(values[index]):.1f}"
      continues = index > 0 and finite[index - 1]
      # h0 draws a dot if no neighbour is finite.
      parts.append(f"L{point}" if continues else f"M{point}h0")
  return "".join(parts)


def _thin(steps: Sequence[int], values: Sequence[float]) -> tuple[list[int], list[float]]:
  """Reduces a curve to at most MOST_POINTS points: the lowest and highest of each interval."""
  if len(values) <= MOST_POINTS:
    return list(steps), list(values)
  stretch = math.ceil(2 * len(values) / MOST_POINTS)
  kept = set()
  for start in range(0, len(values), stretch):
    indices = range(start, min(start + stretch, len(values)))
    finite = [index for index in indices if _is_drawable(values[index])] or [start]
    kept |= {min(finite, key=values.__getitem__), max(finite, key=values.__getitem__)}
  return [steps[index] for index in sorted(kept)], [values[index] for index in sorted(kept)]


def _moving_average(values: Sequence[float], finite: Sequence[bool]) -> list[float]:
  """Mean of finite values in a centred window, a tenth of the curve long; shorter at the ends."""
  half = max(len(values) // 20, 1)
  sums, counts = [0.0], [0]
  for value, good in zip(values, finite, strict=True):
    sums.append(sums[-1] + (value if good else 0.0))
    counts.append(counts[-1] + good)
  spans = [
    (max(index - half, 0), min(index + half + 1, len(values))) for index in range(len(values))
  ]
  return [(sums[end] - sums[start]) / max(counts[end] - counts[start], 1) for start, end in spans]


def _is_drawable(value: float) -> bool:
  return abs(value) < LARGEST  # false for NaN
