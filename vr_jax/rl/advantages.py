"""Advantages from rewards alone: each reply is compared with the other replies to its prompt.

A segment is a part of an episode with rewards of its own: a part of a reply, or a turn. With
r[i, k] the total reward of segment k of episode i, `estimator` decides which rewards a token's
advantage is computed from:

    segments   the token's own segment                                       r[i, k]
    joint      the sum; a reply with a segment not scored is left out        sum over k of r[i, k]
    episode    the sum over scored segments                                  sum over k of r[i, k]
    outcome    the last segment, which has the answer                        r[i, -1]

`baseline` decides what is subtracted:

    group_mean      the mean over the group (GRPO)
    leave_one_out   the mean over the other replies of the group (RLOO)

Advantages from a critic (`estimator="gae"`) are in rl/gae.py.
"""

import functools
from typing import Literal, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from vr_jax import records
from vr_jax.rl import reward_metrics

AdvantageEstimator = Literal["segments", "joint", "episode", "outcome", "gae"]
Baseline = Literal["group_mean", "leave_one_out"]


@functools.partial(
  jax.jit,
  static_argnames=(
    "segments",
    "multi_turn",
    "estimator",
    "baseline",
    "normalize_by_std",
    "noise",
    "max_tokens",
  ),
)
def compute_advantages(
  scores: records.Scores,
  segment: Int[Array, "prompts group time"],
  *,
  segments: tuple[str, ...],
  multi_turn: bool = False,
  estimator: AdvantageEstimator,
  baseline: Baseline = "group_mean",
  normalize_by_std: bool,
  noise: float = 0.0,
  key: Key[Array, ""] | None = None,
  max_tokens: int,
) -> tuple[Float[Array, "prompts group time"], Bool[Array, "prompts"], dict[str, Float[Array, ""]]]:
  """The advantage of every sampled token, and metrics of the rewards.

  Args:
    scores: the rewards of the replies.
    segment: index of the segment that each token belongs to; -1 for none.
    segments: names of the segments.
    multi_turn: whether segments are turns, each with a reply of its own.
    estimator: see above; `gae` is treated as `episode`, to get the metrics.
    baseline: see above.
    normalize_by_std: whether advantages are divided by the group's standard deviation.
    noise, key: see `add_noise`; no key is needed where noise is 0.
    max_tokens: the most tokens of a reply.

  Returns:
    Advantages; whether the advantages of the replies to each prompt differ; metrics by name.
  """
  advantages, signal = segment_advantages(
    scores, estimator=estimator, baseline=baseline, normalize_by_std=normalize_by_std
  )
  metrics = {
    "frac_reward_zero_std": 1 - signal.mean(),
    **reward_metrics.length_metrics(segment, segments, multi_turn, max_tokens),
    **reward_metrics.score_metrics(scores, segments, multi_turn),
  }
  if len(segments) > 1 and estimator == "segments":
    for number, name in enumerate(segments):
      metrics[f"frac_reward_zero_std/{name}"] = 1 - signal[:, number].mean()
  if noise and key is not None:
    scored = _combined_rewards(scores, estimator)[1]
    advantages = add_noise(advantages, scored, key, noise)
    signal = scored.any(axis=1)
  return token_advantages(advantages, segment), signal.any(axis=-1), metrics


def segment_advantages(
  scores: records.Scores,
  *,
  estimator: AdvantageEstimator,
  baseline: Baseline = "group_mean",
  normalize_by_std: bool,
) -> tuple[Float[Array, "prompts group segments"], Bool[Array, "prompts _"]]:
  """The advantage of each segment, and whether the rewards within a group differ.

  The second result has a column for each segment with `estimator="segments"`, otherwise one column.
  """
  rewards, scored = _combined_rewards(scores, estimator)
  advantages = group_advantages(
    rewards, scored, baseline=baseline, normalize_by_std=normalize_by_std
  )
  return jnp.broadcast_to(advantages, scores.total.shape), has_signal(rewards, scored)


