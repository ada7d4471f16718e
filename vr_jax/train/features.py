"""Features of a frozen tower, once for the whole run: from the cache what it has, from the tower the rest, which is then kept.

with features.cache(parts, params, workdir) as cache:
  iterator = parts.read("train", 16, cache=cache)
  prompt, values = features.prompt(parts, params, next(iterator), cache)
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree, UInt32
import numpy as np

from vr_jax.models.common import weight_mapping
from vr_jax import records
from vr_jax.data import feature_cache
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.parallel import processes
from vr_jax.rollout import encoder
from vr_jax.train import inputs
from vr_jax.train import parts as parts_lib

Cache = feature_cache.FeatureCache | None


@contextlib.contextmanager
def cache(parts: parts_lib.Parts, params: PyTree, workdir: Path) -> Iterator[Cache]:
  """That of a run's tower; None where the tower is trained or config.model.feature_cache_gib is 0, as with several turns.

  Raises InputError where it belongs to another tower or preprocessing, or can't be written, at the latest when it closes.
  """
  section = parts.config.model
  if not parts.tower_frozen or not section.feature_cache_gib or parts.multi_turn:
    yield None
    return
  made = feature_cache.FeatureCache(
    inputs.features(parts.config, workdir),
    about(parts, params),
    dtype=jnp.dtype(parts.model.dtype),
    gibibytes=section.feature_cache_gib,
  )
  with contextlib.closing(made):
    yield made


def about(parts: parts_lib.Parts, params: PyTree) -> dict[str, Any]:
  """All that the features of a clip depend on beside it: the tower's weights and sizes, and how frames become patches."""
  processor, sizes = parts.processor, dict(vars(parts.model.vision))
  del sizes["text_follows"]  # says where text stands
  return {
    "tower": {
      "weights": fingerprint(params["vision"], parts.mesh),
      "dtype": parts.model.dtype,
      **sizes,
    },
    "preprocessing": {
      "min_pixels": processor.min_pixels,
      "max_pixels": processor.max_pixels,
      "resampling": processor.library,
    },
  }


def fingerprint(params: PyTree, mesh: jax.sharding.Mesh) -> str:
  """A hash of parameters on a mesh and their names, however they are split; each device reads what it holds."""
  flat = {name: variable.get_value() for name, variable in weight_mapping.flat(params).items()}
  sums = jax.device_get(jax.jit(_sums, out_shardings=mesh_lib.replicated(mesh))(flat))
  said = [[n, str(x.dtype), list(x.shape), sums[n].tolist()] for n, x in sorted(flat.items())]
  return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _sums(arrays: dict[str, Array]) -> dict[str, UInt32[Array, "4"]]:
  """Of each array four sums, modulo 2^32, of numbers that its entries and their places are scrambled to.

  Integers may be summed in any order, so the result does not depend on how an array is split.
  """

  def of_array(x: Array) -> Array:
    bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
      place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    salts = (0x9E3779B9 * number % 2**32 for number in range(1, 5))
    mixed = [_scrambled(bits ^ _scrambled(place ^ jnp.uint32(salt))) for salt in salts]
    return jnp.stack([numbers.sum(dtype=jnp.uint32) for numbers in mixed])

  return jax.tree.map(of_array, arrays)


