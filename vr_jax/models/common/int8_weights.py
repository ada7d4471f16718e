"""Matrices of stacked layers as 8-bit integers, with a float32 scale for each output channel.

    W[:, channel] ~ scale[channel] * values[:, channel],  scale[channel] = max |W[:, channel]| / 127

So a step of decoding reads half of the bytes that bfloat16 has, a quarter of float32's. A product
is (x @ values) * scale: integers up to 127 are exact in every dtype of activations, so that the
rounding of the weights to integers is all that differs from float weights.

A weight is off by at most half of its channel's scale. A channel of zeros stays exactly 0. One with
a weight that is not finite has the scale NaN: all its products are NaN.
"""

import dataclasses
import typing

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8

LEVELS = 127  # symmetric: -128 is not used


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
@typing.no_type_check  # tree transformations rebuild it with leaves that are no arrays
class Int8Matrices:
  """Matrices [layers, *inputs, *outputs], as the value of a parameter that decoding reads.

  scale: of each output channel; its axes of inputs have size 1.
  """

  values: Int8[Array, "layers ..."]
  scale: Float[Array, "layers ..."]


def quantize(x: Float[Array, "layers ..."], *, inputs: int) -> Int8Matrices:
  """Rounds each weight to the nearest multiple of its channel's scale.

  inputs: number of axes after the first that a product contracts.
  """
  x = x.astype(jnp.float32)
  most = jnp.abs(x).max(axis=range(1, 1 + inputs), keepdims=True)
  scale = jnp.where(jnp.isfinite(most), most / LEVELS, jnp.nan)
  # Below the normal numbers, which devices may take for 0, a scale would be no divisor.
  scale = jnp.where(scale < jnp.finfo(jnp.float32).tiny, 0, scale)
  rounded = jnp.round(x / jnp.where(scale > 0, scale, 1))
  values = jnp.where(scale > 0, jnp.clip(rounded, -LEVELS, LEVELS), 0)
  return Int8Matrices(values.astype(jnp.int8), scale)


def dequantize(matrices: Int8Matrices) -> Float[Array, "layers ..."]:
  """The float32 weights that the integers stand for."""
  return matrices.values.astype(jnp.float32) * matrices.scale


def dot(
  rows: Float[Array, "*rows inner"],
  values: Int8[Array, "inner out"],
  scale: Float[Array, "out"],
  precision: lax.Precision,
) -> Float[Array, "*rows out"]:
  """The product with a matrix, summed and scaled in float32, in the dtype of `rows`."""
  product = jnp.dot(
    rows, values.astype(rows.dtype), precision=precision, preferred_element_type=jnp.float32
  )
  return (product * scale).astype(rows.dtype)
