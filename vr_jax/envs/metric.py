"""How the metrics of an evaluation are displayed, on the terminal and in the report."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from vr_jax import records


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
  """How one metric is displayed.

  note: a few words below the title.
  unit: "%" for fractions, which are displayed times 100; otherwise the text after the number.
  digits: digits after the decimal point.
  better: 1 if higher is better, -1 if lower is better, 0 if neither.
  headline: whether it is one of the large numbers at the top.
  fraction: whether the value of each example is within [0, 1], as always with the unit "%". Then
    the mean has a confidence interval.
  chance: the expected value for a random guess on an example, if that is known.
  reward: name of the reward whose mean is the metric, if the evaluation does not measure it.
  """

  title: str
  note: str = ""
  unit: str = "%"
  digits: int = 1
  better: int = 1
  headline: bool = False
  fraction: bool = False
  chance: Callable[[records.Example], float] | None = None
  reward: str = ""

  @property
  def is_fraction(self) -> bool:
    """Whether the values of examples are within [0, 1]."""
    return self.fraction or self.unit == "%"

  def to_json(self) -> dict[str, Any]:
    """The settings for the files of an evaluation, in which chance is a metric of its own."""
    names = ("title", "note", "unit", "digits", "better", "headline", "fraction")
    return {name: getattr(self, name) for name in names}


Metrics = Mapping[str, Metric]


def guess(example: records.Example) -> float:
  """The accuracy of guessing one of the options; 0 without options."""
  return 1 / len(example.options) if example.options else 0.0


def by_name(name: str, shown_as: Metrics) -> tuple[Metric, str]:
  """The display settings of a metric, and which part of it `name` is ("": the whole).

  "accuracy/numerical" gives the settings of "accuracy", and "numerical"; a declared name may have a
  slash itself. A metric that was not declared is displayed as a plain number under its whole name.
  """
  if name in shown_as:
    return shown_as[name], ""
  head, _, part = name.partition("/")
  if head in shown_as:
    return shown_as[head], part
  title = name.replace("/", " · ").replace("_", " ")
  return Metric(title=title.capitalize(), unit="", digits=3, better=0), ""


def is_about_another(name: str) -> bool:
  """Whether a number belongs to another metric: its confidence interval or its chance level."""
  return name.split("/")[0].endswith(("_interval", "_chance"))


def formatted(metric: Metric, value: float) -> str:
  """The text of a value, with its unit."""
  if metric.unit == "%":
    return f"{100 * value:.{metric.digits}f} %"
  return f"{value:.{metric.digits}f} {metric.unit}".rstrip()
