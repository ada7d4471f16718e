"""Keys and values of prompts in slots that get other prompts, one after the other."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from vr_jax import records
from vr_jax.models import interface
from vr_jax.models import layout as layout_lib


def blank_prefix(layout: layout_lib.Layout, like: Any, prompts: int) -> interface.Prefix:
  """What `prompts` prompts would leave, all zeros. like: the shapes of a Prefix.

  All tokens are valid: a softmax over none would not be finite.
  """

  def blank(x: jax.ShapeDtypeStruct, axes: layout_lib.Axes) -> Array:
    shape = [prompts if axis == "prompts" else n for n, axis in zip(x.shape, axes, strict=True)]
    return layout.place((jnp.ones if x.dtype == bool else jnp.zeros)(shape, x.dtype), axes)

  return like.placed(blank)


def put_prompts(
  prefix: interface.Prefix,
  new: interface.Prefix,
  put: Callable[[Array, Array, layout_lib.Axes], Array],
) -> interface.Prefix:
  """The prefix with new prompts: `put(array, new array, logical axes)` for each of its arrays."""
  arrays: list[Array] = []

  def note(x: Array, axes: layout_lib.Axes) -> Array:
    del axes
    arrays.append(x)
    return x

  new.placed(note)
  remaining = iter(arrays)
  return prefix.placed(lambda x, axes: put(x, next(remaining), axes))


def take_prompts(
  layout: layout_lib.Layout, prompt: records.Prompt, index: Int[Array, "rows"]
) -> records.Prompt:
  """Some prompts of each block. index: within the block, for all blocks in turn."""

  def take(x: Array) -> Array:
    axes = ("prompts", *[None] * (x.ndim - 1))
    return layout.per_shard(
      lambda x, index: x[index],
      ((x, axes), (index, ("prompts",))),
      out=(axes, (len(index), *x.shape[1:])),
    )

  return jax.tree.map(lambda x: take(jnp.asarray(x)), prompt)
