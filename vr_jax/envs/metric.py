"""What a number of an evaluation is called and how it is shown: on the terminal and in the report."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from vr_jax import records


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
  """How a metric is shown.

  note: a few words below the title. unit: "%" for shares, which are shown times 100; else what is
  written behind the number. better: 1 where higher is better, -1 where lower is, 0 where neither is.
  headline: whether it is one of the large numbers at the top. chance: what a reply that knows
  nothing gets on an example, where that can be said. reward: the reward whose mean it is, where the
  evaluation has no other number of this name.
  """

  title: str
  note: str = ""
  unit: str = "%"
  digits: int = 1
  better: int = 1
  headline: bool = False
  chance: Callable[[records.Example], float] | None = None
  reward: str = ""

  def to_json(self) -> dict[str, Any]:
    """How it is shown, for the files of an evaluation; chance is a metric of its own there."""
    names = ("title", "note", "unit", "digits", "better", "headline")
    return {name: getattr(self, name) for name in names}


Metrics = Mapping[str, Metric]


def guess(example: records.Example) -> float:
  """The share of right answers of a guess: one option of several; 0 without options."""
  return 1 / len(example.options) if example.options else 0.0


def by_name(name: str, shown_as: Metrics) -> tuple[Metric, str]:
  """How a metric is shown, and the part of it that `name` is ("numerical" of accuracy/numerical).

  One that nobody has declared is shown as a plain number by its name, and is no part of another.
  """
  head, _, part = name.partition("/")
  if head in shown_as:
    return shown_as[head], part
  title = " · ".join(filter(None, (head, part))).replace("_", " ")
  return Metric(title=title.capitalize(), unit="", digits=3, better=0), ""


def is_about_another(name: str) -> bool:
  """Whether a number says more of another metric: its interval, or what a guess would get."""
  return name.split("/")[0].endswith(("_interval", "_chance"))


def formatted(metric: Metric, value: float) -> str:
  """A value as it is shown, with its unit."""
  if metric.unit == "%":
    return f"{100 * value:.{metric.digits}f} %"
  return f"{value:.{metric.digits}f} {metric.unit}".rstrip()
