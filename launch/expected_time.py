"""How long the programs of a plan take to compile: a guess, corrected by those that are done."""

from collections.abc import Callable, Mapping, Sequence
import time

# Seconds of one core of a server for the TPU compiler, of the released sizes: docs/pods.md. Layers
# are a loop, so a larger model hardly takes longer.
SECONDS: Mapping[str, float] = {
  "encoder": 45.0,
  "rollout": 90.0,
  "prefill": 60.0,
  "decode": 60.0,
  "append observations": 60.0,
  "reference log-probs": 60.0,
  "policy log-probs": 60.0,
  "values": 60.0,
  "train step": 120.0,
  "critic step": 120.0,
}
_OTHER = 60.0


class ExpectedTime:
  """The time that a list of programs is expected to take; as a string, the time that is left."""

  def __init__(self, names: Sequence[str], *, clock: Callable[[], float] = time.monotonic):
    self.names, self.clock = list(names), clock
    self.started = clock()
    self.done: list[str] = []

  def finish(self, name: str) -> None:
    """Notes that a program is done."""
    self.done.append(name)

  @property
  def left(self) -> float:
    """Seconds until all are done, at the pace of those that are."""
    guessed, of_all = (sum(SECONDS.get(n, _OTHER) for n in x) for x in (self.done, self.names))
    pace = (self.clock() - self.started) / guessed if guessed else 1.0
    return pace * (of_all - guessed)

  def __str__(self) -> str:
    minutes = self.left / 60
    about = f"{minutes:.0f} minutes" if minutes >= 1.5 else "a minute"
    return f"{len(self.done) + 1} of {len(self.names)}, about {about} left"
