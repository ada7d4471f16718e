"""Samples tokens with settings of each slot's own: seed, temperature, top-p, top-k and min-p.

A server decodes requests of strangers together. If their settings were part of a program, as in
`sampler.Decoding`, each new temperature would compile one. What a slot draws depends on its own
logits and settings alone.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32
import numpy as np

from vr_jax.rollout import inverse_cdf, likely_tokens, sampler


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
@typing.no_type_check  # tree transformations rebuild it with leaves that are no arrays
class RowSampling:
  """The settings of each slot.

  key_data: of the reply's key, see `reply_key`.
  temperature: 0 is greedy.
  top_p, top_k, min_p: as in `sampler.Decoding`.
  """

  key_data: UInt32[Array | np.ndarray, "slots words"]
  temperature: Float[Array | np.ndarray, "slots"]
  top_p: Float[Array | np.ndarray, "slots"]
  top_k: Int[Array | np.ndarray, "slots"]
  min_p: Float[Array | np.ndarray, "slots"]


def reply_key(seed: int) -> UInt32[np.ndarray, "words"]:
  """The data of the key that `sampler.sample` has for the only reply to the only prompt.

  seed: of its key, of 32 bits.
  """
  return np.asarray(_reply_key(np.uint32(seed)))


@jax.jit
def _reply_key(seed: UInt32[Array, ""]) -> UInt32[Array, "words"]:
  zero = jnp.zeros(1, jnp.int32)
  return jax.random.key_data(sampler.reply_keys(jax.random.key(seed), zero, zero))[0]


def divisor(rows: RowSampling) -> Float[Array, "slots 1"]:
  """What `forward.token_logits` divides the logits of each slot by."""
  temperature = jnp.asarray(rows.temperature)
  return jnp.where(temperature > 0, temperature, 1.0)[:, None]


def sample_tokens(
  logits: Float[Array, "slots vocab"], rows: RowSampling, index: Int[Array, "slots"]
) -> tuple[Int[Array, "slots"], Float[Array, "slots"]]:
  """Samples a token for each slot, and returns it with its log-prob among all tokens.

  logits: already divided by `divisor`, and without tokens that are not allowed.
  index: number of the step, folded into the keys of the slots.
  """
  log_probs = jax.nn.log_softmax(logits)
  top_p, top_k, min_p = (jnp.asarray(x) for x in (rows.top_p, rows.top_k, rows.min_p))

  def restrict(weights: Array) -> Array:
    likely = likely_tokens.keep_min_p(weights, min_p)
    likely = likely_tokens.keep_top_k(likely, jnp.where(top_k > 0, top_k, jnp.inf))
    total = jnp.where((top_k > 0) | (min_p > 0), likely.sum(axis=-1), 1.0)
    return likely_tokens.keep_top_p(likely, jnp.where(top_p < 1, top_p * total, jnp.inf))

  # The search is left out where no slot needs it.
  limited = (top_p < 1) | (top_k > 0) | (min_p > 0)
  kept = jax.lax.cond(limited.any(), restrict, lambda x: x, jnp.exp(log_probs))
  keys = jax.random.wrap_key_data(jnp.asarray(rows.key_data))
  drawn = inverse_cdf.sample(kept, sampler.uniform(keys, index))
  greedy = jnp.argmax(logits, axis=-1)
  token = jnp.where(jnp.asarray(rows.temperature) > 0, drawn, greedy).astype(jnp.int32)
  return token, jnp.take_along_axis(log_probs, token[:, None], axis=-1)[:, 0]
