"""Zigzag order of a long prompt: all devices that share it have the same work in its attention.

A late query of causal attention meets more keys than an early one. So a prompt of which n devices
compute a part each (mesh axis `sequence`) is cut into 2 n blocks, of which device i computes blocks
i and 2 n - 1 - i, an early and a late one. Tokens change places once, before the layers, and back
behind them. Keys and values of all layers are kept in the order of the prompt.

Source: context parallelism of Llama 3, arXiv 2407.21783, section 3.3.2.
"""

import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped
import numpy as np

from vr_jax.models import layout as layout_lib


def fits(layout: layout_lib.Layout, shape: tuple[int, ...]) -> bool:
  """Whether devices share prompts of this shape, [prompts, prefix], and can fold them."""
  ways = layout.shards(("prompts", "prefix"), shape)[1]
  return ways > 1 and shape[1] % (2 * ways) == 0


def order(length: int, ways: int) -> Int[np.ndarray, "prefix"]:
  """The position of each token of a folded prompt."""
  blocks = np.arange(length, dtype=np.int32).reshape(2 * ways, -1)
  return np.stack([blocks[:ways], blocks[: ways - 1 : -1]], axis=1).reshape(-1)


def fold(
  x: Shaped[Array, "prompts prefix ..."], axes: layout_lib.Axes, layout: layout_lib.Layout
) -> Shaped[Array, "prompts prefix ..."]:
  """Moves tokens to the devices that compute them. axes: logical axes, first prompts and prefix."""
  ways = layout.ways("prefix")
  even, odd = _holders(ways)

  def local(x: Array, part: Array) -> Array:
    first, second = jnp.split(x, 2, axis=1)
    first = layout.permute_shards(first, "prefix", even)
    return _in_turn(first, layout.permute_shards(second, "prefix", odd), part)

  return layout.per_shard(local, ((x, axes), (jnp.arange(ways), ("prefix",))))


def unfold(
  x: Shaped[Array, "prompts prefix ..."], axes: layout_lib.Axes, layout: layout_lib.Layout
) -> Shaped[Array, "prompts prefix ..."]:
  """Inverts `fold`."""
  ways = layout.ways("prefix")
  even, odd = (np.argsort(to) for to in _holders(ways))

  def local(x: Array, part: Array) -> Array:
    early, late = jnp.split(x, 2, axis=1)
    first, second = jnp.split(_in_turn(early, late, part), 2, axis=1)
    first = layout.permute_shards(first, "prefix", even)
    return jnp.concatenate([first, layout.permute_shards(second, "prefix", odd)], axis=1)

  return layout.per_shard(local, ((x, axes), (jnp.arange(ways), ("prefix",))))


def gathered_in_order(
  x: Shaped[Array, "prompts prefix ..."], ways: int
) -> Shaped[Array, "prompts prefix ..."]:
  """The order of the prompt for a folded one of which this device has all tokens."""
  blocks = x.reshape(x.shape[0], ways, 2, -1, *x.shape[2:])
  early, late = blocks[:, :, 0], blocks[:, ::-1, 1]
  return jnp.concatenate([early, late], axis=1).reshape(x.shape)


def _holders(ways: int) -> tuple[np.ndarray, np.ndarray]:
  """The devices that compute the even and the odd blocks. Unfolded, device i has each i-th one."""
  blocks = np.arange(2 * ways)
  holders = np.minimum(blocks, 2 * ways - 1 - blocks)
  return holders[::2], holders[1::2]


def _in_turn(first: Array, second: Array, part: Int[Array, "1"]) -> Array:
  """Joins the even and the odd block of a device in the order of the prompt, or inverts that."""
  # The early block of device i is block i.
  is_even = part[0] % 2 == 0
  return jnp.where(
    is_even,
    jnp.concatenate([first, second], axis=1),
    jnp.concatenate([second, first], axis=1),
  )
