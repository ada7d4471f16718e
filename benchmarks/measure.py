"""Times sides against each other, and describes the machine for the JSON line."""

from collections.abc import Callable, Mapping
import importlib.metadata
import os
from pathlib import Path
import platform
import re
import statistics
import sys
import time
from typing import Any

import jax
import numpy as np

from vr_jax.parallel import absent_tpu

absent_tpu.leave_out()  # before a benchmark makes its first array

Side = Callable[[], object]


def in_turn(sides: Mapping[str, Side], *, repeats: int) -> dict[str, list[float]]:
  """Seconds of each side in each round, without a first round.

  Each round runs every side once, so that other work on the machine affects all sides.
  Results that are JAX arrays are waited for.
  """
  rounds: dict[str, list[float]] = {name: [] for name in sides}
  for number in range(repeats + 1):
    for name, side in sides.items():
      begun = time.perf_counter()
      jax.block_until_ready(side())
      if number:
        rounds[name].append(time.perf_counter() - begun)
  return rounds


def medians(rounds: Mapping[str, list[float]]) -> dict[str, float]:
  """Median seconds of each side, to four decimal places."""
  return {name: round(statistics.median(seconds), 4) for name, seconds in rounds.items()}


def ratio(rounds: Mapping[str, list[float]], over: str, under: str) -> float:
  """The time of `over` divided by that of `under`: median over rounds, to three decimal places."""
  pairs = zip(rounds[over], rounds[under], strict=True)
  return round(statistics.median(slow / fast for slow, fast in pairs), 3)


def largest_difference(expected: Any, actual: Any) -> float:
  """The largest difference of two trees, relative to the largest number of each expected array."""
  differences = jax.tree.map(
    lambda e, a: np.max(np.abs(np.asarray(e) - np.asarray(a))) / max(np.max(np.abs(e)), 1e-30),
    expected,
    actual,
  )
  return float(max(jax.tree.leaves(differences)))


def check_same(what: str, expected: Any, actual: Any, tolerance: float) -> float:
  """The largest difference.

  Raises ValueError where it exceeds the tolerance: then the sides did different work.
  """
  found = largest_difference(expected, actual)
  if not found <= tolerance:
    raise ValueError(
      f"{what}: the sides differ by {found:.1e} of the largest, over {tolerance:.0e}"
    )
  return float(f"{found:.1e}")


def peak_bytes(*, reset: bool = False) -> int:
  """The highest resident memory of this process so far.

  Linux's VmHWM: `getrusage` of a process that a larger one started tells that one's.

  reset: restart the maximum from now first.
  """
  if reset:
    Path("/proc/self/clear_refs").write_text("5")
  (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
  return int(kilobytes) * 1024


class About:
  """The circumstances of a measurement: versions, machine, threads, load before and after."""

  def __init__(self, *packages: str):
    self._packages = ("jax", "jaxlib", *packages)
    self._before = os.getloadavg()[0]

  def fields(self) -> dict[str, Any]:
    """The fields of the JSON line; call it after all measurements."""
    return {
      "machine": {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": len(os.sched_getaffinity(0)),
        "load": [round(self._before, 2), round(os.getloadavg()[0], 2)],
        "device": jax.devices()[0].device_kind,
      },
      "versions": {
        "python": ".".join(map(str, sys.version_info[:3])),
        **{package: importlib.metadata.version(package) for package in self._packages},
      },
      "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
  """The CPU's name, or its architecture where the system has no name."""
  if os.path.exists("/proc/cpuinfo"):
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
      names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
  return platform.processor() or platform.machine()
