"""Key-value caches: those of prefilled prompts, and those of replies being sampled."""

from collections.abc import Callable
import dataclasses
import functools
import typing
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vr_jax.models import layout as layout_lib
from vr_jax.models.common import attention


def transpose_for_decode(
  key: Float[Array, "batch length kv_heads head_dim"],
  value: Float[Array, "batch length kv_heads head_dim"],
) -> tuple[
  Float[Array, "batch kv_heads head_dim length"], Float[Array, "batch kv_heads length head_dim"]
]:
  """Transposes keys and values to the axis order that a decoding step reads."""
  return jnp.moveaxis(key, 1, 3), value.swapaxes(1, 2)


# Tree transformations rebuild these with leaves that are not arrays, so their fields are not
# checked at run time.
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
@typing.no_type_check
class PrefixKV:
  """Keys and values of prefilled prompts, which their replies attend to."""

  keys: Float[Array, "layers prompts prefix kv_heads head_dim"]
  values: Float[Array, "layers prompts prefix kv_heads head_dim"]
  valid: Bool[Array, "prompts prefix"]
  hidden: Float[Array, "prompts embed"]  # final-normed, at the last token of each prompt
  next_position: Int[Array, "prompts"]

  def placed(self, place: Callable[[Array, layout_lib.Axes], Array]) -> "PrefixKV":
    """Applies `place(array, logical axes)` to each array, with the axes that `prefill` uses."""
    block = (None, "prompts", "prefix", "kv_heads", None)
    return PrefixKV(
      keys=place(self.keys, block),
      values=place(self.values, block),
      valid=place(self.valid, ("prompts", "prefix")),
      hidden=place(self.hidden, ("prompts", None)),
      next_position=place(self.next_position, ("prompts",)),
    )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
@typing.no_type_check
class DecodeConstants:
  """What every decoding step reads: layer weights by name, prompts, first positions of replies.

  Up to `layers.UNROLLED` layers, weights, keys and values are tuples with one array a layer, in the
  axis order of `KVCache`. Otherwise each step would slice them from a stack and transpose them. If
  decoding runs in the kernel, which does not slice them, they are stacks in this order.
  """

  weights: dict[str, Array | tuple[Array, ...]]
  prefix: attention.Block
  next_position: Int[Array, "prompts"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
@typing.no_type_check
class KVCache:
  """Keys and values of replies being sampled; positions not yet written are 0.

  Their axes are in the order in which a step's matrix products read them, so that no step
  transposes them. For few layers they are tuples, as in `DecodeConstants`.
  """

  AXES: typing.ClassVar[layout_lib.Axes] = ("slots", "kv_heads", None, None)  # the last four

  keys: Float[Array, "layers slots kv_heads head_dim length"] | tuple[Array, ...]
  values: Float[Array, "layers slots kv_heads length head_dim"] | tuple[Array, ...]

  @classmethod
  def axes(cls, x: Array) -> layout_lib.Axes:
    """Logical axes of an array of the cache."""
    return (None,) * (x.ndim - len(cls.AXES)) + cls.AXES

  def placed(self, place: Callable[[Array, layout_lib.Axes], Array]) -> "KVCache":
    """Applies `place(array, logical axes)` to each array."""
    return jax.tree.map(lambda x: place(x, self.axes(x)), self)

  @property
  def length(self) -> int:
    """Number of positions that the cache can hold."""
    return self.keys[0].shape[-1]

  def select_slots(self, layout: layout_lib.Layout, slots: Int[Array, "select_slots"]) -> "KVCache":
    """The cache of some slots. slots: their indices on the device that holds them."""

    def take_local(x: Array, slots: Array) -> Array:
      return jnp.take(x, slots, axis=x.ndim - 4, mode="clip")

    def take(x: Array) -> Array:
      return layout.per_shard(take_local, ((x, self.axes(x)), (slots, ("slots",))))

    return jax.tree.map(take, self)

  def write_rows(
    self,
    layout: layout_lib.Layout,
    new: "KVCache",
    slots: Int[Array, "rows"],
    starts: Int[Array, "rows"],
    counts: Int[Array, "rows"],
  ) -> "KVCache":
    """Writes the first `counts` positions of each row of `new` into a slot, from `starts` on.

    slots: as in `select_slots`; a row whose slot is out of range on its device is left out.
    """

    def put(
      x: Array, new: Array, slots: Array, starts: Array, counts: Array, *, back: int
    ) -> Array:
      first, axis = x.ndim - 4, x.ndim - back
      steps = jnp.arange(new.shape[axis])
      places = jnp.where(steps < counts[:, None], starts[:, None] + steps, x.shape[axis])
      index: list[Any] = [slice(None)] * x.ndim
      index[first], index[axis] = slots[:, None], places
      # Two separated index arrays put rows and positions first.
      return x.at[tuple(index)].set(jnp.moveaxis(new, (first, axis), (0, 1)), mode="drop")

    def write(x: Array, new: Array, back: int) -> Array:
      rows = [(array, ("slots",)) for array in (slots, starts, counts)]
      both = ((x, self.axes(x)), (new, self.axes(new)))
      return layout.per_shard(functools.partial(put, back=back), (*both, *rows))

    return KVCache(
      keys=jax.tree.map(functools.partial(write, back=1), self.keys, new.keys),
      values=jax.tree.map(functools.partial(write, back=2), self.values, new.values),
    )

  def grow(self, layout: layout_lib.Layout, length: int) -> "KVCache":
    """Pads the cache with zeros to `length` positions."""

    def padded(x: Array, back: int) -> Array:
      widths = [(0, length - self.length if axis == x.ndim - back else 0) for axis in range(x.ndim)]
      return layout.place(jnp.pad(x, widths), self.axes(x))

    return KVCache(
      keys=jax.tree.map(functools.partial(padded, back=1), self.keys),
      values=jax.tree.map(functools.partial(padded, back=2), self.values),
    )
