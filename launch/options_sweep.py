"""Compiles a plan's programs with each candidate of compiler options, and compares the results."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import time
from typing import Any

import ml_collections

from launch import analysis, chips, topology
from vr_jax.parallel import compiler_options

_ALL = {**compiler_options.NO_WINDOWED_EINSUM, **compiler_options.VMEM_64_MIB}
CANDIDATES: Mapping[str, Mapping[str, str]] = {
  "none": {},
  "windowed einsum off": compiler_options.NO_WINDOWED_EINSUM,
  "scoped VMEM 64 MiB": compiler_options.VMEM_64_MIB,
  "both": _ALL,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
  """One candidate.

  seconds: of one RL step by the roofline.
  schedule: the same by the compiler's own schedule, without collectives.
  network: seconds of collectives at the peak rate of the links.
  bytes: of main memory, on a device, in an RL step.
  links: bytes of collectives, in the same.
  peak: of memory, over all programs.
  compiling: seconds on this machine.
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
  """
  outcomes = []
  for name, options in candidates.items():
    progress(f"options: {name}")
    began = time.monotonic()
    plan = analysis.analyse(
      config,
      where,
      only=lambda program: not names or program.name in names,
      options=dict(options),
      layers=layers,
      progress=progress,
      blame=False,
    )
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
  return "\n".join([*lines, *map(_row, outcomes)])


def _row(one: Outcome) -> str:
  room = "" if one.fits else ", no room"
  numbers = (f"{x:.3f}" for x in (one.seconds, one.schedule, one.network))
  sizes = (f"{x / chips.GIGA:.1f}" for x in (one.bytes, one.links, one.peak))
  cells = (one.name + room, *numbers, *sizes, f"{one.compiling:.0f}")
  return f"| {' | '.join(cells)} |"
