"""Exploration bootstrapping: a bonus for retrieving frames, until the policy does so by itself.

    rate  = turns that retrieve / turns                  within one batch
    bonus = 1.0 if rate < 0.1, else 0.5 if rate < 0.5    for every retrieval, right or wrong

The bonus ends for good once `patience` batches in a row reach the highest threshold. Frames
retrieved in the last turn that an episode may have are never shown: such a retrieval gets no bonus
and does not count in the rate.

Source: Video-MTR, arXiv 2508.20478, appendix A.5.
`Reconstruction:` the number of batches in a row (3) is not stated.

The variant `code` does what the paper's released code does:

- The rate is over episodes with any turn of positive reward: the fraction with more than one.
- Each turn of positive reward gets the bonus, except the last such turn of an episode.
- The bonus never ends for good.
"""

from collections.abc import Callable
import dataclasses
from typing import ClassVar, Literal

from jaxtyping import Bool, Float
import numpy as np

from vr_jax import errors, schema


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExplorationRule:
  """When turns that retrieve get a bonus, and how much (docs/video_mtr.md)."""

  CHANGE: ClassVar[str] = "before rl"

  variant: Literal["paper", "code"] = schema.field(
    "paper", "Whose rule: the paper's, or what its released code does."
  )
  stages: tuple[tuple[float, float], ...] = schema.field(
    ((0.1, 1.0), (0.5, 0.5)),
    "Pairs of a share of turns that retrieve, and the bonus while the share is lower; the lowest "
    "share first; (): no bonus.",
  )
  patience: int = schema.field(
    3, "Batches in a row above the last share that end the bonus.", "[1, inf)"
  )

  def __post_init__(self):
    if self.patience < 1 or list(self.stages) != sorted(self.stages):
      raise errors.InputError(
        "config.env.exploration: needs a patience of 1 or more, "
        "and stages with the lowest rate first"
      )

  @property
  def highest(self) -> float:
    """The largest bonus."""
    return max((bonus for _, bonus in self.stages), default=0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class BonusState:
  """The state that is carried from batch to batch.

  above: number of batches in a row whose rate was high enough.
  closed: whether the bonus has ended for good.
  """

  above: int = 0
  closed: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class BonusStep:
  """The result for one batch.

  bonus: of each turn, float32.
  rate: the rate that decided the bonus.
  next_state: the state for the next batch.
  """

  bonus: Float[np.ndarray, "prompts group turns"]
  rate: float
  next_state: BonusState


def compute_bonus(
  rule: ExplorationRule,
  bonus_state: BonusState,
  *,
  retrieved: Bool[np.ndarray, "prompts group turns"],
  taken: Bool[np.ndarray, "prompts group turns"],
  total: Float[np.ndarray, "prompts group turns"],
  sum_processes: Callable[[Float[np.ndarray, "2"]], Float[np.ndarray, "2"]] = np.asarray,
) -> BonusStep:
  """Computes the bonus of each turn of a batch.

  Args:
    rule: the settings.
    bonus_state: the state after the previous batch.
    retrieved: whether a turn's reply retrieved frames that the next turn could show.
    taken: which turns exist.
    total: each turn's reward without the bonus, after the gate.
    sum_processes: sums counts over the processes that share the batch.
  """
  if rule.variant == "code":
    positive = total > 0
    later = np.cumsum(positive[..., ::-1], axis=-1)[..., ::-1] - positive
    chosen = positive & (later > 0)
    counts = chosen.any(-1).sum(), positive.any(-1).sum()
  else:
    chosen = retrieved & taken
    counts = chosen.sum(), taken.sum()
  count, total_count = sum_processes(np.array(counts, np.float32))
  rate = float(count / max(total_count, 1))
  amount = 0.0 if bonus_state.closed else next((b for limit, b in rule.stages if rate < limit), 0.0)
  bonus = np.float32(amount) * chosen.astype(np.float32)
  return BonusStep(bonus=bonus, rate=rate, next_state=_advance(rule, bonus_state, rate))


def _advance(rule: ExplorationRule, latch: BonusState, rate: float) -> BonusState:
  """The state after a batch with this rate."""
  if rule.variant == "code" or latch.closed or not rule.stages:
    return latch
  above = latch.above + 1 if rate >= rule.stages[-1][0] else 0
  return BonusState(above=above, closed=above >= rule.patience)
