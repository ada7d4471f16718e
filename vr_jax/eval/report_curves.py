"""The report's curves: one small chart a metric, as SVG, grouped by stage and subject."""

from collections.abc import Callable, Sequence
import math
import re

from vr_jax.eval import report_data
from vr_jax.eval.report_markup import Html, element

Scale = Callable[[float], float]  # from a step or a value to a place on the chart

WIDTH, HEIGHT = 320, 170  # of a chart, in its own units
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 10, 22  # margins
LARGEST = 1e100  # beyond it a value is no measurement, and its differences overflow
MOST_POINTS = 2000  # of a curve; a longer one keeps the extremes of each stretch
SMOOTH_FROM = 24  # points; a shorter curve is easier to read as it is

# Subjects in reading order; the first whose pattern occurs in a metric's name takes it.
SUBJECTS = (
  ("Speed and memory", r"time|second|per_s|tokens/s|memory|byte|throughput"),
  ("Reward", r"reward|advantage|signal"),
  ("Quality of replies", r"accuracy|process|consistency|format|mismatch|reply|length|entropy"),
  ("Optimisation", r""),
)
ORDER = ("Reward", "Quality of replies", "Optimisation", "Speed and memory")
FOLDED = frozenset({"Speed and memory"})
STAGE_TITLES = {"sft": "Supervised warm start", "rl": "Reinforcement learning"}


def curves(stages: report_data.Curves) -> Html:
  """All charts, the last stage first: it is what a reader came for. Says so where nothing is logged yet."""
  if not any(stages.values()):
    return element("p", "No metrics yet: no stage has logged a step.", class_="missing")
  parts = [_stage(stage, metrics) for stage, metrics in reversed(stages.items()) if metrics]
  return element("div", *parts)


def chart(name: str, steps: Sequence[int], values: Sequence[float]) -> Html:
  """One metric over the steps of its stage. Values that are not finite leave a gap, and are counted.

  The thin line is every value, the thick one a moving average over a tenth of the curve.
  """
  lost = sum(not _drawable(value) for value in values)
  steps, values = _thinned(steps, values)
  finite = [_drawable(value) for value in values]
  shown = [value for value, good in zip(values, finite, strict=True) if good]
  label = element("span", _title(name), class_="name", title=name)
  note = element("span", f"{lost} not finite", class_="lost") if lost else None
  if not shown:
    return element("figure", element("figcaption", label, note), class_="chart", data_metric=name)
  low, high = _range(shown)
  across = _scale(steps[0], steps[-1], LEFT, WIDTH - RIGHT)
  upward = _scale(low, high, HEIGHT - BOTTOM, TOP)
  smooth = _moving_average(values, finite) if len(shown) >= SMOOTH_FROM else None
  thin = element("path", d=_path(steps, values, finite, across, upward), class_="raw")
  thick = smooth and element("path", d=_path(steps, smooth, finite, across, upward), class_="mean")
  svg = element(
    "svg",
    *_axes(low, high, steps[0], steps[-1], upward),
    thin,
    thick,
    element("line", y1=TOP, y2=HEIGHT - BOTTOM, class_="cursor"),
    element("circle", r=3.5, class_="dot"),
    viewBox=f"0 0 {WIDTH} {HEIGHT}",
    role="img",
    aria_label=f"{_title(name)}: from {shown[0]:.4g} to {shown[-1]:.4g}",
    class_="curve smoothed" if smooth else "curve",
    data_steps=" ".join(str(step) for step, good in zip(steps, finite, strict=True) if good),
    data_values=" ".join(f"{value:.6g}" for value in shown),
  )
  final = (smooth or values)[max(index for index, good in enumerate(finite) if good)]
  number = element("span", f"{final:.3g}", class_="last")
  caption = element("figcaption", label, note, number)
  return element("figure", caption, svg, class_="chart", data_metric=name)


def _stage(stage: str, metrics: dict[str, tuple[list[int], list[float]]]) -> Html:
  subjects: dict[str, list[Html]] = {subject: [] for subject in ORDER}
  for name in sorted(metrics, key=_reading_order):
    subjects[_subject(name)].append(chart(name, *metrics[name]))
  groups = []
  for subject, charts in subjects.items():
    if charts:
      grid = element("div", *charts, class_="charts")
      summary = element("summary", subject, element("small", f" {len(charts)}"))
      groups.append(element("details", summary, grid, open=subject not in FOLDED))
  last_step = max(steps[-1] for steps, _ in metrics.values())
  heading = element(
    "h3", STAGE_TITLES.get(stage, stage), element("small", f" to step {last_step:,}")
  )
  return element("div", heading, *groups, class_="stage", data_stage=stage)


def _subject(name: str) -> str:
  return next(subject for subject, pattern in SUBJECTS if re.search(pattern, name))


def _reading_order(name: str) -> tuple[int, str]:
  """Means before spreads, totals before parts."""
  first = ("total", "accuracy", "process", "format", "loss", "kl", "entropy", "length")
  rank = next((rank for rank, word in enumerate(first) if word in name), len(first))
  return (len(first) + rank if re.search(r"std|zero|share", name) else rank, name)


def _title(name: str) -> str:
  return name.replace("_", " ").replace("/", " · ")


def _axes(low: float, high: float, first: int, last: int, upward: Scale) -> list[Html]:
  parts = []
  for tick in _ticks(low, high):
    y = f"{upward(tick):.1f}"
    parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
    parts.append(element("text", f"{tick:.4g}", x=LEFT - 6, y=y, dy="0.32em", class_="y"))
  parts.append(element("text", f"{first:,}", x=LEFT, y=HEIGHT - 6, class_="x"))
  if last != first:
    parts.append(element("text", f"{last:,}", x=WIDTH - RIGHT, y=HEIGHT - 6, class_="x end"))
  return parts


def _ticks(low: float, high: float) -> list[float]:
  """Two to five round numbers between low and high."""
  magnitude = 10.0 ** math.floor(math.log10(high - low))
  step = next(
    magnitude * factor for factor in (0.5, 1, 2, 5) if high - low < 5 * magnitude * factor
  )
  return [index * step for index in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _range(values: Sequence[float]) -> tuple[float, float]:
  """Smallest and largest value; a constant gets room on both sides and stands in the middle of its chart."""
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
  """Mean of the finite values in a window of a tenth of the curve, centred; cut off at both ends."""
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