def _scrambled(x: Array) -> Array:
  """Each number to another, so that a bit of it changes about half of those that come out. Source: MurmurHash3's fmix32."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def prompt(
  parts: parts_lib.Parts, params: PyTree, batch: parts_lib.Batch, cache: Cache
) -> tuple[records.Prompt, dict[str, float]]:
  """The prompts of a batch on the mesh, and what the cache had of them, by name.

  Without a cache they hold patches. With one they hold features: the tower runs for those prompts alone that it does not
  have, filled up to a power of two of rows a device, and it keeps them later, beside the steps that follow. Of several
  processes all run it for as many rows as the one that misses most, and must call this together.
  """
  batch = parts.of_one_size(batch)
  if cache is None:
    return parts.prompt(batch), {}
  batch, most, values = _agreed(parts, batch)
  if not most:
    return parts.prompt(batch), values
  size = len(batch.prompt.tokens)
  rows = mesh_lib.rung(most, size, parts.mesh)
  patches = mesh_lib.put_batch(_filled_up(batch.patches, rows), parts.mesh)
  made = encoder.features(parts.graph, params, patches)
  cache.put_later(_entries(batch, made))
  bare = dataclasses.replace(batch.prompt, vision=None, media=None)
  if not values["vision/cache_hits"]:
    return dataclasses.replace(mesh_lib.put_batch(bare, parts.mesh), media=made), values
  media = batch.prompt.media
  if media is None:  # other processes have some
    media = np.zeros((size, *made.shape[1:]), made.dtype)
  source = np.full(size, -1, np.int32)
  first = mesh_lib.row_share(parts.mesh)[0] * rows
  source[list(batch.missing)] = first + np.arange(len(batch.missing))
  known = mesh_lib.put_batch(dataclasses.replace(bare, media=media), parts.mesh)
  source = mesh_lib.put_batch(source, parts.mesh)
  media = _joined(mesh_lib.MeshLayout(parts.mesh), known.media, made, source)
  return dataclasses.replace(known, media=media), values


def _agreed(
  parts: parts_lib.Parts, batch: parts_lib.Batch
) -> tuple[parts_lib.Batch, int, dict[str, float]]:
  """(the batch of this process, rows of the process that misses most, what the caches had) as all processes see it.

  Processes that hold parts of the same rows have each looked into a cache: what one of them misses counts as missing.
  """
  missing = np.zeros(len(batch.prompt.tokens), bool)
  missing[list(batch.missing)] = True
  damaged = sum(item.damaged for item in batch.items)
  share, count = mesh_lib.row_share(parts.mesh)
  told = processes.gathered(np.array([share, damaged, len(batch.items), *missing]))
  by_share = [told[told[:, 0] == number] for number in range(count)]
  union = [one[:, 3:].any(axis=0) for one in by_share]
  batch = parts.unread(batch, np.flatnonzero(union[share] & ~missing))
  hits = sum((~rows[: one[0, 2]]).sum() for one, rows in zip(by_share, union, strict=True))
  values = {
    "vision/cache_hits": float(hits),
    "vision/cache_rebuilt": float(sum(one[:, 1].max() for one in by_share)),
  }
  return batch, max(int(rows.sum()) for rows in union), values


def _filled_up(patches: records.Vision, rows: int) -> records.Vision:
  """With as many rows, the last of them empty."""

  def fill(x: np.ndarray) -> np.ndarray:
    more = rows - len(x)
    return np.concatenate([x, np.zeros((more, *x.shape[1:]), x.dtype)]) if more else x

  return jax.tree.map(fill, patches)


@functools.partial(jax.jit, static_argnames="layout")
def _joined(
  layout: mesh_lib.MeshLayout,
  known: Float[Array, "prompts media embed"],
  made: Float[Array, "rows media embed"],
  source: Int[Array, "prompts"],
) -> Float[Array, "prompts media embed"]:
  """Features of all prompts: the row of `made` that `source` names, or where that is -1 those known before."""
  taken = made[jnp.maximum(source, 0)]
  joined = jnp.where((source >= 0)[:, None, None], taken, known)
  return layout.place(joined, ("prompts", None, None))


def _entries(batch: parts_lib.Batch, made: Float[Array, "rows media embed"]) -> Callable[[], Any]:
  """What makes entries of the cache of features on the mesh: those of this process's items that were missing."""
  index = batch.prompt.media_index
  kept = [
    (place, batch.items[row].kept_as, index[row][index[row] >= 0])
    for place, row in enumerate(batch.missing)
    if row < len(batch.items) and batch.items[row].kept_as
  ]

  def make() -> feature_cache.Entries:
    rows = mesh_lib.local_rows(made)
    for place, name, media in kept:
      yield name, rows[place][media]

  return make
