"""Windows of a frame's patches as rows of a batch, for attention within each row.

A mask would compute the logits of all pairs of a frame's patches. Here patches are copied to rows
that hold one window, or several small ones, and back. The family chooses the rows.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

from vr_jax.models import layout as layout_lib
from vr_jax.models.common import attention as attention_lib
from vr_jax.models.common import packing

PATCHES: layout_lib.Axes = ("prompts", "frames", None)
ROWS: layout_lib.Axes = ("prompts", "frames", None, None)
# Rows are used where they have at most this fraction of the pairs of a frame's patches: copies cost
# something, too.
WORTHWHILE = 0.5
# Patches of a frame up to which the splash kernel masks windows instead: it writes no logits. By
# XLA's schedule for TPU v5p copying to rows and back takes 0.3 us a patch and layer (16 heads of
# 80, forward), as long as all pairs of 10,000 patches would take at 60 % of the chip's peak.
MOST_MASKED = 8192


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
@typing.no_type_check  # tree transformations rebuild it with leaves that are not arrays
class WindowRows:
  """Indices between patches and places in rows, counted on each device (see `packing.move`).

  segment: window of the patch in each place; -1 where there is none.
  """

  source: Int[Array, "prompts frames rows size"]
  target: Int[Array, "prompts frames patches"]
  segment: Int[Array, "prompts frames rows size"]
  layout: layout_lib.Layout = dataclasses.field(metadata={"static": True})

  def split(
    self, x: Shaped[Array, "prompts frames patches *rest"], axes: layout_lib.Axes
  ) -> Shaped[Array, "prompts frames rows size *rest"]:
    """Copies patches to their places in rows; 0 where there is none. axes: of `rest`."""
    return _split(self.layout, x, axes, self.source, self.target)

  def join(
    self, x: Shaped[Array, "prompts frames rows size *rest"], axes: layout_lib.Axes
  ) -> Shaped[Array, "prompts frames patches *rest"]:
    """Copies what stands in rows back to the order of patches; 0 for padding."""
    return self.layout.per_shard(
      packing.move,
      ((x, (*ROWS, *axes)), (self.target, PATCHES), (self.source, ROWS)),
      out=((*PATCHES, *axes), (*self.target.shape, *x.shape[4:])),
    )


def make(
  attention: attention_lib.Attention,
  window: Int[Array, "prompts frames patches"],
  slot: Int[Array, "prompts frames patches"],
  *,
  rows: int,
  size: int,
) -> WindowRows | None:
  """Computes the indices for frames of `rows` rows with `size` places each.

  window, slot: of each patch, the number of its window and its place in the rows; -1 for padding.

  Returns None where rows would save too little: a mask is to be used.
  """
  layout, patches = attention.layout, window.shape[2]
  masked = attention.in_splash_kernel(patches) and patches <= MOST_MASKED
  if masked or rows * size**2 > WORTHWHILE * patches**2:
    return None

  def target(slot: Array) -> Array:
    prompts, frames, _ = slot.shape
    first = jnp.arange(prompts * frames).reshape(prompts, frames, 1) * (rows * size)
    return jnp.where(slot < 0, prompts * frames * rows * size, first + slot).astype(jnp.int32)

  def source(slot: Array) -> Array:
    prompts, frames, _ = slot.shape
    nowhere = jnp.full(prompts * frames * rows * size, slot.size, jnp.int32)
    places = nowhere.at[target(slot).reshape(-1)].set(jnp.arange(slot.size), mode="drop")
    return places.reshape(prompts, frames, rows, size)

  shape = (*window.shape[:2], rows, size)
  sources = layout.per_shard(source, ((slot, PATCHES),), out=(ROWS, shape))
  targets = layout.per_shard(target, ((slot, PATCHES),))
  segment = _split(layout, window + 1, (), sources, targets) - 1
  return WindowRows(source=sources, target=targets, segment=segment, layout=layout)


def _split(
  layout: layout_lib.Layout, x: Array, axes: layout_lib.Axes, source: Array, target: Array
) -> Array:
  """See `WindowRows.split`."""
  return layout.per_shard(
    packing.move,
    ((x, (*PATCHES, *axes)), (source, ROWS), (target, PATCHES)),
    out=((*ROWS, *axes), (*source.shape, *x.shape[3:])),
  )
