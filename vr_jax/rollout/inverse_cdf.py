"""Draws tokens from their weights, with one random number for each draw."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

_BLOCKS = 128  # of the vocabulary


def sample(
  weights: Float[Array, "slots vocab"], fraction: Float[Array, "slots"]
) -> Int[Array, "slots"]:
  """Draws the first token at which the running sum of the weights exceeds `fraction` of the total.

  A token of weight 0 is never drawn. This needs one random number, whereas the Gumbel trick needs
  one for each token of the vocabulary. The sum runs over blocks of the vocabulary, then within the
  chosen block, which keeps rounding errors small. Blocks are reduced, not gathered, so that the
  vocabulary may be split over devices.
  """
  size = -(-weights.shape[1] // _BLOCKS)
  padded = jnp.pad(weights, ((0, 0), (0, _BLOCKS * size - weights.shape[1])))
  blocks = padded.reshape(-1, _BLOCKS, size)
  sums = blocks.sum(axis=-1)
  wanted = fraction * sums.sum(axis=-1)
  block, before = _first_above(sums, wanted)
  chosen = jnp.where(jnp.arange(_BLOCKS)[:, None] == block[:, None, None], blocks, 0).sum(axis=1)
  place, _ = _first_above(chosen, wanted - before)
  return block * size + place


def _first_above(
  weights: Float[Array, "slots places"], wanted: Float[Array, "slots"]
) -> tuple[Int[Array, "slots"], Float[Array, "slots"]]:
  """The first index at which the running sum of the weights exceeds `wanted`, and the sum before.

  If it never does because of rounding, the index of the largest weight.
  """
  running = jnp.cumsum(weights, axis=-1)
  above = (running > wanted[:, None]) & (weights > 0)
  place = jnp.where(above.any(axis=-1), above.argmax(axis=-1), weights.argmax(axis=-1))
  here = jnp.arange(weights.shape[-1]) == place[:, None]
  return place, jnp.where(here, running - weights, 0).sum(axis=-1)
