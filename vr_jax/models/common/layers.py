"""Arithmetic that the vision tower and the language model share."""

from collections.abc import Callable
import math
from typing import Any

from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int8, PyTree, UInt16

from vr_jax.models.common import float32_gradients, int8_weights, stored_weights

# Large enough that exp(x - max) is 0, small enough that a row without any key stays finite.
MASKED = -1e30

UNROLLED = 8  # networks of at most this many layers are unrolled, not scanned

# Suffixes of an adapter's two matrices (lora.py), appended to the name of the adapted weight.
LORA_A, LORA_B = "_lora_a", "_lora_b"

OUT = "out"  # name of attention's output projection, [layers, heads, head_dim, embed]
BIAS = "_bias"  # suffix of a bias, appended to the name of the weight
SCALE = "_scale"  # likewise of the scale of a matrix of integers (int8_weights.py)


def parameter(
  rngs: nnx.Rngs, axes: tuple[str | None, ...], shape: tuple[int, ...], *, scale: float
) -> nnx.Param:
  """A float32 weight, normal with standard deviation `scale`. axes: logical names."""
  return nnx.Param(scale * jax.random.normal(rngs.params(), shape, jnp.float32), axes=axes)


def constant(axes: tuple[str | None, ...], shape: tuple[int, ...], *, value: float) -> nnx.Param:
  """A float32 weight with one initial value: 0 for biases, 1 for scales of norms."""
  return nnx.Param(jnp.full(shape, value, jnp.float32), axes=axes)


Weights = dict[str, Array | stored_weights.StoredMatrices]


def arrays(module: nnx.Module) -> dict[str, Array]:
  """Arrays of a module by name, as they are stored.

  The second matrix of an adapter is multiplied by the adapter's scale. A matrix of integers becomes
  two arrays.
  """
  found: dict[str, Array] = {}
  scale = getattr(module, "lora_scale", 1.0)
  for name, parameter in vars(module).items():
    if not isinstance(parameter, nnx.Param):
      continue
    x = parameter.get_value()
    if isinstance(x, int8_weights.Int8Matrices):
      found |= {name: x.values, name + SCALE: x.scale}
    else:
      found[name] = x * scale if name.endswith(LORA_B) else x
  return found


def stack(module: nnx.Module, *, platform: str) -> Weights:
  """Like `arrays`, for layers that are scanned over.

  What computes with a weight (`project`, `add_bias`, the norms) converts it, a layer at a time: a
  converted stack would be a second copy of all weights.

  platform: "cpu", "gpu" or "tpu".
  """
  on_cpu = platform == "cpu"
  return {
    name: stored_weights.StoredMatrices(x, 0, len(x)) if on_cpu and is_stored(name, x) else x
    for name, x in arrays(module).items()
  }


def cast(weights: Weights, dtype: jnp.dtype) -> Weights:
  """Layers in `dtype` that are read many times.

  Frozen matrices, and those of integers with their scales, stay as they are stored.
  """

  def prepare(
    name: str, x: Array | stored_weights.StoredMatrices
  ) -> Array | stored_weights.StoredMatrices:
    if isinstance(x, stored_weights.StoredMatrices) or is_stored(name, x):
      return x
    return x if x.dtype == jnp.int8 or name.endswith(SCALE) else x.astype(dtype)

  return {name: prepare(name, x) for name, x in weights.items()}


def merge_heads(weights: Weights) -> Weights:
  """The same stacks, with the two axes merged that the output projection of attention contracts.

  So that XLA for TPUs reads a layer of it where it lies; otherwise each step cuts it out first.
  """
  out = weights.get(OUT)
  if not isinstance(out, jax.Array):
    return weights
  return {**weights, OUT: out.reshape(len(out), -1, out.shape[-1])}


def is_stored(name: str, x: Array) -> bool:
  """Whether the array of this name is a frozen matrix: those alone are stored in bfloat16."""
  return is_matrix(name, x) and x.dtype == jnp.bfloat16


def is_matrix(name: str, x: Array | jax.ShapeDtypeStruct) -> bool:
  """Whether the array of this name has the matrices of all layers; an adapter's are no such."""
  return x.ndim > 2 and not name.endswith(("bias", LORA_A, LORA_B))


def input_axes(name: str) -> int:
  """How many axes, after that of layers, are inputs of the projection of this (dotted) name.

  Two for attention's output projection, heads and head_dim; one for all others.
  """
  return 2 if name.rpartition(".")[2] == OUT else 1


def chain(
  layer: Callable[[Array, Any], tuple[Array, Any]], x: Float[Array, "..."], inputs: PyTree
) -> tuple[Float[Array, "..."], Any]:
  """Like `lax.scan`, unrolled, for inputs and outputs that are tuples with one array a layer.

  inputs: lists and dicts of such tuples, or of stacked arrays.
  """
  depth = len(jax.tree.leaves(inputs, is_leaf=has_layers)[0])
  outputs = []
  for number in range(depth):
    one = jax.tree.map(lambda stack, number=number: stack[number], inputs, is_leaf=has_layers)
    x, output = layer(x, one)
    outputs.append(output)
  return x, jax.tree.map(lambda *layers: layers, *outputs)


def has_layers(x: PyTree) -> bool:
  """Whether it has one array a layer: a tuple, or a stack of stored matrices."""
  return isinstance(x, tuple) or stored_weights.is_stored(x)


def precision(dtype: jnp.dtype) -> lax.Precision:
  """Precision of matrix products: float32 ones use no TF32 on GPU and no bfloat16 on TPU."""
  return lax.Precision.HIGHEST if dtype == jnp.float32 else lax.Precision.DEFAULT


