"""The policy loss of all recipes: clipped ratio, KL penalty, aggregation and sampler correction.

l is the log-prob of a sampled token under the policy being trained, o under the policy before the
first gradient step on this batch (verl's old_log_probs), s under the sampler and f under the frozen
reference. A is the token's advantage.

    rho    = exp(l - o)
    tis    = min(exp(o - s), cap)                                     without gradient
    token  = -tis * min(rho A, clip(rho, 1 - eps_low, 1 + eps_high) A) + beta KL(l, f)
    loss   = sum over tokens of weight * token

Options, each off by default:

    sequence ratio   rho_t = m exp(l_t - stop(l_t)), m = stop(exp(mean of l - o over the reply)).
                     Every token is clipped by the ratio of its whole reply but keeps its own
                     advantage. If all tokens of a reply have the same advantage, the weights are
                     those of sequence_mean and tis is off, this is GSPO, in value and gradient
                     (arXiv 2507.18071, eq. 5 and 14).
    cispo            stop(clip(rho, 1 - eps_low, 1 + eps_high)) A l replaces the term min(...); TIS
                     and KL are as above. The weight is clipped, and every token keeps its gradient
                     (MiniMax-M1, arXiv 2506.13585, eq. 4 and 5; there eps_low is 1 or more, so that
                     there is no lower bound).
    dual clip        for A < 0 max(min(...), c A) replaces the term min(...), so that a token's
                     loss, before tis and KL, never exceeds c |A| (arXiv 1912.09729, eq. 5).

Without effect: dual clip with cispo, tis_cap without log-probs of the sampler, and kl_weight
without those of the reference.

The weights carry the aggregation (mean over tokens, mean over sequences, constant length). They are
computed once for the whole batch, so the sum over micro-batches is exactly the loss of the batch.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

Aggregation = Literal["sequence_mean", "token_mean", "constant_length"]
KlEstimator = Literal["k1", "k2", "k3"]
ImportanceSamplingLevel = Literal["token", "sequence"]
Objective = Literal["clip", "cispo"]


def token_weights(
  mask: Bool[Array, "prompts group time"],
  aggregation: Aggregation,
  *,
  constant_length: int | None = None,
) -> Float[Array, "prompts group time"]:
  """The weight of each token in the loss; 0 outside the mask.

  sequence_mean: mean over the tokens of a reply, then over replies (GRPO, arXiv 2402.03300, eq. 3).
  token_mean: mean over all tokens of the batch (DAPO, arXiv 2503.14476, eq. 8).
  constant_length: sum over the tokens of a reply divided by `constant_length`, then mean over
    replies (Dr. GRPO, arXiv 2503.20783).

  Replies without a token in the mask are not counted; an empty mask gives weights of 0.
  """
  mask = mask.astype(jnp.float32)
  length = mask.sum(axis=-1, keepdims=True)
  replies = jnp.maximum((length > 0).sum(), 1)
  if aggregation == "sequence_mean":
    return mask / jnp.maximum(length, 1) / replies
  if aggregation == "token_mean":
    return mask / jnp.maximum(mask.sum(), 1)
  if aggregation != "constant_length":
    raise ValueError(f"unknown aggregation {aggregation!r}")
  if constant_length is None:
    raise ValueError("aggregation constant_length needs a length")
  return mask / constant_length / replies


def kl_divergence(
  log_probs: Float[Array, "*shape"], reference: Float[Array, "*shape"], estimator: KlEstimator
) -> Float[Array, "*shape"]:
  """Estimates KL(policy || reference) for each token from one sample of the policy.

  With x = log_probs - reference:
    k1 = x                  unbiased, can be negative
    k2 = x^2 / 2            biased, never negative
    k3 = exp(-x) - 1 + x    unbiased, never negative; the estimate of GRPO

  Unbiased in value, if the token was sampled from this policy, but not in gradient. The gradient of
  k1 has mean 0: as a term of the loss it does not hold the policy near the reference.

  Source: Schulman, "Approximating KL divergence", 2020.
  """
  x = log_probs - reference
  if estimator == "k1":
    return x
  if estimator == "k2":
    return 0.5 * x**2
  if estimator == "k3":
    return jnp.exp(-x) - 1 + x
  raise ValueError(f"unknown KL estimator {estimator!r}")


def policy_loss(
  log_probs: Float[Array, "prompts group time"],
  old_log_probs: Float[Array, "prompts group time"],
  advantages: Float[Array, "prompts group time"],
  weights: Float[Array, "prompts group time"],
  *,
  clip_epsilon_low: float,
  clip_epsilon_high: float,
  importance_sampling_level: ImportanceSamplingLevel = "token",
  objective: Objective = "clip",
  dual_clip: float | None = None,
  sampler_log_probs: Float[Array, "prompts group time"] | None = None,
  tis_cap: float | None = None,
  reference_log_probs: Float[Array, "prompts group time"] | None = None,
  kl_weight: float = 0.0,
  kl_estimator: KlEstimator = "k3",
  kl_clamp: float | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
  """The loss in this module's docstring, and its metrics.

  Args:
    log_probs: of the sampled tokens under the parameters being trained.
    old_log_probs: before the first gradient step on this batch, or `log_probs` again if this is
      that step. No gradient flows through them.
    advantages: one for each token.
    weights: from `token_weights`; tokens of weight 0 are ignored.
    clip_epsilon_low: the lower clip bound is 1 - this; active for negative advantages.
    clip_epsilon_high: the upper clip bound is 1 + this; active for positive advantages. Setting it
      above clip_epsilon_low gives DAPO's clip-higher. `cispo` has both bounds for any advantage.
    importance_sampling_level: `sequence` gives all tokens of a reply one ratio; the time axis has
      to hold the whole reply.
    objective: `clip` is PPO's; `cispo` clips the weight of the gradient instead.
    dual_clip: c, more than 1 + clip_epsilon_high; None: no bound for negative advantages. Ignored
      with `cispo`.
    sampler_log_probs: of the sampler; with `tis_cap`, corrects its difference from the trainer.
    tis_cap: cap of the importance weight (truncated importance sampling); None: no correction.
      Ignored without sampler_log_probs.
    reference_log_probs: of the frozen reference; None: no KL term.
    kl_weight: beta; ignored without reference_log_probs.
    kl_estimator: see `kl_divergence`.
    kl_clamp: bound of a token's KL estimate, both ways; a token beyond it has no gradient from this
      term. None: no bound.

  Returns:
    The loss, and sums over tokens by name: `mask` (the number of tokens), `policy_ratio`, `kl`; and
    the numbers of tokens at a bound, `clip_ratio/low`, `clip_ratio/high` (for `cispo`, whatever the
    sign of the advantage), `clip_ratio/dual` and `sampling/tis_capped`.
  """
  old_log_probs = jax.lax.stop_gradient(old_log_probs)
  mask = weights > 0
  ratio = _importance_ratio(log_probs, old_log_probs, mask, importance_sampling_level)
  sums = {"mask": mask.sum(), "policy_ratio": jnp.where(mask, ratio, 0).sum()}
  clip = {"min_ratio": 1 - clip_epsilon_low, "max_ratio": 1 + clip_epsilon_high}
  if objective == "cispo":
    token_loss, clipped = _cispo(log_probs, ratio, advantages, mask, **clip)
  elif objective == "clip":
    token_loss, clipped = _clipped(ratio, advantages, mask, **clip, dual=dual_clip)
  else:
    raise ValueError(f"unknown objective {objective!r}")
  sums |= clipped
  if tis_cap is not None and sampler_log_probs is not None:
    tis_ratio = jnp.exp(jnp.where(mask, old_log_probs - sampler_log_probs, 0))
    token_loss = token_loss * jnp.minimum(tis_ratio, tis_cap)
    sums["sampling/tis_capped"] = (mask & (tis_ratio > tis_cap)).sum()
  if reference_log_probs is not None:
    kl = kl_divergence(
      jnp.where(mask, log_probs, 0), jnp.where(mask, reference_log_probs, 0), kl_estimator
    )
    if kl_clamp is not None:
      kl = jnp.clip(kl, -kl_clamp, kl_clamp)
    token_loss = token_loss + kl_weight * kl
    sums["kl"] = jnp.where(mask, kl, 0).sum()
  loss = jnp.where(mask, weights * token_loss, 0).sum()
  return loss, {name: value.astype(jnp.float32) for name, value in sums.items()}


def _importance_ratio(
  log_probs: Array, old_log_probs: Array, mask: Array, level: ImportanceSamplingLevel
) -> Float[Array, "prompts group time"]:
  """The ratio pi / pi_old of each token or of its reply; 1 outside the mask."""
  log_ratio = jnp.where(mask, log_probs - old_log_probs, 0)
  if level == "token":
    return jnp.exp(log_ratio)
  if level != "sequence":
    raise ValueError(f"unknown importance sampling level {level!r}")
  length = jnp.maximum(mask.sum(axis=-1, keepdims=True), 1)
  mean = jax.lax.stop_gradient(log_ratio.sum(axis=-1, keepdims=True) / length)
  # log_ratio - stop(log_ratio) is 0 and has the gradient of the token's own log-prob.
  sequence_log_ratio = mean + (log_ratio - jax.lax.stop_gradient(log_ratio))
  return jnp.where(mask, jnp.exp(sequence_log_ratio), 1)


def _clipped(
  ratio: Array,
  advantages: Array,
  mask: Array,
  *,
  min_ratio: float,
  max_ratio: float,
  dual: float | None,
) -> tuple[Array, dict[str, Array]]:
  """The loss of each token with PPO's clipped objective, and how many tokens are clipped."""
  clipped = jnp.clip(ratio, min_ratio, max_ratio)
  token_loss = -jnp.minimum(ratio * advantages, clipped * advantages)
  sums = {
    "clip_ratio/low": (mask & (ratio < min_ratio) & (advantages < 0)).sum(),
    "clip_ratio/high": (mask & (ratio > max_ratio) & (advantages > 0)).sum(),
  }
  if dual is None:
    return token_loss, sums
  bounded = jnp.minimum(token_loss, -dual * advantages)
  sums["clip_ratio/dual"] = (mask & (ratio > dual) & (advantages < 0)).sum()
  return jnp.where(advantages < 0, bounded, token_loss), sums


def _cispo(
  log_probs: Array,
  ratio: Array,
  advantages: Array,
  mask: Array,
  *,
  min_ratio: float,
  max_ratio: float,
) -> tuple[Array, dict[str, Array]]:
  """The loss of each token with CISPO's objective, and how many weights are clipped."""
  weight = jax.lax.stop_gradient(jnp.clip(ratio, min_ratio, max_ratio))
  sums = {
    "clip_ratio/low": (mask & (ratio < min_ratio)).sum(),
    "clip_ratio/high": (mask & (ratio > max_ratio)).sum(),
  }
  return -weight * advantages * jnp.where(mask, log_probs, 0), sums
