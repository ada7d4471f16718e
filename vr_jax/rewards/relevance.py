"""Turn rewards of a multi-turn episode in which the policy retrieves relevant frames of a video.

G are the relevant frames of the pool, F those that a turn's reply retrieved, as sets of indices:

    IoU       = |F & G| / |F | G|
    relevance = high                              if IoU > best
              = max(-high, -slope (best - IoU))   else
    turn      = gate (relevance + format)         before the last turn
    last turn = accuracy + format

    best      highest IoU so far, including that of the frames that the first turn shows
    gate      1 if the episode's answer is right, else 0

Source: Video-MTR, arXiv 2508.20478, section 3.2. `Reconstruction:` the paper gives neither the
slope (1 here) nor the bound (high here). Frames that the last turn asks for are never shown and
earn nothing: the paper's sum ends before that turn.

The variant `code` does what the paper's released code does:

- Relevance is `high` or 0. The IoU is compared with that of the frames shown last, not the best.
- An answer in turn k = 1, 2, … earns 1 - (k - 1) / 10 of its accuracy.
- Format is never gated. The last turn is treated as any other.

Both variants use the paper's gate. The gate of the released code mistakes a wrong episode that ends
with a good retrieval for a right one.
"""

import dataclasses
from typing import Literal

from jaxtyping import Bool, Float
import numpy as np

from vr_jax import schema

