"""How far the sampler's log-probs lie from the trainer's, for single tokens and whole replies.

d = o - s is the difference of a token's log-probs: o by the trainer before its update, s by the
sampler. A reply's d is the sum over its tokens. The mean of exp(d) says little: tokens are drawn by
s, so its expectation is 1 whatever o is (with top-p, top-k or min-p, the mass they keep by o over
that by s; if s is among the kept tokens, the mass that they keep by o, and d contains minus its
log). These do tell:

    mean |d|           in nats
    k3                 exp(d) - 1 - d, never negative; its mean estimates KL(sampler || trainer)
    p99                what |d| exceeds for at most 1 % of the tokens, or of the replies

A batch is split over micro-batches and devices, so each gives sums (`mismatch_sums`), of which the
metrics of the whole are made (`mismatch_metrics`). For p99 these are counts of |d| above each of
EDGES, integers: p99 is the smallest edge that at most 1 % lie above. It is never below the exact
percentile, the smallest of the values that at most 1 % lie above, and at most 2^(1/8) times it
(9.1 % more), from 2^-24 to 2^14 nats; it is inf above.
"""

from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
import numpy as np

EDGES = np.concatenate([[0.0], 2.0 ** (np.arange(38 * 8 + 1) / 8 - 24), [np.inf]]).astype(
  np.float32
)
MAX_LOG_RATIO = 20.0  # a larger d counts as this in k3, whose mean would else overflow


def mismatch_sums(
  old_log_probs: Float[Array, "prompts group time"],
  sampler_log_probs: Float[Array, "prompts group time"],
  mask: Bool[Array, "prompts group time"],
) -> dict[str, dict[str, Array]]:
  """Sums over `tokens` and over `replies`, by name; those of micro-batches may be added.

  mask: tokens that the model sampled. Other tokens, and replies without any, are left out.

  Each has `count` and `above` [edges], int32; `ratio`, `absolute` and `k3`, float32.
  """
  difference = jnp.where(mask, old_log_probs - sampler_log_probs, 0)
  return {
    "tokens": _sums(difference, mask),
    "replies": _sums(difference.sum(axis=-1), mask.any(axis=-1)),
  }


def mismatch_metrics(sums: Mapping[str, Mapping[str, Array]]) -> dict[str, Array]:
  """The metrics `sampling/…` of a batch, from its sums; 0 if it has no token."""
  tokens, replies = (_metrics(sums[name]) for name in ("tokens", "replies"))
  return {
    "sampling/importance_sampling_ratio/mean": tokens["ratio"],
    "sampling/sampling_logp_difference/mean": tokens["absolute"],
    "sampling/sampling_logp_difference/p99": tokens["p99"],
    "sampling/k3": tokens["k3"],
    "sampling/reply_logp_difference/mean": replies["absolute"],
    "sampling/reply_logp_difference/p99": replies["p99"],
    "sampling/reply_k3": replies["k3"],
  }


def _sums(difference: Array, mask: Array) -> dict[str, Array]:
  absolute, bounded = jnp.abs(difference), jnp.minimum(difference, MAX_LOG_RATIO)
  terms = {
    "ratio": jnp.exp(difference),
    "absolute": absolute,
    # expm1 keeps the digits of a small d; the maximum takes away what rounding puts below 0.
    "k3": jnp.maximum(jnp.expm1(bounded) - bounded, 0),
  }
  # "Not at most", so that a nan counts as above. Unlike a scatter, comparisons leave the tokens on
  # their devices.
  above = mask & ~(absolute <= EDGES.reshape(-1, *[1] * mask.ndim))
  return {
    "count": mask.sum(dtype=jnp.int32),
    "above": above.sum(axis=tuple(range(1, above.ndim)), dtype=jnp.int32),
    **{name: jnp.where(mask, term, 0).sum() for name, term in terms.items()},
  }


def _metrics(sums: Mapping[str, Array]) -> dict[str, Array]:
  few = sums["above"] <= sums["count"] // 100
  means = {name: sums[name] / jnp.maximum(sums["count"], 1) for name in ("ratio", "absolute", "k3")}
  return {**means, "p99": jnp.where(few.any(), jnp.asarray(EDGES)[few.argmax()], jnp.nan)}
