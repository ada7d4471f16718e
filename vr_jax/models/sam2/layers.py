"""Arithmetic that the parts of SAM2 share. Images are [batch, height, width, features]."""

from collections.abc import Callable

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped
import numpy as np

from vr_jax.models.common import layers as common
from vr_jax.models.sam2 import parameters

Weights = parameters.Weights
Image = Float[Array, "batch _ _ _"]

# Logits that attention holds at once, in bytes; more queries are computed in blocks.
LOGIT_BYTES = 64 * 2**20


def linear(weights: Weights, x: Float[Array, "..."]) -> Float[Array, "..."]:
  """A matrix and a bias."""
  matrix = weights["weight"]
  return common.project(x.astype(matrix.dtype), matrix) + weights["bias"]


def pointwise(weights: Weights, x: Image) -> Image:
  """A 1 x 1 convolution."""
  matrix = weights["weight"][0, 0]
  return common.project(x.astype(matrix.dtype), matrix) + weights["bias"]


def layer_norm(weights: Weights, x: Float[Array, "..."], epsilon: float) -> Float[Array, "..."]:
  """Centres and scales the last axis, with float32 statistics."""
  wide = x.astype(jnp.float32)
  centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
  normed = centred * lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + epsilon)
  return (normed * weights["weight"] + weights["bias"]).astype(x.dtype)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
  """The exact GELU, by erf as PyTorch has it; JAX's erfc takes three times as long on a CPU."""
  return 0.5 * x * (1 + lax.erf(x * np.float32(np.sqrt(0.5)).astype(x.dtype)))


def mlp(
  weights: Weights,
  x: Float[Array, "..."],
  *,
  between: int = 0,
  activation: Callable[[Array], Array] = jax.nn.relu,
) -> Float[Array, "..."]:
  """A multi-layer perceptron. between: its hidden layers besides the first and the last."""
  x = activation(linear(weights / "proj_in", x))
  for layer in range(between):
    x = activation(linear(weights / "layers" / layer, x))
  return linear(weights / "proj_out", x)