_CODE_MARGIN = 0.001  # an IoU must be higher by this much, in the released code
_CODE_DECAY = 0.1  # how much less of its accuracy an answer earns, for each turn before it
# An answer is right from this accuracy on. Reconstruction: accuracies in the paper are 0 or 1 only,
# but free-form answers and regressions get values between.
_RIGHT_ACCURACY = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class RelevanceRule:
  """What a turn earns, at most, in its parts (docs/video_mtr.md)."""

  variant: Literal["paper", "code"] = schema.field(
    "paper", "Whose rule: the paper's, or what its released code does."
  )
  accuracy: float = schema.field(1.0, "What a right answer earns.", "[0, inf)")
  relevance: float = schema.field(
    0.5,
    "What a look earns that is better than all before; 0: turns are rewarded for their form alone.",
    "[0, inf)",
  )
  format: float = schema.field(0.1, "What the right form earns in a turn.", "[0, inf)")
  slope: float = schema.field(
    1.0, "Slope of the penalty for a look that is worse than the best so far.", "[0, inf)"
  )
  gate: bool = schema.field(True, "Wrong episodes earn nothing for their looks.")

  def ranges(self) -> dict[str, tuple[float, float]]:
    """(minimum, maximum) of each part of a turn's reward, and of their sum (`total`)."""
    low = -self.relevance if self.variant == "paper" else 0.0
    return {
      "accuracy": (0.0, self.accuracy),
      "format": (0.0, self.format),
      "relevance": (low, self.relevance),
      # A turn that retrieves has the right format, and no turn both retrieves and answers.
      "total": (min(0.0, low + self.format), max(self.accuracy, self.relevance) + self.format),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class EpisodeArrays:
  """A batch of episodes, padded to the same number of turns and of frames.

  first: the frames that the first turn shows.
  truth: the relevant frames; none set if they are not known.
  retrieved_frames: the frames that each turn's reply retrieved.
  accuracy: of each turn's answer, in [0, 1]; 0 without an answer.
  well_formed: whether the reply was an answer or a retrieval in the right format.
  taken: which turns exist; the first ones of each row.
  """

  first: Bool[np.ndarray, "prompts pool"]
  truth: Bool[np.ndarray, "prompts pool"]
  retrieved_frames: Bool[np.ndarray, "prompts group turns pool"]
  accuracy: Float[np.ndarray, "prompts group turns"]
  well_formed: Bool[np.ndarray, "prompts group turns"]
  taken: Bool[np.ndarray, "prompts group turns"]

  @property
  def retrieved(self) -> Bool[np.ndarray, "prompts group turns"]:
    """Whether the turn's reply retrieved frames."""
    return np.asarray(np.any(self.retrieved_frames, axis=-1))

  @property
  def unscored(self) -> Bool[np.ndarray, "prompts group turns"]:
    """Retrievals that can't be scored, since the relevant frames are not known."""
    return self.retrieved & ~np.asarray(np.any(self.truth, axis=-1))[:, None, None]

  @property
  def last(self) -> Bool[np.ndarray, "prompts group turns"]:
    """Whether the turn is the last one of its episode."""
    later = np.zeros_like(self.taken)
    later[..., :-1] = self.taken[..., 1:]
    return self.taken & ~later

  def recall(self) -> Float[np.ndarray, "prompts group"]:
    """Fraction of the relevant frames that an episode was shown.

    nan if the relevant frames are not known or the episode has no turn.
    """
    shown = (self.retrieved_frames & ~self.last[..., None]).any(2) | self.first[:, None]
    truth = self.truth[:, None]
    known = truth.any(-1) & self.taken.any(-1)
    fraction = (shown & truth).sum(-1) / np.maximum(truth.sum(-1), 1)
    return np.where(known, fraction, np.nan)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TurnRewards:
  """The rewards of each turn after the gate, float32. Their ranges are `Rule.ranges`.

  iou: 0 if the turn retrieved nothing.
  """

  accuracy: Float[np.ndarray, "prompts group turns"]
  format: Float[np.ndarray, "prompts group turns"]
  relevance: Float[np.ndarray, "prompts group turns"]
  iou: Float[np.ndarray, "prompts group turns"]

  @property
  def total(self) -> Float[np.ndarray, "prompts group turns"]:
    """The turn's whole reward."""
    return self.accuracy + self.format + self.relevance


def frame_iou(
  frames: Bool[np.ndarray, "*batch pool"], truth: Bool[np.ndarray, "*batch pool"]
) -> Float[np.ndarray, "*batch"]:
  """Intersection over union of two sets of frames; 0 if both are empty."""
  return (frames & truth).sum(-1) / np.maximum((frames | truth).sum(-1), 1)


def turn_rewards(episodes: EpisodeArrays, rule: RelevanceRule) -> TurnRewards:
  """Computes the rewards of every turn of every episode; 0 for turns that don't exist."""
  truth = np.broadcast_to(episodes.truth[:, None, None], episodes.retrieved_frames.shape)
  iou = frame_iou(episodes.retrieved_frames, truth)
  first = frame_iou(episodes.first, episodes.truth)[:, None, None]
  scored = episodes.retrieved & ~episodes.unscored
  taken, last = episodes.taken, episodes.last
  right = (episodes.accuracy >= _RIGHT_ACCURACY).any(-1, keepdims=True) | (not rule.gate)
  accuracy, format_reward = rule.accuracy * episodes.accuracy, rule.format * episodes.well_formed
  if rule.variant == "paper":
    relevance = np.where(right & scored & ~last, _compare_with_best(iou, first, rule), 0)
    format_reward = np.where(right | last, format_reward, 0)
  else:
    better = iou > _previous_iou(iou, first, scored) + _CODE_MARGIN
    relevance = rule.relevance * (right & scored & better)
    accuracy = accuracy * np.maximum(1 - _CODE_DECAY * np.arange(accuracy.shape[-1]), 0)
  parts = {"accuracy": accuracy, "format": format_reward, "relevance": relevance, "iou": iou}
  return TurnRewards(
    **{name: np.where(taken, part, 0).astype(np.float32) for name, part in parts.items()}
  )


def _compare_with_best(iou: np.ndarray, first: np.ndarray, rule: RelevanceRule) -> np.ndarray:
  """Relevance against the best IoU so far. Turns that retrieved nothing have an IoU of 0."""
  first = np.broadcast_to(first, (*iou.shape[:-1], 1))
  best = np.maximum.accumulate(np.concatenate([first, iou[..., :-1]], axis=-1), axis=-1)
  penalty = np.maximum(-rule.relevance, rule.slope * (iou - best))
  return np.where(iou > best, rule.relevance, penalty)


def _previous_iou(iou: np.ndarray, first: np.ndarray, scored: np.ndarray) -> np.ndarray:
  """For each turn the IoU of the last scored retrieval before it, or of the first turn's frames."""
  before, current = np.empty_like(iou), np.broadcast_to(first[..., 0], iou.shape[:-1])
  for turn in range(iou.shape[-1]):
    before[..., turn] = current
    current = np.where(scored[..., turn], iou[..., turn], current)
  return before
