"""Runs a vision tower on a few frames at a time, so that its memory does not grow with a video."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from vr_jax.models import layout as layout_lib


def map_frames(
  tower: Callable[[PyTree], PyTree],
  inputs: PyTree,
  layout: layout_lib.Layout,
  *,
  patches: int,
) -> PyTree:
  """Calls `tower` on chunks of frames, each of which the backward pass computes again.

  tower: from arrays [prompts, frames, patches, …] to arrays [prompts, frames, …]; no frame may
    depend on another.
  inputs: its input; a device takes its chunks from the frames that it holds.
  patches: the most patches of a chunk on a device, which has at least one frame of each prompt.
  """
  shape = jax.tree.leaves(inputs)[0].shape[:3]
  ways = layout.shards(("prompts", "frames", None), shape)
  prompts, own = shape[0], shape[1] // ways[1]
  most = max(1, patches // (prompts // ways[0] * shape[2]))
  if own <= most:
    return tower(inputs)
  size = -(-own // -(-own // most))  # as equal as possible
  count = -(-own // size)

  def split(x: Array) -> Array:
    x = jnp.asarray(x).reshape(prompts, ways[1], own, *x.shape[2:])
    fill = [(0, count * size - own if axis == 2 else 0) for axis in range(x.ndim)]
    x = jnp.pad(x, fill).reshape(prompts, ways[1], count, size, *x.shape[3:])
    return jnp.moveaxis(x, 2, 0).reshape(count, prompts, ways[1] * size, *x.shape[4:])

  def join(x: Array) -> Array:
    x = x.reshape(count, prompts, ways[1], size, *x.shape[3:])
    x = jnp.moveaxis(x, 0, 2).reshape(prompts, ways[1], count * size, *x.shape[4:])
    return x[:, :, :own].reshape(prompts, shape[1], *x.shape[3:])

  def place(x: Array) -> Array:
    return layout.place(x, (None, "prompts", "frames", *[None] * (x.ndim - 3)))

  chunks = jax.tree.map(lambda x: place(split(x)), inputs)
  # The checkpoint's guard against merging with the forward pass is not needed within a loop.
  found = jax.lax.map(jax.checkpoint(tower, prevent_cse=False), chunks)
  return jax.tree.map(lambda x: join(place(x)), found)
