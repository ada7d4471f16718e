"""What is logged of the rewards and lengths of a batch of replies."""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vr_jax import records


def length_metrics(
  segment: Int[Array, "prompts group time"],
  segments: tuple[str, ...],
  multi_turn: bool,
  max_tokens: int,
) -> dict[str, Float[Array, ""]]:
  """Mean tokens of a reply and of each segment, and the share of replies that used up their tokens.

  segment: which one each token belongs to, -1 for none; multi_turn: each segment is a reply of its own.
  """
  tokens = jnp.stack([(segment == number).sum(-1) for number in range(len(segments))], axis=-1)
  reply = tokens if multi_turn else tokens.sum(-1)
  metrics = {
    "completions/mean_length": tokens.sum(-1).mean(),
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
  """Mean, standard deviation and share of zeros of every reward and of the total, by segment where there are several.

  Of a single turn's segments also the share that has no verdict.
  """
  rewards = {**scores.rewards, "total": scores.total}
  if len(segments) == 1:
    return _distribution(rewards, scores.valid)
  metrics = {}
  for number, name in enumerate(segments):
    named = {f"{name}/{reward}": value[..., number] for reward, value in rewards.items()}
    metrics |= _distribution(named, scores.valid[..., number])
    if not multi_turn:
      metrics[f"unscored_ratio/{name}"] = 1 - scores.valid[..., number].mean()
  return metrics


def _distribution(
  rewards: Mapping[str, Float[Array, "*shape"]], valid: Bool[Array, "*shape"]
) -> dict[str, Float[Array, ""]]:
  """Mean, standard deviation and share of zeros over the valid entries."""
  metrics = {}
  for name, reward in rewards.items():
    metrics[f"rewards/{name}/mean"] = reward.mean(where=valid)
    metrics[f"rewards/{name}/std"] = reward.std(where=valid)
    metrics[f"rewards/{name}/zero_ratio"] = (reward == 0).mean(where=valid)
  return metrics
