"""Credit: how scalar rewards become one advantage per sampled token."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def group_advantages(
  rewards: Float[Array, "prompts group segments"],
  valid: Bool[Array, "prompts group segments"],
  *,
  normalise: bool = True,
  std_floor: float = 1e-4,
) -> Float[Array, "prompts group segments"]:
  """Rewards of each segment, centred (and normalised) over the replies to the same prompt.

  A group whose replies all score the same carries no signal: its advantages are 0, not noise / std_floor.
  Entries that are not valid (a judge that never answered) take no part in mean or std and get advantage 0.
  With `normalise=False` the group's mean is taken off and the scale of the rewards is kept.

  Source: DeepSeekMath (GRPO), arXiv 2402.03300, section 4.1; by segment VideoP2R, arXiv 2511.11113, eq. 6;
  without std Dr. GRPO, arXiv 2503.20783. The std is that of the population (divisor: the valid replies).
  """
  mean, std = _group_moments(rewards, valid)
  centred = jnp.where(valid, rewards - mean, 0)
  scale = jnp.maximum(std, std_floor) if normalise else 1.0
  return jnp.where(std > std_floor, centred / scale, 0)


def has_signal(
  rewards: Float[Array, "prompts group segments"],
  valid: Bool[Array, "prompts group segments"],
  *,
  std_floor: float = 1e-4,
) -> Bool[Array, "prompts segments"]:
  """Whether the replies of a group differ in reward at all: where not, there is nothing to learn from."""
  _, std = _group_moments(rewards, valid)
  return (std > std_floor)[:, 0]


def token_advantages(
  advantages: Float[Array, "prompts group segments"], segment: Int[Array, "prompts group time"]
) -> Float[Array, "prompts group time"]:
  """The advantage of the segment that each token belongs to; tokens of segment -1 get 0."""
  chosen = jnp.take_along_axis(advantages, jnp.maximum(segment, 0), axis=2)
  return jnp.where(segment >= 0, chosen, 0)


def _group_moments(rewards: Array, valid: Array) -> tuple[Array, Array]:
  count = jnp.maximum(valid.sum(axis=1, keepdims=True), 1)
  mean = jnp.where(valid, rewards, 0).sum(axis=1, keepdims=True) / count
  centred = jnp.where(valid, rewards - mean, 0)
  return mean, jnp.sqrt((centred**2).sum(axis=1, keepdims=True) / count)
