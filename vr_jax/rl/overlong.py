"""DAPO's soft overlong penalty: a reward that depends on the length of a reply in tokens.

With |y| the length of a reply, M the longest length that is wanted and B the buffer before M:

    0                   if |y| <= M - B
    (M - B - |y|) / B   if M - B < |y| <= M
    -1                  if M < |y|

Source: arXiv 2503.14476, eq. 13 (M is L_max, B is L_cache).
"""

import dataclasses

from jaxtyping import Float, Int
import ml_collections
import numpy as np

from vr_jax import records


def overlong_penalty(
  tokens: Int[np.ndarray, "*shape"], *, max_tokens: int, buffer: int
) -> Float[np.ndarray, "*shape"]:
  """The penalty of replies with these numbers of tokens, in [-1, 0]. buffer: 1 or more."""
  return np.clip((max_tokens - buffer - tokens) / buffer, -1, 0).astype(np.float32)


def add_overlong_penalty(
  scores: records.Scores,
  segment: Int[np.ndarray, "prompts group time"],
  config: ml_collections.ConfigDict,
  *,
  multi_turn: bool,
) -> records.Scores:
  """Adds the reward `overlong` to the scores, and its weighted value to their total.

  If segments are turns, each turn is a reply and has its own penalty. Otherwise the length of the
  whole reply counts and the last segment gets the penalty, because that is the part that runs on.

  Args:
    scores: from an environment, host arrays.
    segment: index of the segment that each token belongs to; -1 for none.
    config: the section `rl`. If its overlong_buffer is 0, the scores are returned as they are.
    multi_turn: whether segments are turns.
  """
  if not config.overlong_buffer:
    return scores
  count = scores.total.shape[2]
  tokens = np.stack([(segment == number).sum(axis=-1) for number in range(count)], axis=-1)
  penalty = overlong_penalty(
    tokens if multi_turn else tokens.sum(axis=-1, keepdims=True),
    max_tokens=config.overlong_max_tokens or config.max_new_tokens,
    buffer=config.overlong_buffer,
  )
  if not multi_turn:
    penalty = np.concatenate([np.zeros_like(penalty)] * (count - 1) + [penalty], axis=-1)
  return dataclasses.replace(
    scores,
    rewards={**scores.rewards, "overlong": penalty},
    total=scores.total + np.float32(config.overlong_weight) * penalty,
  )
