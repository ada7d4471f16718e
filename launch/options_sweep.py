"""Compiles a plan's programs with each candidate of compiler options, and compares the results."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import time
from typing import Any

import ml_collections

from launch import analysis, chips, report, topology
from vr_jax import errors
from vr_jax.parallel import compiler_options

_EINSUM_OFF = compiler_options.NO_WINDOWED_EINSUM
CANDIDATES: Mapping[str, Mapping[str, str]] = {
  "none": {},
  "windowed einsum off": _EINSUM_OFF,
  "scoped VMEM 64 MiB": compiler_options.scoped_vmem(64),
  **{
    f"windowed einsum off, scoped VMEM {size} MiB": {
      **_EINSUM_OFF,
      **compiler_options.scoped_vmem(size),
    }
    for size in (32, 64, 96)
  },
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
  """One candidate. Numbers count only where it fits.

  seconds: of one RL step by the roofline.
  schedule: the same by the compiler's own schedule, without collectives.
  network: seconds of collectives at the peak rate of the links.
  bytes: of main memory, on a device, in an RL step.
  links: bytes of collectives, in the same.
  peak: of memory, over all programs.
  compiling: seconds on this machine.
  fits: whether every program has room, and the compiler takes the options.
  refused: whether it does not take them.
  """

  name: str
  options: Mapping[str, str]
  seconds: float
  schedule: float
  network: float
  bytes: float
  links: float
  peak: float
  compiling: float
  fits: bool
  refused: bool = False

  @property
  def longest(self) -> float:
    """The longer of roofline and schedule: both are bounds from below."""
    return max(self.seconds, self.schedule)


def compare(
  config: ml_collections.ConfigDict,
  where: topology.Slice,
  *,
  layers: int = 0,
  names: Sequence[str] = (),
  candidates: Mapping[str, Mapping[str, str]] = CANDIDATES,
  progress: Callable[[str], None] = lambda line: None,
) -> list[Outcome]:
  """Compiles with each candidate in place of the table's options and config.compiler_options.

  layers: of the text model that are compiled, at full width; 0: all.
  names: of programs; () stands for all.
  Raises InputError if the first candidate can't be compiled. A later one that the compiler refuses
  does not fit.
  """
  outcomes = []
  for name, options in candidates.items():
    progress(f"options: {name}")
    began = time.monotonic()
    try:
      plan = analysis.analyse(
        config,
        where,
        names=names,
        options=dict(options),
        layers=layers,
        progress=progress,
        blame=False,
      )
    except errors.InputError as error:
      if not outcomes:
        raise
      progress(f"{name}: {error}")
      outcomes.append(_refused(name, options, time.monotonic() - began))
      continue
    parts = [(a.runs, part.costs) for a in plan.analyses for part in a.parts]
    outcomes.append(
      Outcome(
        name=name,
        options=options,
        seconds=plan.seconds,
        schedule=plan.seconds_of("schedule"),
        network=plan.seconds_of("network"),
        bytes=sum(runs * spent.bytes for runs, spent in parts),
        links=sum(runs * sum(spent.collectives().values()) for runs, spent in parts),
        peak=max(a.memory.peak for a in plan.analyses),
        compiling=time.monotonic() - began,
        fits=plan.fits,
      )
    )
    progress(_row(outcomes[-1]))
  return outcomes


def _refused(name: str, options: Mapping[str, str], compiling: float) -> Outcome:
  fields = [field.name for field in dataclasses.fields(Outcome)]
  nothing: dict[str, Any] = dict.fromkeys(fields, 0.0)
  named = {"name": name, "options": options, "compiling": compiling, "fits": False}
  named["refused"] = True
  return Outcome(**{**nothing, **named})


def fastest(outcomes: Sequence[Outcome]) -> Outcome | None:
  """The candidate with the least time of those that fit, the first of equal ones; None without."""
  return min((one for one in outcomes if one.fits), key=lambda one: one.longest, default=None)


def as_json(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
  """One object a candidate, with the fields of `Outcome`."""
  return [dataclasses.asdict(outcome) for outcome in outcomes]


def as_text(outcomes: Sequence[Outcome]) -> str:
  """A table, as Markdown."""
  lines = [
    "| options | roofline, s | XLA's schedule, s | links, s | GB of HBM | GB of links | peak, GB "
    "| compiling, s |",
    "|---|---|---|---|---|---|---|---|",
  ]
  best = fastest(outcomes)
  verdict = f"fastest by the longer of roofline and schedule: {best.name}" if best else "none fits"
  return "\n".join([*lines, *map(_row, outcomes), "", verdict, report.LEFT_OUT])


def _row(one: Outcome) -> str:
  if not one.fits:
    why = "refused" if one.refused else "no room"
    return f"| {one.name}, {why} | | | | | | | {one.compiling:.0f} |"
  numbers = (f"{x:.3f}" for x in (one.seconds, one.schedule, one.network))
  sizes = (f"{x / chips.GIGA:.1f}" for x in (one.bytes, one.links, one.peak))
  cells = (one.name, *numbers, *sizes, f"{one.compiling:.0f}")
  return f"| {' | '.join(cells)} |"
