"""Finds the process that the others wait for, in a run of several processes.

Between collective operations all processes take the same time: whoever is late makes all late. What
tells them apart is the time that each spends at work of its own while its devices wait: reading,
scoring and writing, without what it waited for others there.

A chip that is slow by itself is not found so: its host waits as the others do.
"""

from collections.abc import Sequence
import socket

import numpy as np

from vr_jax.parallel import processes
from vr_jax.train import console
from vr_jax.train import step_timer as step_timer_lib

RATIO = 1.5  # how much longer the slowest process makes a step, to be worth a line
STEPS = 3  # so many in a row


class SlowProcessWatch:
  """Compares the processes after each step. All of them make it, and call it, together."""

  def __init__(self, stage: str) -> None:
    self._stage = stage
    self._hosts = processes.gather_texts("hosts", socket.gethostname())
    self._slow: tuple[int, int] = (-1, 0)  # a process, and in how many steps in a row it was slow

  def note(self, step: int, timer: step_timer_lib.StepTimer) -> dict[str, float]:
    """The metrics of the step; {} with one process. Prints a line if one process stays slow."""
    if len(self._hosts) == 1:
      return {}
    gathered = processes.all_gather(np.array([timer.own_seconds, timer.seconds], np.float32))
    values = compare(gathered[:, 0].tolist(), float(gathered[:, 1].max()))
    process = int(values["perf/slowest_process"])
    if values["perf/slowest_process_ratio"] < RATIO:
      self._slow = (-1, 0)
      return values
    self._slow = (process, self._slow[1] + 1 if self._slow[0] == process else 1)
    if self._slow[1] == STEPS:
      own = values["perf/time/slowest_process"]
      others = float(np.median(np.delete(gathered[:, 0], process)))
      console.print_note(
        f"{self._stage} step {step}: all wait for process {process} on {self._hosts[process]}, "
        f"which makes steps {values['perf/slowest_process_ratio']:.1f} times as long: it reads, "
        f"scores and writes for {own:.1f} s a step, the others for {others:.1f} s; look at its "
        "disk, network and CPU"
      )
    return values


def compare(own: Sequence[float], whole: float) -> dict[str, float]:
  """The metrics of a step.

  own: seconds of each process's own work. whole: of the step.
  """
  slowest = int(np.argmax(own))
  extra = own[slowest] - float(np.median(np.delete(np.array(own), slowest)))
  return {
    "perf/slowest_process": float(slowest),
    "perf/slowest_process_ratio": whole / max(whole - extra, 1e-3),
    "perf/time/slowest_process": own[slowest],
  }
