"""Measures where the time of a step goes."""

import time

from vr_jax.train import compilations, metrics


class StepTimer:
  """Measures the seconds of each part of a step, and those in which the devices were idle."""

  def __init__(self, after: "StepTimer | None" = None):
    """Begins a step.

    after: the timer of the previous step. The time since its last record, in which logs and
      checkpoints were written, counts as `log` of this step.
    """
    self._begun = self._last = after._last if after else time.perf_counter()
    self._laps: dict[str, float] = {}
    self._device_idle = 0.0
    self._compiled = compilations.seconds()
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
    return spent

  def metrics(self, tokens: float) -> dict[str, float]:
    """The metrics of the step. tokens: number of tokens of its replies."""
    whole = self._last - self._begun
    return {
      **{f"perf/time/{name}": seconds for name, seconds in self._laps.items()},
      "perf/time/step": whole,
      "perf/compilation_time": compilations.seconds() - self._compiled,
      "perf/exposed_host_fraction": self._device_idle / whole,
      "perf/tokens_per_second": tokens / whole,
      **metrics.memory(),
    }
