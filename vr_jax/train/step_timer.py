"""Measures where the time of a step goes."""

import time

import jax

from vr_jax.parallel import processes
from vr_jax.train import compilations, metrics

_OWN = ("data", "reward", "log")  # parts in which a process works while its devices wait
_NO_TRAINING = ("data", "log", "validation", "evaluation")


class StepTimer:
  """Measures the seconds of each part of a step, and those in which the devices were idle."""

  def __init__(self, after: "StepTimer | None" = None):
    """Begins a step.

    after: the timer of the previous step. The time since its last record, in which logs and
      checkpoints were written, counts as `log` of this step.
    """
    self._first = after is None
    self._begun = self._last = after._last if after else time.perf_counter()
    self._laps: dict[str, float] = {}
    self._device_idle = 0.0
    self._compiled, self._compiled_before = 0.0, compilations.seconds()
    self.own_seconds = 0.0  # of this process's own work, without waiting for other processes
    self._waited = after._waited if after else processes.seconds_waited()
    if after:
      self.record("log", device_idle=True)

  def record(self, name: str, *, device_idle: bool = False, idle_seconds: float = 0.0) -> float:
    """Adds the time since the last record to the part `name`; returns it, in seconds.

    device_idle: whether the devices were idle all that time.
    idle_seconds: otherwise, for how much of it they were idle.
    """
    now = time.perf_counter()
    spent, self._last = now - self._last, now
    self._laps[name] = self._laps.get(name, 0.0) + spent
    self._device_idle += spent if device_idle else idle_seconds
    compiled = compilations.seconds()
    if name not in _NO_TRAINING:
      self._compiled += compiled - self._compiled_before
    self._compiled_before = compiled
    before, self._waited = self._waited, processes.seconds_waited()
    if name in _OWN:
      self.own_seconds += max(0.0, spent - (self._waited - before))
    return spent

  @property
  def seconds(self) -> float:
    """Seconds of the step so far, until the last record."""
    return self._last - self._begun

  def metrics(self, tokens: float) -> dict[str, float]:
    """The metrics of the step. tokens: number of tokens of its replies."""
    whole = self.seconds
    if self._first and jax.process_count() > 1:
      compilations.print_summary()  # a process that is killed later has told it
    return {
      **{f"perf/time/{name}": seconds for name, seconds in self._laps.items()},
      "perf/time/step": whole,
      "perf/compilation_time": self._compiled,
      "perf/exposed_host_fraction": self._device_idle / whole,
      "perf/tokens_per_second": tokens / whole,
      **metrics.memory(),
    }
