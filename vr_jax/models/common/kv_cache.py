"""Keys and values: of prompts, which their replies read, and of replies being sampled."""

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


# Tree transformations rebuild these with leaves that are no arrays, so their fields are not checked
# at run time.
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
@typing.no_type_check
class PrefixKV:
  """What prompts leave behind for their replies."""

  keys: Float[Array, "layers prompts prefix kv_heads head_dim"]
  values: Float[Array, "layers prompts prefix kv_heads head_dim"]
  valid: Bool[Array, "prompts prefix"]
  hidden: Float[Array, "prompts embed"]  # final-normed, at the last token of each prompt
  next_position: Int[Array, "prompts"]

  def placed(self, place: Callable[[Array, layout_lib.Axes], Array]) -> "PrefixKV":
    """Each array as `place(array, logical axes)` makes it: where `prefill` leaves it."""
    block = (None, "prompts", None, "kv_heads", None)
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
  """What every step of decoding reads: layer weights by name, prompts, starts of replies.

  Of few layers there are tuples of theirs, made once, keys and values as `KVCache` has them: each
  step would cut them out of
  stacks, and turn them.
  """

  weights: dict[str, Array | tuple[Array, ...]]
  prefix: attention.Block
  next_position: Int[Array, "prompts"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
@typing.no_type_check
class KVCache:
  """Keys and values of replies being sampled; positions not yet written are 0.

  They lie as the products of each step read them: otherwise a step would bring them in that order
  first. Of few layers there
  are tuples of theirs, as `DecodeConstants` has them.
  """

  AXES: typing.ClassVar[layout_lib.Axes] = ("slots", "kv_heads", None, None)  # the last four

  keys: Float[Array, "layers slots kv_heads head_dim length"] | tuple[Array, ...]
  values: Float[Array, "layers slots kv_heads length head_dim"] | tuple[Array, ...]

  @classmethod
  def axes(cls, x: Array) -> layout_lib.Axes:
    """Those of its arrays."""
    return (None,) * (x.ndim - len(cls.AXES)) + cls.AXES

  def placed(self, place: Callable[[Array, layout_lib.Axes], Array]) -> "KVCache":
    """Each array as `place(array, logical axes)` makes it."""
    return jax.tree.map(lambda x: place(x, self.axes(x)), self)

  @property
  def length(self) -> int:
    """Positions that there is room for."""
    return self.keys[0].shape[-1]

  def select_slots(self, layout: layout_lib.Layout, slots: Int[Array, "select_slots"]) -> "KVCache":
    """That of some slots, named by their places on the device that holds them."""

    def of_device(x: Array, slots: Array) -> Array:
      return jnp.take(x, slots, axis=x.ndim - 4, mode="clip")

    def of_array(x: Array) -> Array:
      return layout.per_shard(of_device, ((x, self.axes(x)), (slots, ("slots",))))

    return jax.tree.map(of_array, self)

  def write_rows(
    self,
    layout: layout_lib.Layout,
    new: "KVCache",
    slots: Int[Array, "rows"],
    starts: Int[Array, "rows"],
    counts: Int[Array, "rows"],
  ) -> "KVCache":
    """With the first `counts` positions of each row of `new` in a slot, from a place there on.

    slots: as in `kept`; a row whose slot its device does not have is left out.
    """

    def put(
      x: Array, new: Array, slots: Array, starts: Array, counts: Array, *, back: int
    ) -> Array:
      first, axis = x.ndim - 4, x.ndim - back
      steps = jnp.arange(new.shape[axis])
      places = jnp.where(steps < counts[:, None], starts[:, None] + steps, x.shape[axis])
      index: list[Any] = [slice(None)] * x.ndim
      index[first], index[axis] = slots[:, None], places
      # Rows and places come first, where two separate indices put them.
      return x.at[tuple(index)].set(jnp.moveaxis(new, (first, axis), (0, 1)), mode="drop")

    def of_arrays(x: Array, new: Array, back: int) -> Array:
      rows = [(array, ("slots",)) for array in (slots, starts, counts)]
      both = ((x, self.axes(x)), (new, self.axes(new)))
      return layout.per_shard(functools.partial(put, back=back), (*both, *rows))

    return KVCache(
      keys=jax.tree.map(functools.partial(of_arrays, back=1), self.keys, new.keys),
      values=jax.tree.map(functools.partial(of_arrays, back=2), self.values, new.values),
    )

  def grow(self, layout: layout_lib.Layout, length: int) -> "KVCache":
    """With room for so many positions."""

    def padded(x: Array, back: int) -> Array:
      widths = [(0, length - self.length if axis == x.ndim - back else 0) for axis in range(x.ndim)]
      return layout.place(jnp.pad(x, widths), self.axes(x))

    return KVCache(
      keys=jax.tree.map(functools.partial(padded, back=1), self.keys),
      values=jax.tree.map(functools.partial(padded, back=2), self.values),
    )