def project(
  x: Float[Array, "..."],
  weight: Float[Array, "..."] | UInt16[Array, "..."] | Int8[Array, "..."],
  *,
  contract: int = 1,
  merge: bool = True,
  scale: Float[Array, "..."] | None = None,
) -> Float[Array, "..."]:
  """Contracts the last `contract` axes of `x` with the first of `weight`, as one matrix product.

  weight: in float32, in the dtype of `x`, or a layer of a matrix in bfloat16, as it is stored. A
    float32 weight is rounded to the dtype of `x`; its gradient is summed in float32. The axes that
    are contracted may be merged (`merge_heads`).
  scale: of the output channels of a weight in integers.
  merge: reshape the leading axes of `x` into one. On CPU a dot with several free axes is lowered to
    a slow loop; where these axes are sharded, merging them would move data between devices.
  """
  if weight.dtype.itemsize == 2:
    weight = stored_weights.widen(weight) if weight.dtype == jnp.uint16 else weight
    weight = weight.astype(x.dtype)
  leading = x.shape[: x.ndim - contract]
  inner, outer = math.prod(x.shape[len(leading) :]), weight.shape[contract:] or weight.shape[1:]
  rows = x.reshape(*((-1,) if merge else leading), inner)
  matrix, exact = weight.reshape(inner, -1), precision(x.dtype)
  if scale is None:
    product = float32_gradients.dot(rows, matrix, exact)
  else:
    product = int8_weights.dot(rows, matrix, scale.reshape(matrix.shape[1]), exact)
  return product.reshape(*leading, *outer)


def project_by_name(
  x: Float[Array, "..."],
  weights: dict[str, Array],
  name: str,
  *,
  contract: int = 1,
  merge: bool = True,
) -> Float[Array, "..."]:
  """Projects by the named weight; adds its adapter's low-rank product and its bias, if any."""
  scale = weights.get(name + SCALE)
  product = project(x, weights[name], contract=contract, merge=merge, scale=scale)
  if name + LORA_A in weights:
    low = project(x, weights[name + LORA_A], contract=contract, merge=merge)
    product = product + project(low, weights[name + LORA_B], merge=merge)
  return add_bias(product, weights[name + BIAS]) if name + BIAS in weights else product


def add_bias(x: Float[Array, "..."], bias: Float[Array, "..."]) -> Float[Array, "..."]:
  """Adds a bias of the last axes, rounded to the dtype of `x`; its gradient is in float32."""
  return float32_gradients.add(x, bias, x.dtype)


def rms_norm(
  x: Float[Array, "... embed"], scale: Float[Array, "embed"], *, epsilon: float
) -> Float[Array, "... embed"]:
  """Divides by the root mean square, with float32 statistics."""
  wide = x.astype(jnp.float32)
  normed = wide * lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)
  normed = normed.astype(x.dtype)
  if scale.dtype == x.dtype:
    return scale * normed
  return float32_gradients.multiply(normed, scale, x.dtype)


def layer_norm(
  x: Float[Array, "... embed"],
  scale: Float[Array, "embed"],
  bias: Float[Array, "embed"],
  *,
  epsilon: float,
) -> Float[Array, "... embed"]:
  """Subtracts the mean and divides by the standard deviation, with float32 statistics."""
  wide = x.astype(jnp.float32)
  centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
  normed = centred * lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + epsilon)
  scaled = float32_gradients.multiply(normed, scale, x.dtype)
  return float32_gradients.add(scaled, bias, x.dtype).astype(x.dtype)


def rotary_frequencies(head_dim: int, theta: float) -> Float[Array, "half"]:
  """The angle by which each pair of a head's features turns from a position to the next."""
  half = head_dim // 2
  return 1.0 / theta ** (jnp.arange(half, dtype=jnp.float32) / half)


def cosines_and_sines(
  angles: Float[Array, "*batch half"],
) -> tuple[Float[Array, "*batch half"], Float[Array, "*batch half"]]:
  """Cosines and sines of rotary angles.

  On CPU they are computed in a loop, since XLA would otherwise fuse them into every layer and head.
  """

  def looped(angles: Array) -> tuple[Array, Array]:
    def evaluate(is_sine: Array) -> Array:
      return jnp.where(is_sine, jnp.sin(angles), jnp.cos(angles))

    return tuple(lax.map(evaluate, jnp.arange(2) == 1))

  return lax.platform_dependent(angles, cpu=looped, default=lambda x: (jnp.cos(x), jnp.sin(x)))


def rotate(
  x: Float[Array, "... heads head_dim"],
  cos: Float[Array, "... half"],
  sin: Float[Array, "... half"],
) -> Float[Array, "... heads head_dim"]:
  """Applies the rotary embedding to features i and i + half, in float32.

  Features of a head beyond twice `half` are left as they are (partial rotary).
  """
  turned = 2 * cos.shape[-1]
  if turned < x.shape[-1]:
    return jnp.concatenate([rotate(x[..., :turned], cos, sin), x[..., turned:]], axis=-1)
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  cos, sin = cos[..., None, :], sin[..., None, :]
  rotated = (first * cos - second * sin, second * cos + first * sin)
  return jnp.concatenate(rotated, axis=-1).astype(x.dtype)


def swiglu(
  x: Float[Array, "... embed"], weights: dict[str, Array], *, merge: bool = True
) -> Float[Array, "... embed"]:
  """The gated feed-forward block, with biases if there are any. merge: see `project`."""
  gate = project_by_name(x, weights, "gate", merge=merge)
  up = project_by_name(x, weights, "up", merge=merge)
  return project_by_name(jax.nn.silu(gate) * up, weights, "down", merge=merge)