def convolution(weights: Weights, x: Image, *, stride: int, padding: int) -> Image:
  """A convolution of square kernels, of at most twice the stride. It divides height and width.

  Pixels are cut into squares of the stride, of which a kernel covers one, or two by two. So it is
  one matrix product, whose gradient is fast on CPUs, too.
  """
  kernel = weights["weight"]
  side, _, inputs, outputs = kernel.shape
  batch, height, width, _ = x.shape
  squares = -(-side // stride)
  rows, columns = height // stride, width // stride
  after = (squares - 1) * stride - padding
  x = jnp.pad(x.astype(kernel.dtype), ((0, 0), (padding, after), (padding, after), (0, 0)))
  x = x.reshape(batch, rows + squares - 1, stride, columns + squares - 1, stride, inputs)
  x = x.swapaxes(2, 3).reshape(batch, rows + squares - 1, columns + squares - 1, -1)
  offsets = [(i, j) for i in range(squares) for j in range(squares)]
  covered = [x[:, i : i + rows, j : j + columns] for i, j in offsets]
  room = squares * stride - side
  kernel = jnp.pad(kernel, ((0, room), (0, room), (0, 0), (0, 0)))
  kernel = kernel.reshape(squares, stride, squares, stride, inputs, outputs)
  kernel = kernel.swapaxes(1, 2).reshape(-1, outputs)
  return common.project(jnp.concatenate(covered, axis=-1), kernel) + weights["bias"]


def depthwise(weights: Weights, x: Image) -> Image:
  """A convolution of each feature alone, odd kernel, size kept: a sum of shifted images.

  Compilers for CPUs have no fast grouped convolution. There the sum is a loop, which is compiled in
  no time; elsewhere one fused operation.
  """
  kernel = weights["weight"][:, :, 0]
  side, (height, width) = kernel.shape[0], x.shape[1:3]
  reach = side // 2
  padded = jnp.pad(x.astype(kernel.dtype), ((0, 0), (reach, reach), (reach, reach), (0, 0)))

  def looped(padded: Array, kernel: Array) -> Array:
    def add(total: Array, index: Array) -> tuple[Array, None]:
      row, column = index // side, index % side
      shifted = lax.dynamic_slice(padded, (0, row, column, 0), x.shape)
      return total + shifted * kernel[row, column], None

    return lax.scan(add, jnp.zeros(x.shape, jnp.float32), jnp.arange(side * side), unroll=side)[0]

  def fused(padded: Array, kernel: Array) -> Array:
    total = jnp.zeros(x.shape, jnp.float32)
    for row, column in np.ndindex(side, side):
      total += padded[:, row : row + height, column : column + width] * kernel[row, column]
    return total

  total = lax.platform_dependent(padded, kernel, cpu=looped, default=fused)
  return total.astype(kernel.dtype) + weights["bias"]


def upscale(weights: Weights, x: Image) -> Image:
  """A transposed convolution that doubles height and width, kernel and stride 2."""
  kernel = weights["weight"]
  batch, height, width, _ = x.shape
  out = common.project(x.astype(kernel.dtype), kernel)  # [batch, height, width, 2, 2, out]
  out = out.transpose(0, 1, 3, 2, 4, 5).reshape(batch, 2 * height, 2 * width, -1)
  return out + weights["bias"]


def attend(
  query: Float[Array, "batch queries heads head_dim"],
  key: Float[Array, "batch keys heads head_dim"],
  value: Float[Array, "batch keys heads value_dim"],
  valid: Bool[Array, "batch keys"] | None = None,
) -> Float[Array, "batch queries heads value_dim"]:
  """Softmax attention, with float32 logits. valid: keys to attend to; None: all."""
  batch, queries, heads, head_dim = query.shape
  precision = common.precision(query.dtype)
  query = query * head_dim**-0.5

  def block(query: Array) -> Array:
    logits = jnp.einsum(
      "bkhd,bqhd->bhkq", key, query, precision=precision, preferred_element_type=jnp.float32
    )
    if valid is not None:
      logits = jnp.where(valid[:, None, :, None], logits, common.MASKED)
    shifted = jnp.exp(logits - lax.stop_gradient(logits.max(axis=-2, keepdims=True)))
    # Divided after the product with the values, which is smaller than the logits.
    mixed = jnp.einsum(
      "bhkq,bkhd->bqhd", shifted.astype(value.dtype), value, precision=precision,
      preferred_element_type=jnp.float32,
    )  # fmt: skip
    total = shifted.sum(axis=-2).transpose(0, 2, 1)[..., None]
    return (mixed / total).astype(query.dtype)

  blocks = _blocks(queries, 4 * batch * heads * key.shape[1])
  if blocks == 1:
    return block(query)
  parts = query.reshape(batch, blocks, queries // blocks, heads, head_dim).swapaxes(0, 1)
  return lax.map(block, parts).swapaxes(0, 1).reshape(batch, queries, heads, -1)


def _blocks(queries: int, bytes_per_query: int) -> int:
  """The least number of equal blocks of queries whose logits fit LOGIT_BYTES."""
  counts = [n for n in range(1, queries + 1) if queries % n == 0]
  return next((n for n in counts if queries // n * bytes_per_query <= LOGIT_BYTES), queries)


def resize(x: Shaped[Array, "... _ _"], height: int, width: int, *, smooth: bool = False):
  """Resizes images bilinearly, in float32. smooth: antialias where they get smaller."""
  if x.shape[-2:] == (height, width):
    return x.astype(jnp.float32)
  rows = jnp.asarray(_linear_weights(x.shape[-2], height, smooth=smooth))
  columns = jnp.asarray(_linear_weights(x.shape[-1], width, smooth=smooth))
  highest = lax.Precision.HIGHEST
  x = jnp.einsum("...hw,Hh->...Hw", x.astype(jnp.float32), rows, precision=highest)
  return jnp.einsum("...hw,Ww->...hW", x, columns, precision=highest)


def _linear_weights(old: int, new: int, *, smooth: bool) -> Float[np.ndarray, "new old"]:
  """The weights of the old pixels in each new one, as PyTorch's interpolate has them."""
  scale = old / new
  centre = scale * (np.arange(new) + 0.5) - 0.5
  if not smooth or scale <= 1:
    centre = np.clip(centre, 0, old - 1)
  stretch = scale if smooth and scale > 1 else 1.0
  distance = np.abs(np.arange(old) - centre[:, None]) / stretch
  weights = np.maximum(1 - distance, 0)
  return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def sine_positions(side: int, features: int) -> Float[np.ndarray, "positions features"]:
  """Fixed positions of a square of features: half of them for rows, half for columns."""
  half = features // 2
  steps = 2 * np.pi * (np.arange(1, side + 1) / (side + 1e-6))
  frequency = 10000.0 ** (2 * (np.arange(half) // 2) / half)
  angles = steps[:, None] / frequency
  waves = np.stack([np.sin(angles[:, 0::2]), np.cos(angles[:, 1::2])], axis=-1).reshape(side, half)
  rows = np.broadcast_to(waves[:, None], (side, side, half))
  columns = np.broadcast_to(waves[None], (side, side, half))
  return np.concatenate([rows, columns], axis=-1).reshape(side * side, features).astype(np.float32)
