"""Frozen matrices of stacked layers on a CPU: read as they are stored, one layer at a time.

XLA for CPU computes nothing in bfloat16. It converts bfloat16 arrays to float32 where they are
sliced, and does so before a loop over layers: a copy of all weights that takes twice their memory.
So here a layer is cut out of the bits, inside of the loop, and `layers.project` widens it.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, NoReturn

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree, Shaped, UInt8, UInt16, UInt32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class StoredMatrices:
  """Some successive layers of a stack in bfloat16. To differentiate by it raises ValueError.

  first: index of the first of these layers in `stack`.
  depth: number of layers.
  """

  stack: Any
  first: int = dataclasses.field(metadata={"static": True})
  depth: int = dataclasses.field(metadata={"static": True})

  def __len__(self) -> int:
    """The number of layers."""
    return self.depth

  def __getitem__(self, where: slice | int) -> "StoredMatrices | UInt16[Array, '...']":
    """The layers of a slice with step 1, or the bits of one layer."""
    if isinstance(where, int):
      return self.bits(jnp.int32(range(self.depth)[where]))
    first, end, step = where.indices(self.depth)
    assert step == 1
    return StoredMatrices(self.stack, self.first + first, max(end - first, 0))

  def bits(self, layer: Int[Array, ""]) -> UInt16[Array, "..."]:
    """The bits of a layer, whose bfloat16 are the upper halves of float32."""
    return _frozen_layer_bits(self.stack, layer + self.first)


def layer_bits(
  stack: Shaped[Array, "layers ..."], layer: Int[Array, ""]
) -> UInt8[Array, "..."] | UInt16[Array, "..."] | UInt32[Array, "..."]:
  """The bits of one layer of a stack, inside of a loop over layers."""
  # Behind the barrier the stack depends on the layer, so XLA moves no copy of its bits, or of its
  # values in float32, out of the loop.
  stack, layer = lax.optimization_barrier((stack, layer))
  bits = lax.bitcast_convert_type(stack, jnp.dtype(f"uint{8 * stack.dtype.itemsize}"))
  return lax.dynamic_index_in_dim(bits, layer, keepdims=False)


@jax.custom_jvp
def _frozen_layer_bits(
  stack: Shaped[Array, "layers ..."], layer: Int[Array, ""]
) -> UInt8[Array, "..."] | UInt16[Array, "..."] | UInt32[Array, "..."]:
  """`layer_bits`; to differentiate by the stack raises ValueError: bits have no gradient."""
  return layer_bits(stack, layer)


@_frozen_layer_bits.defjvp
def _refuse_gradient(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> NoReturn:
  """Is called where a derivative by the stack is asked for, and not where it is a constant."""
  del primals, tangents
  raise ValueError(
    "a gradient of frozen matrices in bfloat16, which a CPU reads as bits: their gradient would be "
    "0; differentiate by the parameters that are trained alone (train_state.split), or store these "
    "in float32"
  )


def sum_bits(
  function: Callable[[UInt32[Array, "..."], Int[Array, ""]], UInt32[Array, "*result"]],
  x: Shaped[Array, "..."],
) -> UInt32[Array, "*result"]:
  """Sums function(bits, index of the layer) over the layers of a stack, one at a time, on a CPU.

  Elsewhere, and where `x` is no stack of matrices, it is function(bits of all of `x`, 0).
  """
  if x.ndim <= 2 or jax.default_backend() != "cpu":
    bits = lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    return function(bits.astype(jnp.uint32), jnp.int32(0))

  def of_layer(layer: Int[Array, ""]) -> UInt32[Array, "*result"]:
    return function(layer_bits(x, layer).astype(jnp.uint32), layer)

  def add(layer: Int[Array, ""], total: UInt32[Array, "*result"]) -> UInt32[Array, "*result"]:
    return total + of_layer(layer)

  shape = jax.eval_shape(of_layer, jnp.int32(0))
  return lax.fori_loop(0, len(x), add, jnp.zeros(shape.shape, jnp.uint32))


def is_stored(x: Any) -> bool:
  """Whether it is a stack of this kind."""
  return isinstance(x, StoredMatrices)


def widen(bits: UInt16[Array, "..."]) -> Float[Array, "..."]:
  """The float32 values of bfloat16 bits."""
  return lax.bitcast_convert_type(bits.astype(jnp.uint32) << 16, jnp.float32)


def scan(
  layer: Callable[[Array, Any], tuple[Array, Any]],
  x: Float[Array, "..."],
  inputs: PyTree,
  *,
  unroll: bool = False,
  checkpoint: Callable[..., bool] | None = None,
) -> tuple[Float[Array, "..."], Any]:
  """Like `lax.scan`; where inputs have `StoredMatrices`, the layer gets the bits of one.

  checkpoint: a policy of `jax.checkpoint`; what a layer cuts out is not kept, either.
  """

  def rematerialised(function: Callable[..., Any]) -> Callable[..., Any]:
    return function if checkpoint is None else jax.checkpoint(function, policy=checkpoint)

  leaves, structure = jax.tree.flatten(inputs, is_leaf=is_stored)
  if not any(map(is_stored, leaves)):
    return lax.scan(rematerialised(layer), x, inputs, unroll=unroll)
  sliced = [None if is_stored(leaf) else leaf for leaf in leaves]
  (depth,) = {leaf.depth for leaf in leaves if is_stored(leaf)}

  def numbered(x: Array, step: tuple[Array, list[Any]]) -> tuple[Array, Any]:
    number, rest = step
    one = [
      leaf.bits(number) if is_stored(leaf) else part
      for leaf, part in zip(leaves, rest, strict=True)
    ]
    return layer(x, jax.tree.unflatten(structure, one))

  return lax.scan(rematerialised(numbered), x, (jnp.arange(depth), sliced), unroll=unroll)
