"""Features of a frozen tower, once for the whole run: from the cache what it has, from the tower the rest, which is then kept.

with features.cache(context, params, workdir) as cache:
  iterator = context.builder.read("train", 16, cache=cache)
  encoded = features.prompt(context, params, next(iterator), cache)
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
from jaxtyping import Array, Int, PyTree, UInt32
import numpy as np

from vr_jax import records
from vr_jax.data import feature_cache
from vr_jax.models.common import prompts, weight_mapping
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.parallel import processes
from vr_jax.rollout import encoder
from vr_jax.train import batching, paths, run_context

Cache = feature_cache.FeatureCache | None


@contextlib.contextmanager
def open_cache(context: run_context.RunContext, params: PyTree, workdir: Path) -> Iterator[Cache]:
  """That of a run's tower; None where the tower is trained or config.model.feature_cache_gib is 0, as with several turns.

  Raises InputError where it belongs to another tower or preprocessing, or can't be written, at the latest when it closes.
  """
  section = context.config.model
  if (
    not context.tower_frozen or not section.feature_cache_gib or context.environment.chooses_frames
  ):
    yield None
    return
  made = feature_cache.FeatureCache(
    paths.features_directory(context.config, workdir),
    cache_identity(context, params),
    dtype=context.model.vision_shapes.dtype,
    gibibytes=section.feature_cache_gib,
  )
  with contextlib.closing(made):
    yield made


def cache_identity(context: run_context.RunContext, params: PyTree) -> dict[str, Any]:
  """All that the features of a clip depend on beside it: the tower's weights and sizes, and how frames become patches."""
  tower = weight_mapping.part(params, context.family.tower)
  return {
    "tower": {
      "weights": fingerprint(tower, context.mesh),
      "dtype": context.model.dtype,
      **context.model.tower_fields,
    },
    "preprocessing": context.processor.preprocessing,
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fed:
  """A batch in the buckets that all processes share, its prompts on the mesh, and what the cache had of them, by name."""

  batch: batching.Batch
  prompt: records.Prompt
  values: dict[str, float]


def prompt_with_features(
  context: run_context.RunContext, params: PyTree, batch: batching.Batch, cache: Cache
) -> Fed:
  """The prompts of a batch on the mesh; all processes must call this together.

  Without a cache they hold patches. With one they hold features: the tower runs for those prompts alone that it does not
  have, filled up to a power of two of rows a device, and it keeps them later, beside the steps that follow. Of several
  processes all run it for as many rows as the one that misses most.
  """
  mesh = context.mesh
  if cache is None:
    batch = context.builder.pad_to_common_buckets(batch)
    return Fed(batch=batch, prompt=context.builder.prompt(batch), values={})
  batch, most, values = _agreed(context, batch)
  fed = functools.partial(Fed, batch=batch, values=values)
  if not most:
    return fed(prompt=context.builder.prompt(batch))
  size = len(batch.prompt.tokens)
  rows = mesh_lib.bucket_size(most, size, mesh)
  patches = mesh_lib.put_batch(_filled_up(batch.patches, rows), mesh, axes=mesh_lib.VISION)
  made = encoder.features(context.graphdef, params, patches)
  cache.put_later(_entries(batch, made, context.model.vision_shapes))
  bare = dataclasses.replace(batch.prompt, vision=None, media=None)
  if not values["vision/cache_hits"]:
    return fed(prompt=dataclasses.replace(mesh_lib.put_batch(bare, mesh), media=made))
  media = batch.prompt.media
  if media is None:  # other processes have some
    media = jax.tree.map(lambda x: np.zeros((size, *x.shape[1:]), x.dtype), made)
  source = np.full(size, -1, np.int32)
  first = mesh_lib.process_shard(mesh)[0] * rows
  source[list(batch.missing)] = first + np.arange(len(batch.missing))
  known = mesh_lib.put_batch(dataclasses.replace(bare, media=media), mesh)
  media = _joined(mesh_lib.MeshLayout(mesh), known.media, made, mesh_lib.put_batch(source, mesh))
  return fed(prompt=dataclasses.replace(known, media=media))


def _agreed(
  context: run_context.RunContext, batch: batching.Batch
) -> tuple[batching.Batch, int, dict[str, float]]:
  """(the batch of this process, rows of the process that misses most, what the caches had) as all processes see it.

  The batch comes in the buckets that hold those of all. Processes that hold parts of the same rows have each looked into a
  cache: what one of them misses counts as missing.
  """
  missing = np.zeros(len(batch.prompt.tokens), bool)
  missing[list(batch.missing)] = True
  damaged, buckets = sum(item.damaged for item in batch.items), batching.bucket_sizes(batch)
  share, count = mesh_lib.process_shard(context.mesh)
  own = [share, damaged, len(batch.items), *missing, *buckets]
  told = processes.all_gather(np.array(own))
  told, buckets = np.split(told, [-len(buckets)], axis=1)
  by_share = [told[told[:, 0] == number] for number in range(count)]
  union = [one[:, 3:].any(axis=0) for one in by_share]
  batch = context.builder.rebuild(
    batch,
    sizes=batching.common_buckets(buckets),
    unknown=np.flatnonzero(union[share] & ~missing).tolist(),
  )
  hits = sum((~rows[: one[0, 2]]).sum() for one, rows in zip(by_share, union, strict=True))
  values = {
    "vision/cache_hits": float(hits),
    "vision/cache_rebuilt": float(sum(one[:, 1].max() for one in by_share)),
  }
  return batch, max(int(rows.sum()) for rows in union), values


def _filled_up(patches: PyTree, rows: int) -> PyTree:
  """With as many rows, the last of them empty."""

  def fill(x: np.ndarray) -> np.ndarray:
    more = rows - len(x)
    return np.concatenate([x, np.zeros((more, *x.shape[1:]), x.dtype)]) if more else x

  return jax.tree.map(fill, patches)


@functools.partial(jax.jit, static_argnames="layout")
def _joined(
  layout: mesh_lib.MeshLayout,
  known: PyTree,
  made: PyTree,
  source: Int[Array, "prompts"],
) -> PyTree:
  """Features [prompts, media, …] of all: the row of `made` that `source` names, or where that is -1 those known before."""

  def joined(known: Array, made: Array) -> Array:
    rest = (None,) * (made.ndim - 1)
    taken = made[jnp.maximum(source, 0)]
    chosen = jnp.where((source >= 0)[(slice(None), *rest)], taken, known)
    return layout.place(chosen, ("prompts", *rest))

  return jax.tree.map(joined, known, made)


def _entries(
  batch: batching.Batch, made: PyTree, shapes: prompts.VisionShapes
) -> Callable[[], Any]:
  """What makes entries of the cache of features on the mesh: those of this process's items that were missing."""
  index = batch.prompt.media_index
  kept = [
    (place, batch.items[row].kept_as, index[row][index[row] >= 0])
    for place, row in enumerate(batch.missing)
    if row < len(batch.items) and batch.items[row].kept_as
  ]

  def make() -> feature_cache.Entries:
    rows = jax.tree.map(mesh_lib.local_rows, made)
    for place, name, media in kept:
      found = jax.tree.map(lambda x, place=place, media=media: x[place][media], rows)
      yield name, shapes.pack_features(found)

  return make