def add_noise(
  advantages: Float[Array, "prompts group segments"],
  scored: Bool[Array, "prompts group _"],
  key: Key[Array, ""],
  noise: float,
) -> Float[Array, "prompts group segments"]:
  """Adds normal noise of this standard deviation to what is scored.

  So replies that all earn the same do not stay without a gradient.

  scored: of each segment, or one for all segments of a reply, which then share the noise.

  Source: TinyLLaVA-Video-R1, arXiv 2504.09641, section 3.3.
  """
  return advantages + jnp.where(scored, noise * jax.random.normal(key, scored.shape), 0)


def group_advantages(
  rewards: Float[Array, "prompts group segments"],
  scored: Bool[Array, "prompts group segments"],
  *,
  baseline: Baseline = "group_mean",
  normalize_by_std: bool = True,
  std_floor: float = 1e-4,
) -> Float[Array, "prompts group segments"]:
  """Rewards minus the baseline of their group, divided by the group's standard deviation.

  If all replies of a group have the same reward, there is no signal: advantages are 0, not
  noise / std_floor. Entries that are not scored are left out of mean and standard deviation and get
  advantage 0. With `normalize_by_std=False` the scale of the rewards is kept.

  The standard deviation is that of the population: the divisor is the number of scored replies.

  Source:
    GRPO: DeepSeekMath, arXiv 2402.03300, section 4.1
    by segment: VideoP2R, arXiv 2511.11113, eq. 6
    without the standard deviation: Dr. GRPO, arXiv 2503.20783
    leave_one_out: RLOO, arXiv 2402.14740, eq. 8
  """
  count, mean, std = _group_moments(rewards, scored)
  centred = jnp.where(scored, rewards - mean, 0)
  if baseline == "leave_one_out":
    # r_i - (sum of the others) / (n - 1) = (r_i - mean) n / (n - 1).
    centred = centred * (count / jnp.maximum(count - 1, 1))
  scale = jnp.maximum(std, std_floor) if normalize_by_std else 1.0
  return jnp.where(std > std_floor, centred / scale, 0)


def has_signal(
  rewards: Float[Array, "prompts group segments"],
  scored: Bool[Array, "prompts group segments"],
  *,
  std_floor: float = 1e-4,
) -> Bool[Array, "prompts segments"]:
  """Whether the rewards within a group differ; if they do not, there is nothing to learn from."""
  _, _, std = _group_moments(rewards, scored)
  return (std > std_floor)[:, 0]


def token_advantages(
  advantages: Float[Array, "prompts group segments"], segment: Int[Array, "prompts group time"]
) -> Float[Array, "prompts group time"]:
  """The advantage of each token's segment; tokens of segment -1 get 0."""
  chosen = jnp.take_along_axis(advantages, jnp.maximum(segment, 0), axis=2)
  return jnp.where(segment >= 0, chosen, 0)


def _combined_rewards(scores: records.Scores, estimator: AdvantageEstimator) -> tuple[Array, Array]:
  """Rewards and their validity, [prompts, group, segments], or 1 in place of segments if shared."""
  total, scored = cast(Array, scores.total), cast(Array, scores.scored)
  if estimator == "segments":
    return total, scored
  if estimator == "outcome":
    return total[..., -1:], scored[..., -1:]
  if estimator == "joint":
    return total.sum(axis=-1, keepdims=True), scored.all(axis=-1, keepdims=True)
  total = jnp.where(scored, total, 0).sum(axis=-1, keepdims=True)
  return total, scored.any(axis=-1, keepdims=True)


def _group_moments(rewards: Array, scored: Array) -> tuple[Array, Array, Array]:
  """Number of scored replies, mean and standard deviation of each group, [prompts, 1, segments]."""
  count = jnp.maximum(scored.sum(axis=1, keepdims=True), 1)
  mean = jnp.where(scored, rewards, 0).sum(axis=1, keepdims=True) / count
  centred = jnp.where(scored, rewards - mean, 0)
  return count, mean, jnp.sqrt((centred**2).sum(axis=1, keepdims=True) / count)
