"""What is written so far of the replies to a batch, on the host."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from jaxtyping import Bool, Float, Int
import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class WrittenReplies:
  """The tokens of replies that may not have ended yet. Its arrays change as replies grow.

  log_probs: of the sampler, when it drew the token.
  lengths: tokens so far.
  """

  tokens: Int[np.ndarray, "prompts group time"]
  log_probs: Float[np.ndarray, "prompts group time"]
  lengths: Int[np.ndarray, "prompts group"]
  ended: Bool[np.ndarray, "prompts group"]

  @classmethod
  def none(cls, prompts: int, group: int, time: int) -> "WrittenReplies":
    """Replies of at most `time` tokens, none of which has begun."""
    return cls(
      tokens=np.zeros((prompts, group, time), np.int32),
      log_probs=np.zeros((prompts, group, time), np.float32),
      lengths=np.zeros((prompts, group), np.int32),
      ended=np.zeros((prompts, group), bool),
    )

  def copy(self) -> "WrittenReplies":
    """The same replies in arrays of their own."""
    return WrittenReplies(**{name: array.copy() for name, array in vars(self).items()})

  def add(
    self,
    row: int,
    group_index: int,
    tokens: Int[np.ndarray, "new"],
    log_probs: Float[np.ndarray, "new"],
    *,
    ended: bool,
  ) -> None:
    """Appends tokens to a reply."""
    place, begin = (row, group_index), self.lengths[row, group_index]
    span = slice(begin, begin + len(tokens))
    self.tokens[place][span], self.log_probs[place][span] = tokens, log_probs
    self.lengths[place], self.ended[place] = span.stop, ended

  @property
  def begun_fraction(self) -> float:
    """Share of the replies that have tokens."""
    return float((self.lengths > 0).mean())

  def to_json(self) -> list[dict[str, Any]]:
    """The replies that have tokens, as JSON; floats keep their bits."""
    return [
      {
        "row": int(row),
        "group_index": int(index),
        "tokens": self.tokens[row, index, : self.lengths[row, index]].tolist(),
        "log_probs": self.log_probs[row, index, : self.lengths[row, index]].tolist(),
        "ended": bool(self.ended[row, index]),
      }
      for row, index in np.argwhere(self.lengths > 0)
    ]

  @classmethod
  def from_json(
    cls, replies: Sequence[Mapping[str, Any]], *, prompts: int, group: int, time: int
  ) -> "WrittenReplies":
    """Reads what `to_json` gave."""
    written = cls.none(prompts, group, time)
    for reply in replies:
      written.add(
        reply["row"],
        reply["group_index"],
        np.array(reply["tokens"], np.int32),
        np.array(reply["log_probs"], np.float32),
        ended=reply["ended"],
      )
    return written
