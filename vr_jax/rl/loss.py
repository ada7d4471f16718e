"""The one policy loss of every recipe: clipped ratio, optional KL, any aggregation, sampler correction.

With l the log-prob of a sampled token under the trained policy, o under the policy at the start of the update, s under
the sampler, f under the frozen reference, and A its advantage:

    rho    = exp(l - o)
    tis    = min(exp(o - s), cap)                                     a constant to the gradient
    token  = -tis * min(rho A, clip(rho, 1 - low, 1 + high) A) + beta KL(l, f)
    loss   = sum over tokens of weight * token

The weights hold the aggregation (mean over tokens, over sequences, constant length). They are made once for a whole
batch, so that the sum over micro-batches is the loss of the batch, exactly.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Aggregation = Literal["sequence_mean", "token_mean", "constant_length"]
KlEstimator = Literal["k1", "k2", "k3"]


def token_weights(
  mask: Bool[Array, "prompts group time"],
  aggregation: Aggregation,
  *,
  constant_length: int | None = None,
) -> Float[Array, "prompts group time"]:
  """How much each token counts in the loss; 0 where `mask` is false.

  `sequence_mean`: mean over the tokens of a reply, then over replies (GRPO, arXiv 2402.03300, eq. 3).
  `token_mean`: mean over all tokens of the batch (DAPO, arXiv 2503.14476, eq. 8).
  `constant_length`: sum over tokens / `constant_length`, then mean over replies (Dr. GRPO, arXiv 2503.20783).
  Replies without a token in the mask do not count as replies; an empty mask gives weights 0.
  """
  mask = mask.astype(jnp.float32)
  length = mask.sum(axis=-1, keepdims=True)
  replies = jnp.maximum((length > 0).sum(), 1)
  if aggregation == "sequence_mean":
    return mask / jnp.maximum(length, 1) / replies
  if aggregation == "token_mean":
    return mask / jnp.maximum(mask.sum(), 1)
  if constant_length is None:
    raise ValueError("aggregation constant_length needs a length")
  return mask / constant_length / replies


def kl_divergence(
  log_probs: Float[Array, "*shape"], reference: Float[Array, "*shape"], estimator: KlEstimator
) -> Float[Array, "*shape"]:
  """Estimates of KL(policy || reference) from one sample of the policy, token by token.

  With x = log_probs - reference: k1 = x (unbiased, can be negative), k2 = x^2 / 2, k3 = exp(-x) - 1 + x (unbiased
  and never negative; GRPO's). Source: Schulman, "Approximating KL divergence", 2020.
  """
  x = log_probs - reference
  if estimator == "k1":
    return x
  if estimator == "k2":
    return 0.5 * x**2
  return jnp.exp(-x) - 1 + x


def policy_loss(
  log_probs: Float[Array, "prompts group time"],
  old_log_probs: Float[Array, "prompts group time"],
  advantages: Float[Array, "prompts group time"],
  weights: Float[Array, "prompts group time"],
  *,
  clip_low: float,
  clip_high: float,
  sampler_log_probs: Float[Array, "prompts group time"] | None = None,
  truncation: float | None = None,
  reference_log_probs: Float[Array, "prompts group time"] | None = None,
  kl_weight: float = 0.0,
  kl_estimator: KlEstimator = "k3",
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """The loss of this module's docstring, with what to log of it.

  Args:
    log_probs: of the sampled tokens under the parameters being trained.
    old_log_probs: at the start of the update; on-policy callers pass `stop_gradient(log_probs)`.
    advantages: one for each token.
    weights: of `token_weights`; tokens of weight 0 take no part.
    clip_low: ratios below 1 - clip_low gain nothing more.
    clip_high: ratios above 1 + clip_high gain nothing more (DAPO's clip-higher where it exceeds clip_low).
    sampler_log_probs: of the sampler; with `truncation`, corrects for its difference from the trainer.
    truncation: cap of the importance weight (truncated importance sampling); None: no correction.
    reference_log_probs: of the frozen reference; needed where kl_weight > 0.
    kl_weight: beta.
    kl_estimator: see `kl_divergence`.

  Returns:
    The loss, and sums over tokens by name: `mask` (tokens that count), and, to be divided by it, `ratio`, `clipped_low`,
    `clipped_high`, `kl` and `truncated`.
  """
  mask = weights > 0
  ratio = jnp.exp(jnp.where(mask, log_probs - old_log_probs, 0))
  clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
  token_loss = -jnp.minimum(ratio * advantages, clipped * advantages)
  sums = {
    "mask": mask.sum(),
    "ratio": jnp.where(mask, ratio, 0).sum(),
    "clipped_low": (mask & (ratio < 1 - clip_low) & (advantages < 0)).sum(),
    "clipped_high": (mask & (ratio > 1 + clip_high) & (advantages > 0)).sum(),
  }
  if truncation is not None and sampler_log_probs is not None:
    gap = jnp.exp(jnp.where(mask, jax.lax.stop_gradient(old_log_probs) - sampler_log_probs, 0))
    token_loss = token_loss * jnp.minimum(gap, truncation)
    sums["truncated"] = (mask & (gap > truncation)).sum()
  if reference_log_probs is not None:
    kl = kl_divergence(
      jnp.where(mask, log_probs, 0), jnp.where(mask, reference_log_probs, 0), kl_estimator
    )
    token_loss = token_loss + kl_weight * kl
    sums["kl"] = jnp.where(mask, kl, 0).sum()
  loss = jnp.where(mask, weights * token_loss, 0).sum()
  return loss, {name: value.astype(jnp.float32) for name, value in sums.items()}
