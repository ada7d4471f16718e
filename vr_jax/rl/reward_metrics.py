"""Metrics of the rewards and lengths of a batch of replies."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from vr_jax import records


def length_metrics(
  segment: Int[Array, "prompts group time"],
  segments: tuple[str, ...],
  multi_turn: bool,
  max_tokens: int,
) -> dict[str, Float[Array, ""]]:
  """Lengths of replies and segments in tokens, and the fraction of replies of full length.

  segment: index of the segment that each token belongs to; -1 for none.
  segments: names of the segments.
  multi_turn: whether each segment is a reply of its own.
  max_tokens: the most tokens of a reply.
  """
  tokens = jnp.stack([(segment == number).sum(-1) for number in range(len(segments))], axis=-1)
  reply = tokens if multi_turn else tokens.sum(-1)
  metrics = {
    "completions/mean_length": tokens.sum(-1).mean(),
    "completions/min_length": tokens.sum(-1).min(),
    "completions/max_length": tokens.sum(-1).max(),
    "completions/clipped_ratio": (reply == max_tokens).sum() / jnp.maximum((reply > 0).sum(), 1),
  }
  named = {
    f"completions/{name}/mean_length": tokens[..., number].mean()
    for number, name in enumerate(segments)
  }
  return {**metrics, **(named if len(segments) > 1 else {})}


def score_metrics(
  scores: records.Scores, segments: tuple[str, ...], multi_turn: bool
) -> dict[str, Float[Array, ""]]:
  """Mean, standard deviation and fraction of zeros of each reward and of the total.

  If there are several segments, each has metrics of its own. If they are segments of one reply, the
  fraction that is not scored is added.
  """
  rewards = {**scores.rewards, "total": scores.total}
  if len(segments) == 1:
    return _distribution(rewards, scores.scored)
  metrics = {}
  for number, name in enumerate(segments):
    named = {f"{name}/{reward}": value[..., number] for reward, value in rewards.items()}
    metrics |= _distribution(named, scores.scored[..., number])
    if not multi_turn:
      metrics[f"unscored_ratio/{name}"] = 1 - scores.scored[..., number].mean()
  return metrics


def _distribution(
  rewards: Mapping[str, Float[Array | np.ndarray, "*shape"]],
  scored: Bool[Array | np.ndarray, "*shape"],
) -> dict[str, Float[Array, ""]]:
  """Mean, standard deviation and fraction of zeros of the scored entries."""
  metrics = {}
  for name, reward in rewards.items():
    metrics[f"rewards/{name}/mean"] = reward.mean(where=scored)
    metrics[f"rewards/{name}/std"] = reward.std(where=scored)
    metrics[f"rewards/{name}/zero_ratio"] = (reward == 0).mean(where=scored)
  return metrics
