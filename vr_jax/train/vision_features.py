"""Computes the features of a frozen vision tower once for the whole run, and caches them on disk.

with vision_features.open_cache(context, params, workdir) as cache:
  iterator = context.builder.read("train", 16, cache=cache)
  featurized = vision_features.prompt_with_features(context, params, next(iterator), cache)
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
from vr_jax.models.common import prompts, stored_weights, weight_mapping
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.parallel import processes
from vr_jax.rollout import encoder
from vr_jax.train import batching, paths, run_context

Cache = feature_cache.FeatureCache | None


@contextlib.contextmanager
def open_cache(context: run_context.RunContext, params: PyTree, workdir: Path) -> Iterator[Cache]:
  """Opens the feature cache of a run.

  Yields None if the tower is trained, config.model.feature_cache_gib is 0, or turns choose frames.

  Raises InputError if the cache belongs to another tower or preprocessing; or, at the latest when
  it closes, if it can't be written.
  """
  section = context.config.model
  if (
    not context.tower_frozen or not section.feature_cache_gib or context.environment.chooses_frames
  ):
    yield None
    return
  cache = feature_cache.FeatureCache(
    paths.features_directory(context.config, workdir),
    cache_identity(context, params),
    dtype=context.model.vision_shapes.dtype,
    gibibytes=section.feature_cache_gib,
  )
  with contextlib.closing(cache):
    yield cache


def cache_identity(context: run_context.RunContext, params: PyTree) -> dict[str, Any]:
  """Everything but the clip that its features depend on: the tower, and the preprocessing."""
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
  """Hashes parameters on a mesh and their names. The result does not depend on the sharding."""
  flat = {name: variable.get_value() for name, variable in weight_mapping.flat(params).items()}
  sums = jax.device_get(jax.jit(_sums, out_shardings=mesh_lib.replicated(mesh))(flat))
  described = [[n, str(x.dtype), list(x.shape), sums[n].tolist()] for n, x in sorted(flat.items())]
  return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def _sums(arrays: dict[str, Array]) -> dict[str, UInt32[Array, "4"]]:
  """Computes four checksums of each array: sums modulo 2^32 over hashes of entry and index.

  Integers may be summed in any order, so the result does not depend on the sharding.
  """

  def part_sums(bits: Array, place: Array) -> Array:
    place = jnp.full(bits.shape, place, jnp.uint32)
    for axis, size in enumerate(bits.shape):
      place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
    salts = (0x9E3779B9 * number % 2**32 for number in range(1, 5))
    mixed = [_scrambled(bits ^ _scrambled(place ^ jnp.uint32(salt))) for salt in salts]
    return jnp.stack([numbers.sum(dtype=jnp.uint32) for numbers in mixed])

  return jax.tree.map(lambda x: stored_weights.sum_bits(part_sums, x), arrays)


def _scrambled(x: Array) -> Array:
  """Hashes each number: flipping one bit of it flips about half of the result's.

  Source: MurmurHash3's fmix32.
  """
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeaturizedBatch:
  """A batch on the devices.

  batch: the batch in the buckets that all processes share.
  prompt: its prompts on the mesh.
  metrics: of the cache.
  """

  batch: batching.Batch
  prompt: records.Prompt
  metrics: dict[str, float]


def prompt_with_features(
  context: run_context.RunContext, params: PyTree, batch: batching.Batch, cache: Cache
) -> FeaturizedBatch:
  """Puts the prompts of a batch on the mesh; all processes must call this together.

  Without a cache the prompts have patches. With one they have features. The tower then runs only
  for prompts that are not in the cache, padded to a power of two of rows on each device; with
  several processes, all run it for as many rows as the process that misses most. The new features
  are written to the cache during the next steps.
  """
  mesh = context.mesh
  if cache is None:
    batch = context.builder.pad_to_common_buckets(batch)
    return FeaturizedBatch(batch=batch, prompt=context.builder.prompt(batch), metrics={})
  batch, most, metrics = _agree_on_missing(context, batch)
  featurized = functools.partial(FeaturizedBatch, batch=batch, metrics=metrics)
  if not most:
    return featurized(prompt=context.builder.prompt(batch))
  size = len(batch.prompt.tokens)
  rows = batching.bucket_size(most, size, mesh)
  patches = mesh_lib.put_batch(_pad_rows(batch.vision_inputs, rows), mesh, axes=mesh_lib.VISION)
  made = encoder.features(context.graphdef, params, patches)
  cache.put_later(_entries(batch, made, context.model.vision_shapes))
  bare = dataclasses.replace(batch.prompt, vision=None, media=None)
  if not metrics["vision/cache_hits"]:
    return featurized(prompt=dataclasses.replace(mesh_lib.put_batch(bare, mesh), media=made))
  media = batch.prompt.media
  if media is None:  # only other processes had hits
    media = jax.tree.map(lambda x: np.zeros((size, *x.shape[1:]), x.dtype), made)
  source = np.full(size, -1, np.int32)
  first = mesh_lib.process_shard(mesh)[0] * rows
  source[list(batch.missing)] = first + np.arange(len(batch.missing))
  known = mesh_lib.put_batch(dataclasses.replace(bare, media=media), mesh)
  source = mesh_lib.put_batch(source, mesh)
  media = _select_features(mesh_lib.MeshLayout(mesh), known.media, made, source)
  return featurized(prompt=dataclasses.replace(known, media=media))


def _agree_on_missing(
  context: run_context.RunContext, batch: batching.Batch
) -> tuple[batching.Batch, int, dict[str, float]]:
  """Lets all processes agree on buckets and on missing rows.

  Processes may have parts of the same rows, and each has looked into a cache of its own. A row that
  one of them misses counts as missing.

  Returns (batch in the common buckets, missing rows of the process that misses most, metrics).
  """
  missing = np.zeros(len(batch.prompt.tokens), bool)
  missing[list(batch.missing)] = True
  damaged, buckets = sum(item.damaged for item in batch.items), batching.bucket_sizes(batch)
  process_index, process_count = mesh_lib.process_shard(context.mesh)
  own = [process_index, damaged, len(batch.items), *missing, *buckets]
  gathered = processes.gather_numbers("buckets and features", np.array(own))
  gathered, buckets = np.split(gathered, [-len(buckets)], axis=1)
  by_process = [gathered[gathered[:, 0] == number] for number in range(process_count)]
  union = [np.logical_or.reduce(one[:, 3:], axis=0) for one in by_process]
  batch = context.builder.rebuild(
    batch,
    sizes=batching.common_buckets(buckets),
    drop_features_of=np.flatnonzero(union[process_index] & ~missing).tolist(),
  )
  hits = sum((~rows[: one[0, 2]]).sum() for one, rows in zip(by_process, union, strict=True))
  metrics = {
    "vision/cache_hits": float(hits),
    "vision/cache_rebuilt": float(sum(one[:, 1].max() for one in by_process)),
  }
  return batch, max(int(rows.sum()) for rows in union), metrics


def _pad_rows(patches: PyTree, rows: int) -> PyTree:
  """Pads all arrays to `rows` rows, with zeros."""

  def fill(x: np.ndarray) -> np.ndarray:
    more = rows - len(x)
    return np.concatenate([x, np.zeros((more, *x.shape[1:]), x.dtype)]) if more else x

  return jax.tree.map(fill, patches)


@functools.partial(jax.jit, static_argnames="layout")
def _select_features(
  layout: mesh_lib.MeshLayout,
  known: PyTree,
  made: PyTree,
  source: Int[Array, "prompts"],
) -> PyTree:
  """Selects the features [prompts, media, …] of each prompt.

  source: the row of `made` to take; -1: take the row of `known`.
  """

  def select(known: Array, made: Array) -> Array:
    rest = (None,) * (made.ndim - 1)
    taken = made[jnp.maximum(source, 0)]
    chosen = jnp.where((source >= 0)[(slice(None), *rest)], taken, known)
    return layout.place(chosen, ("prompts", *rest))

  return jax.tree.map(select, known, made)


def _entries(
  batch: batching.Batch, made: PyTree, shapes: prompts.VisionShapes
) -> Callable[[], Any]:
  """Returns a function that makes the cache entries of this process's missing items."""
  index = batch.prompt.media_index
  kept = [
    (place, name, index[row][index[row] >= 0])
    for place, row in enumerate(batch.missing)
    if row < len(batch.items) and (name := batch.items[row].cache_key)
  ]

  def make() -> feature_cache.Entries:
    rows = jax.tree.map(mesh_lib.local_rows, made)
    for place, name, media in kept:
      found = jax.tree.map(lambda x, place=place, media=media: x[place][media], rows)
      yield name, shapes.pack_features(found)

  return make
