"""Where the time of a step goes."""

import time

from vr_jax.train import metrics


class StepTimer:
  """Seconds of each part of a step, and of those in which the host worked and the devices waited."""

  def __init__(self, after: "StepTimer | None" = None):
    """Begins a step. after: that of the step before; what was done since it ended, writing logs and checkpoints, is `log`."""
    self._begun = self._last = after._last if after else time.perf_counter()
    self._laps: dict[str, float] = {}
    self._exposed = 0.0
    if after:
      self.record("log", exposed=True)

  def record(self, name: str, *, exposed: bool = False, idle_seconds: float = 0.0) -> None:
    """Adds the time since the last lap to a part; exposed: the devices had nothing to do in it; idle_seconds: in so many seconds of it."""
    now = time.perf_counter()
    spent, self._last = now - self._last, now
    self._laps[name] = self._laps.get(name, 0.0) + spent
    self._exposed += spent if exposed else idle_seconds

  def values(self, tokens: float) -> dict[str, float]:
    """What to log of a step whose replies have so many tokens."""
    whole = self._last - self._begun
    return {
      **{f"perf/time/{name}": seconds for name, seconds in self._laps.items()},
      "perf/time/step": whole,
      "perf/exposed_host_fraction": self._exposed / whole,
      "perf/tokens_per_second": tokens / whole,
      **metrics.peak_memory(),
    }
