"""DAPO's soft penalty of overlong replies: a reward by length in tokens.

With |y| the tokens of a reply, M the longest that is wanted and B the buffer before it:

    0                 where |y| <= M - B
    (M - B - |y|) / B where M - B < |y| <= M
    -1                where M < |y|

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
  """The penalty of replies of so many tokens, in [-1, 0]. buffer: 1 or more."""
  return np.clip((max_tokens - buffer - tokens) / buffer, -1, 0).astype(np.float32)


def add_overlong_penalty(
  scores: records.Scores,
  segment: Int[np.ndarray, "prompts group time"],
  config: ml_collections.ConfigDict,
  *,
  multi_turn: bool,
) -> records.Scores:
  """Scores with the reward `overlong` (the penalty before its weight), and its weighted value in their total.

  Of several turns each is a reply of its own and has a penalty of its own. Of one reply in several segments the whole
  length counts, and the last segment has the penalty: it is what runs on.

  Args:
    scores: as an environment gave them, host arrays.
    segment: which segment each token belongs to; -1 where it belongs to none.
    config: the section `rl`. Where its overlong_buffer is 0, scores come back as they are.
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
