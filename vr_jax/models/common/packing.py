"""Packing of replies: layers compute valid tokens only, and attention sees padded replies.

Replies [prompts, group, time] of different lengths are mostly padding once one of them is long.
Packed, the valid tokens of a device are contiguous, in as many places as the device with the most
tokens needs. Attention, which looks along time, unpacks its inputs and packs its output.
"""

import dataclasses
import math
import typing

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped
import numpy as np

from vr_jax.models import layout as layout_lib

REPLIES: layout_lib.Axes = ("prompts", "group", "time")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
@typing.no_type_check  # tree transformations rebuild it with leaves that are not arrays
class Packing:
  """Indices between padded and packed tokens, counted on each device.

  An index one past the last means that there is no such token.
  """

  source: Int[Array, "packed"]  # flat index in [prompts, group, time] of each packed token
  target: Int[Array, "prompts group time"]  # index among the packed tokens
  layout: layout_lib.Layout = dataclasses.field(metadata={"static": True})

  def pack(
    self, x: Shaped[Array, "prompts group time *rest"], axes: layout_lib.Axes = ()
  ) -> Shaped[Array, "packed *rest"]:
    """Packs valid tokens, with zeros after them. axes: logical axes of `rest`."""
    out = (("slots", *axes), (*self.source.shape, *x.shape[3:]))
    return self.layout.per_shard(
      move,
      ((x, (*REPLIES, *axes)), (self.source, ("slots",)), (self.target, REPLIES)),
      out=out,
    )

  def unpack(
    self, x: Shaped[Array, "packed *rest"], axes: layout_lib.Axes = ()
  ) -> Shaped[Array, "prompts group time *rest"]:
    """Unpacks to replies, with zeros for padding. axes: logical axes of `rest`."""
    out = ((*REPLIES, *axes), (*self.target.shape, *x.shape[1:]))
    return self.layout.per_shard(
      move,
      ((x, ("slots", *axes)), (self.target, REPLIES), (self.source, ("slots",))),
      out=out,
    )


def make(layout: layout_lib.Layout, valid: Bool[Array, "prompts group time"], size: int) -> Packing:
  """Computes the packing of valid tokens into `size` places on each device.

  Tokens that do not fit are left out: see `size_of`.
  """
  ways = layout.ways("slots")

  def source(valid: Array) -> Array:
    (places,) = jnp.nonzero(valid.reshape(-1), size=size, fill_value=valid.size)
    return places.astype(jnp.int32)

  def target(valid: Array) -> Array:
    flat = valid.reshape(-1)
    return jnp.where(flat, jnp.cumsum(flat) - 1, size).astype(jnp.int32).reshape(valid.shape)

  return Packing(
    source=layout.per_shard(source, ((valid, REPLIES),), out=(("slots",), (ways * size,))),
    target=layout.per_shard(target, ((valid, REPLIES),)),
    layout=layout,
  )


def size_of(
  layout: layout_lib.Layout,
  lengths: Int[np.ndarray, "parts prompts group"],
  time: int,
  *,
  ratio: float,
) -> int | None:
  """Finds a packed size, in tokens a device, that fits replies of these lengths.

  It is the size of full replies divided by a power of `ratio`: there are few sizes, since a program
  is compiled for each.

  lengths: of every microbatch.

  Returns None where packing saves nothing.
  """
  parts, prompts, group = lengths.shape
  ways = layout.ways("slots")
  blocks, group_shards, time_shards = layout.shards(REPLIES, (prompts, group, time))
  if time_shards > 1 or blocks * group_shards != ways:
    return None  # devices would hold the same tokens, or parts of replies
  shares = lengths.reshape(parts, blocks, prompts // blocks, group_shards, group // group_shards)
  most = shares.sum(axis=(2, 4)).max()
  full = prompts * group * time // ways
  power = math.floor(math.log(full / max(most, 1)) / math.log(ratio))
  return math.ceil(full / ratio**power) if power > 0 else None


@jax.custom_vjp
def move(
  x: Shaped[Array, "..."], source: Int[Array, "*places"], target: Int[Array, "*before"]
) -> Shaped[Array, "..."]:
  """Moves elements of x [*before, *rest] to other places; 0 where none goes. No two share a place.

  source: flat index in x of what goes to each place; past the last: none.
  target: flat index among the places of each element of x; past the last: it goes nowhere.

  Returns [*places, *rest].
  """
  flat = x.reshape(-1, *x.shape[target.ndim :])
  return jnp.take(flat, source, axis=0, mode="fill", fill_value=0)


# Its transpose moves elements back: both gather, neither scatters.
move.defvjp(
  lambda x, source, target: (move(x, source, target), (source, target)),
  lambda places, outer: (move(outer, places[1], places[0]), None, None),
)
