"""Gradients summed over micro-batches, and an optimizer step that skips non-finite gradients."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree
import optax


def accumulated_gradients(
  loss: Callable[[PyTree, PyTree], tuple[Float[Array, ""], Any]], params: PyTree, parts: PyTree
) -> tuple[Float[Array, ""], Any, PyTree]:
  """Loss, auxiliary sums and gradients, summed over micro-batches.

  `loss(params, part) -> (loss, sums)` must be a sum over the batch, with weights that were computed
  for the whole batch. Then the result equals one pass over everything, with the memory of one
  micro-batch.

  parts: the micro-batches, along the first axis of every leaf.

  Returns:
    (loss, sums, gradients), each summed over the micro-batches.
  """
  value_and_grad = jax.value_and_grad(loss, has_aux=True)
  first = jax.tree.map(lambda x: x[0], parts)
  if jax.tree.leaves(parts)[0].shape[0] == 1:
    (value, sums), gradients = value_and_grad(params, first)
    return value, sums, gradients

  def add_part(total: PyTree, part: PyTree) -> tuple[PyTree, None]:
    return jax.tree.map(jnp.add, total, value_and_grad(params, part)), None

  shapes = jax.eval_shape(value_and_grad, params, first)
  zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
  ((value, sums), gradients), _ = jax.lax.scan(add_part, zero, parts)
  return value, sums, gradients


def guarded_update(
  optimizer: optax.GradientTransformation,
  gradients: PyTree,
  optimizer_state: PyTree,
  params: PyTree,
  loss: Float[Array, ""],
) -> tuple[PyTree, PyTree, Bool[Array, ""], Float[Array, ""]]:
  """One optimizer step; if the loss or a gradient is not finite, nothing changes.

  Returns:
    (params, optimizer_state, applied, gradient_norm); the norm is taken before clipping.
  """
  norm = optax.tree.norm(gradients)
  applied = jnp.isfinite(loss) & jnp.isfinite(norm)
  updates, stepped = optimizer.update(gradients, optimizer_state, params)
  moved = optax.apply_updates(params, updates)

  def keep(new: Array, old: Array) -> Array:
    return jnp.where(applied, new, old)

  return (
    jax.tree.map(keep, moved, params),
    jax.tree.map(keep, stepped, optimizer_state),
    applied,
    norm,
  )
