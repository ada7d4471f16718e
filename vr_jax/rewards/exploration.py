"""Exploration bootstrapping: a bonus on retrieving while a policy does it too seldom, until it does it by itself.

    rate  = turns that retrieve / turns                     of one batch
    bonus = 1.0 where rate < 0.1, 0.5 where rate < 0.5      on every retrieval, right or wrong

It ends for good after `patience` batches in a row with a rate of the highest threshold or more. What is retrieved in the last turn
that an episode may have is shown to nobody: it gets no bonus and is not in the rate.

Source: Video-MTR, arXiv 2508.20478, appendix A.5. `Reconstruction:` the number of batches in a row (3) is not stated.

Variant `code` is what its released code does: the rate is that of episodes with more than one turn of positive reward, among
those with any; the bonus goes to each such turn but an episode's last; it never ends for good.
"""

from collections.abc import Callable
import dataclasses
from typing import Literal

from jaxtyping import Bool, Float
import numpy as np

from vr_jax import errors, schema


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
  """When turns that retrieve get a bonus, and how much (docs/video_mtr.md)."""

  variant: Literal["paper", "code"] = schema.field("paper", "code: what the released code does.")
  stages: tuple[tuple[float, float], ...] = schema.field(
    ((0.1, 1.0), (0.5, 0.5)),
    "Pairs (share of turns that retrieve, bonus below it), the lowest share first; (): no bonus.",
  )
  patience: int = schema.field(
    3, "Batches in a row above the last share, which end it.", "[1, inf)"
  )

  def __post_init__(self):
    if self.patience < 1 or list(self.stages) != sorted(self.stages):
      raise errors.InputError(
        "config.env.exploration: needs a patience of 1 or more, and stages with the lowest rate first"
      )

  @property
  def highest(self) -> float:
    """The most that a turn gets."""
    return max((bonus for _, bonus in self.stages), default=0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latch:
  """above: batches in a row whose rate was high enough; closed: whether they ended the bonus."""

  above: int = 0
  closed: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
  """What one batch gets: the bonus of each turn (float32), the rate it was decided by, and the latch for the next batch."""

  bonus: Float[np.ndarray, "prompts group turns"]
  rate: float
  latch: Latch


def step(
  rule: Rule,
  latch: Latch,
  *,
  retrieved: Bool[np.ndarray, "prompts group turns"],
  taken: Bool[np.ndarray, "prompts group turns"],
  total: Float[np.ndarray, "prompts group turns"],
  summed: Callable[[Float[np.ndarray, "2"]], Float[np.ndarray, "2"]] = np.asarray,
) -> Step:
  """The bonus of a batch.

  Args:
    rule: when and how much.
    latch: of the batch before.
    retrieved: whether a turn's reply retrieved frames that the next turn could show.
    taken: turns that there were.
    total: what each turn earns without the bonus, after the gate.
    summed: adds up what several processes have of the batch.
  """
  if rule.variant == "code":
    positive = total > 0
    later = np.cumsum(positive[..., ::-1], axis=-1)[..., ::-1] - positive
    chosen = positive & (later > 0)
    counts = chosen.any(-1).sum(), positive.any(-1).sum()
  else:
    chosen = retrieved & taken
    counts = chosen.sum(), taken.sum()
  some, of = summed(np.array(counts, np.float32))
  rate = float(some / max(of, 1))
  amount = 0.0 if latch.closed else next((b for below, b in rule.stages if rate < below), 0.0)
  return Step(
    bonus=np.float32(amount) * chosen.astype(np.float32), rate=rate, latch=_next(rule, latch, rate)
  )


def _next(rule: Rule, latch: Latch, rate: float) -> Latch:
  if rule.variant == "code" or latch.closed or not rule.stages:
    return latch
  above = latch.above + 1 if rate >= rule.stages[-1][0] else 0
  return Latch(above=above, closed=above >= rule.patience)
