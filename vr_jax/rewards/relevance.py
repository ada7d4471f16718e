"""Relevance: what each turn earns in a conversation about the frames of a video, some of which hold the evidence.

With G the relevant frames of the pool and F those that a turn's reply retrieved, as sets of indices:

    IoU       = |F & G| / |F | G|
    relevance = high              where IoU is above the best so far, that of the first turn's frames included
              = max(-high, -slope (best - IoU))                                                           elsewhere
    turn      = gate (relevance + format)       before the last turn; gate: whether the episode's answer is right at all
    last turn = accuracy + format

Source: Video-MTR, arXiv 2508.20478, section 3.2. `Reconstruction:` the paper gives neither slope (1 here) nor bound (high).
Frames that the last turn asks for are never shown, and earn nothing: its sum ends before that turn.

Variant `code` is what its released code does: relevance is `high` or 0, against the IoU of the last frames shown, not the best;
an answer of turn k = 1, 2, … is worth 1 - (k - 1) / 10 of its accuracy; format is never gated, and the last turn is as any other.
The gate is that of the paper in both: the code's own one takes a wrong episode that ends with a good retrieval for a right one.
"""

import dataclasses
from typing import Literal

from jaxtyping import Bool, Float
import numpy as np

from vr_jax import schema

_CODE_MARGIN = 0.001  # by which an IoU is above another, in the released code
_CODE_DECAY = 0.1  # of an answer, a turn
# The accuracy from which an answer is right. Reconstruction: the paper has 0 and 1 alone; free-form answers and regressions are graded.
_RIGHT = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
  """What a turn earns, at most, in its parts (docs/video_mtr.md)."""

  variant: Literal["paper", "code"] = schema.field("paper", "code: what the released code does.")
  accuracy: float = schema.field(1.0, "What a right answer earns.", "[0, inf)")
  relevance: float = schema.field(
    0.5, "What a better look earns; 0: no rewards of turns but the format.", "[0, inf)"
  )
  format: float = schema.field(0.1, "What the right form earns in a turn.", "[0, inf)")
  slope: float = schema.field(
    1.0, "Of the penalty for a look that is worse than the best so far.", "[0, inf)"
  )
  gate: bool = schema.field(True, "Wrong episodes earn nothing for their looks.")

  def ranges(self) -> dict[str, tuple[float, float]]:
    """Least and most of each part of a turn's reward, and of their sum (`total`)."""
    low = -self.relevance if self.variant == "paper" else 0.0
    return {
      "accuracy": (0.0, self.accuracy),
      "format": (0.0, self.format),
      "relevance": (low, self.relevance),
      # What is retrieved was asked for in the right format, and no turn both retrieves and answers.
      "total": (min(0.0, low + self.format), max(self.accuracy, self.relevance) + self.format),
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Episodes:
  """What happened, padded to one number of turns and of frames.

  first: frames that the first turn shows. truth: those that are relevant; none where it is not known. found: those that the
  reply of each turn retrieved. accuracy: in [0, 1], of each turn's answer; 0 where there is none. valid: whether the reply
  was an answer or a retrieval in the right format. taken: turns that there were, the first ones of each row.
  """

  first: Bool[np.ndarray, "prompts pool"]
  truth: Bool[np.ndarray, "prompts pool"]
  found: Bool[np.ndarray, "prompts group turns pool"]
  accuracy: Float[np.ndarray, "prompts group turns"]
  valid: Bool[np.ndarray, "prompts group turns"]
  taken: Bool[np.ndarray, "prompts group turns"]

  @property
  def retrieved(self) -> Bool[np.ndarray, "prompts group turns"]:
    """Whether the turn's reply retrieved frames."""
    return self.found.any(-1)

  @property
  def unscored(self) -> Bool[np.ndarray, "prompts group turns"]:
    """Retrievals without relevance, since it is not known which frames are relevant."""
    return self.retrieved & ~self.truth.any(-1)[:, None, None]

  @property
  def last(self) -> Bool[np.ndarray, "prompts group turns"]:
    """Whether it is its episode's last turn."""
    later = np.zeros_like(self.taken)
    later[..., :-1] = self.taken[..., 1:]
    return self.taken & ~later

  def recall(self) -> Float[np.ndarray, "prompts group"]:
    """Share of the relevant frames that an episode was shown; nan where they are not known, or there was no turn."""
    shown = (self.found & ~self.last[..., None]).any(2) | self.first[:, None]
    truth = self.truth[:, None]
    known = truth.any(-1) & self.taken.any(-1)
    share = (shown & truth).sum(-1) / np.maximum(truth.sum(-1), 1)
    return np.where(known, share, np.nan)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Earned:
  """float32 rewards of each turn, after the gate; their ranges are Rule.ranges. iou: 0 where nothing was retrieved."""

  accuracy: Float[np.ndarray, "prompts group turns"]
  format: Float[np.ndarray, "prompts group turns"]
  relevance: Float[np.ndarray, "prompts group turns"]
  iou: Float[np.ndarray, "prompts group turns"]

  @property
  def total(self) -> Float[np.ndarray, "prompts group turns"]:
    """What the turn earns."""
    return self.accuracy + self.format + self.relevance


def frame_iou(
  frames: Bool[np.ndarray, "*batch pool"], truth: Bool[np.ndarray, "*batch pool"]
) -> Float[np.ndarray, "*batch"]:
  """Frames in both sets over frames in either; 0 where both are empty."""
  return (frames & truth).sum(-1) / np.maximum((frames | truth).sum(-1), 1)


def turn_rewards(episodes: Episodes, rule: Rule) -> Earned:
  """What every turn of every episode earns by `rule`; 0 for turns that were not taken."""
  truth = np.broadcast_to(episodes.truth[:, None, None], episodes.found.shape)
  iou = frame_iou(episodes.found, truth)
  first = frame_iou(episodes.first, episodes.truth)[:, None, None]
  scored = episodes.retrieved & ~episodes.unscored
  taken, last = episodes.taken, episodes.last
  right = (episodes.accuracy >= _RIGHT).any(-1, keepdims=True) | (not rule.gate)
  accuracy, formed = rule.accuracy * episodes.accuracy, rule.format * episodes.valid
  if rule.variant == "paper":
    relevance = np.where(right & scored & ~last, _against_best(iou, first, rule), 0)
    formed = np.where(right | last, formed, 0)
  else:
    better = iou > _last_shown(iou, first, scored) + _CODE_MARGIN
    relevance = rule.relevance * (right & scored & better)
    accuracy = accuracy * np.maximum(1 - _CODE_DECAY * np.arange(accuracy.shape[-1]), 0)
  parts = {"accuracy": accuracy, "format": formed, "relevance": relevance, "iou": iou}
  return Earned(
    **{name: np.where(taken, part, 0).astype(np.float32) for name, part in parts.items()}
  )


def _against_best(iou: np.ndarray, first: np.ndarray, rule: Rule) -> np.ndarray:
  """IoUs of turns that retrieved nothing are 0, and so never the best."""
  first = np.broadcast_to(first, (*iou.shape[:-1], 1))
  best = np.maximum.accumulate(np.concatenate([first, iou[..., :-1]], axis=-1), axis=-1)
  penalty = np.maximum(-rule.relevance, rule.slope * (iou - best))
  return np.where(iou > best, rule.relevance, penalty)


def _last_shown(iou: np.ndarray, first: np.ndarray, scored: np.ndarray) -> np.ndarray:
  """The IoU of the last turn before each that retrieved, or of the first turn's frames."""
  before, current = np.empty_like(iou), np.broadcast_to(first[..., 0], iou.shape[:-1])
  for turn in range(iou.shape[-1]):
    before[..., turn] = current
    current = np.where(scored[..., turn], iou[..., turn], current)
  return before
