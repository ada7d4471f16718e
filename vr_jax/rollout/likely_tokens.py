"""Which tokens may be drawn: top-p, top-k and min-p, without sorting the vocabulary.

Each keeps the tokens whose probability is at least some edge, so a binary search finds the edge. A
positive float32 and its bits, read as a number, have the same order. So the search goes over bits,
from the highest to the lowest, and is exact. It takes a fixed number of sums over the vocabulary,
which may be split over devices; a sort would gather it.

What is kept keeps its weight, and what is not gets weight 0.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_BITS = 30  # of float32 numbers from 0 up to below 2


def keep_likely(
  weights: Float[Array, "slots vocab"], *, top_p: float, top_k: int = 0, min_p: float = 0.0
) -> Float[Array, "slots vocab"]:
  """Applies min-p, then top-k, then top-p to what they keep, as vLLM does.

  weights: probabilities. Their sum is 1, up to rounding.
  top_p: 1: all tokens.
  top_k: 0: all tokens.
  min_p: 0: all tokens.
  """
  kept = keep_min_p(weights, min_p) if min_p > 0 else weights
  kept = keep_top_k(kept, top_k) if top_k > 0 else kept
  if top_p >= 1:
    return kept
  return keep_top_p(kept, top_p if kept is weights else top_p * kept.sum(axis=-1))


def keep_top_p(
  weights: Float[Array, "slots vocab"], mass: float | Float[Array, "slots"]
) -> Float[Array, "slots vocab"]:
  """Keeps the most likely tokens whose weight together first reaches `mass`.

  A token is kept if the tokens that are more likely weigh less than `mass` together. So ties at the
  edge are kept together. The most likely token is always kept.

  weights: from 0 to below 2.
  mass: top-p times the sum of the weights; inf: all tokens.

  Source: Holtzman et al., arXiv 1904.09751.
  """
  least = jnp.finfo(jnp.float32).tiny  # the most likely token alone reaches it
  return _keep(weights, weights, jnp.maximum(mass, least))


def keep_top_k(
  weights: Float[Array, "slots vocab"], count: float | Float[Array, "slots"]
) -> Float[Array, "slots vocab"]:
  """Keeps the `count` most likely tokens, and ties with the last of them.

  weights: from 0 to below 2.
  count: at least 1; inf: all tokens.
  """
  return _keep(weights, jnp.ones_like(weights), jnp.asarray(count, jnp.float32))


def keep_min_p(
  weights: Float[Array, "slots vocab"], fraction: float | Float[Array, "slots"]
) -> Float[Array, "slots vocab"]:
  """Keeps the tokens that are at least `fraction` times as likely as the most likely one.

  Source: Nguyen et al., arXiv 2407.01082.
  """
  edge = jnp.asarray(fraction)[..., None] * weights.max(axis=-1, keepdims=True)
  return jnp.where(weights >= edge, weights, 0)


def _keep(
  weights: Float[Array, "slots vocab"],
  amounts: Float[Array, "slots vocab"],
  limit: Float[Array, "*slots"],
) -> Float[Array, "slots vocab"]:
  """Keeps tokens of which the strictly more likely ones have amounts below `limit` together."""
  keys = jax.lax.bitcast_convert_type(weights, jnp.int32)
  limit = jnp.broadcast_to(limit, weights.shape[:1])
  # More bits at a time read the vocabulary less often, but add more. By XLA's schedule for a v5p,
  # three take the fewest cycles; a CPU is fastest with one.
  edge = jax.lax.platform_dependent(
    keys,
    amounts,
    limit,
    cpu=functools.partial(find_edge, bits=1),
    default=functools.partial(find_edge, bits=3),
  )
  return jnp.where(keys >= edge[:, None], weights, 0)


def find_edge(
  keys: Int[Array, "slots vocab"],
  amounts: Float[Array, "slots vocab"],
  limit: Float[Array, "slots"],
  *,
  bits: int,
) -> Int[Array, "slots"]:
  """The largest key of each row such that the amounts from that key on reach `limit`; 0 if none.

  A sum of float32 numbers in a fixed order can't fall when one of them grows. So what the sums of
  thresholds say is monotone, in spite of rounding, and the result does not depend on `bits`.

  keys: from 0 to 2^30 - 1.
  bits: how many the search decides at a time; a divisor of 30.
  """

  def decide(number: Array, edge: Array) -> Array:
    shift = _BITS - bits * (number + 1)
    reached = jnp.zeros_like(edge)
    for digit in range(1, 2**bits):
      threshold = edge + (digit << shift)
      amount = jnp.where(keys >= threshold[:, None], amounts, 0).sum(axis=-1)
      reached += amount >= limit
    return edge + (reached << shift)

  return jax.lax.fori_loop(0, _BITS // bits, decide, jnp.zeros(len(keys), jnp.int32))
