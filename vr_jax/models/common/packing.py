"""Replies without their padding: the layers of a network compute the tokens that there are, and attention sees replies again.

Replies [prompts, group, time] of different lengths are mostly padding once one of them is long. Packed, the valid tokens of a
device stand one after the other, in as many places as its fullest peer needs. What looks along time (attention) unpacks,
and packs what it found.
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
@typing.no_type_check  # tree transformations rebuild it with leaves that are no arrays
class Packing:
  """Where tokens of replies stand packed, counted on the device that holds them; one past the last where they don't."""

  source: Int[Array, "packed"]  # place in [prompts, group, time] of each packed token
  target: Int[Array, "prompts group time"]  # place among the packed tokens
  layout: layout_lib.Layout = dataclasses.field(metadata={"static": True})

  def pack(
    self, x: Shaped[Array, "prompts group time *rest"], axes: layout_lib.Axes = ()
  ) -> Shaped[Array, "packed *rest"]:
    """The valid tokens of replies, and 0 behind them; axes: the logical ones of rest."""
    out = (("slots", *axes), (*self.source.shape, *x.shape[3:]))
    return self.layout.per_shard(
      _packed,
      ((x, (*REPLIES, *axes)), (self.source, ("slots",)), (self.target, REPLIES)),
      out=out,
    )

  def unpack(
    self, x: Shaped[Array, "packed *rest"], axes: layout_lib.Axes = ()
  ) -> Shaped[Array, "prompts group time *rest"]:
    """Replies with what their tokens have, and 0 where they have none; axes: the logical ones of rest."""
    out = ((*REPLIES, *axes), (*self.target.shape, *x.shape[1:]))
    return self.layout.per_shard(
      _unpacked,
      ((x, ("slots", *axes)), (self.source, ("slots",)), (self.target, REPLIES)),
      out=out,
    )


def make(layout: layout_lib.Layout, valid: Bool[Array, "prompts group time"], size: int) -> Packing:
  """How the valid tokens of replies are packed to `size` places a device.

  What does not fit is left out: see `size_of`.
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
  """Places a device that hold all tokens of replies of these lengths, of every part of a batch; None where packing saves nothing.

  They are those of full replies, divided by a power of `ratio`: few sizes, since a program is compiled for each.
  """
  parts, prompts, group = lengths.shape
  ways = layout.ways("slots")
  blocks, of_group, of_time = layout.shards(REPLIES, (prompts, group, time))
  if of_time > 1 or blocks * of_group != ways:
    return None  # devices would hold the same tokens, or parts of replies
  shares = lengths.reshape(parts, blocks, prompts // blocks, of_group, group // of_group)
  most = shares.sum(axis=(2, 4)).max()
  full = prompts * group * time // ways
  rung = math.floor(math.log(full / max(most, 1)) / math.log(ratio))
  return math.ceil(full / ratio**rung) if rung > 0 else None


@jax.custom_vjp
def _packed(x: Array, source: Array, target: Array) -> Array:
  del target
  flat = x.reshape(-1, *x.shape[3:])
  return jnp.take(flat, source, axis=0, mode="fill", fill_value=0)


@jax.custom_vjp
def _unpacked(x: Array, source: Array, target: Array) -> Array:
  del source
  return jnp.take(x, target, axis=0, mode="fill", fill_value=0)


# Each is the other's transpose, since no two tokens share a place: both ways gather, and none scatters.
_packed.defvjp(
  lambda *inputs: (_packed(*inputs), inputs[1:]),
  lambda places, outer: (_unpacked(outer, *places), None, None),
)
_unpacked.defvjp(
  lambda *inputs: (_unpacked(*inputs), inputs[1:]),
  lambda places, outer: (_packed(outer, *places), None, None),
)
