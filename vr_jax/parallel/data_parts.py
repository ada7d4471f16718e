"""Sums over a batch whose rows are split over the mesh axis `data`, exchanged once.

Left to XLA's partitioner, the gradient of a parameter is summed over `data` where it is made: in
each layer of each micro-batch. Here a function is called for the rows of each part, and only its
results are summed.
"""

from collections.abc import Callable
import dataclasses

import jax
from jax import flatten_util
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import PyTree
import numpy as np

from vr_jax.parallel import mesh as mesh_lib

_SMALL = 2**18  # elements


def pay(devices: np.ndarray) -> bool:
  """Whether exchanges along `data` are slow: between slices of TPUs, processes, or CPU devices.

  Within a slice the partitioner's own sums are cheap, and its programs a little better.

  devices: of a mesh, [data, fsdp, sequence, tensor].
  """
  if devices.flat[0].platform == "cpu":
    return len(devices) > 1
  # Devices of a single slice that is not attached have no number of it.
  places = [
    {getattr(d, "slice_index", 0) if d.platform == "tpu" else d.process_index for d in part.flat}
    for part in devices
  ]
  return any(part != places[0] for part in places)


def layout_of_part(layout: mesh_lib.MeshLayout) -> mesh_lib.MeshLayout:
  """The layout of a model in the function of `sum_of_parts`, on a mesh that `data` splits."""
  sizes = layout.mesh.shape
  # Axes of one device are outside, too, if that leaves none: a Pallas kernel is called on its own.
  outside = layout.mesh.axis_names if sizes["data"] == layout.mesh.size else ("data",)
  return dataclasses.replace(layout, of_decoding=None, outside=outside)


def sum_of_parts(
  function: Callable[[PyTree, PyTree], PyTree],
  params: PyTree,
  rows: PyTree,
  layout: object,
) -> PyTree:
  """Sums `function(params, rows of a part)` over the parts of a batch along the mesh axis `data`.

  params: are not split over `data`.
  rows: arrays [micro-batches, prompts, …].
  layout: of the models in the function: one of `layout_of_part`. With any other layout the function
    gets all rows.
  """
  if not isinstance(layout, mesh_lib.MeshLayout) or not layout.outside:
    return function(params, rows)
  is_whole = set(layout.outside) == set(layout.mesh.axis_names)  # a part has one device

  def of_part(params: PyTree, rows: PyTree) -> PyTree:
    results = function(params, rows)
    return _sum_joined(results, "data") if is_whole else jax.lax.psum(results, "data")

  mapped = jax.shard_map(
    of_part,
    mesh=layout.mesh,
    in_specs=(PartitionSpec(), PartitionSpec(None, "data")),
    out_specs=PartitionSpec(),
    axis_names=set(layout.outside),
    check_vma=False,
  )
  return mapped(params, rows)


def _sum_joined(tree: PyTree, axis: str) -> PyTree:
  """Sums arrays over a mesh axis; small ones as one array, since CPUs exchange each on its own."""
  leaves, structure = jax.tree.flatten(tree)
  is_small = [x.size <= _SMALL and x.dtype == jnp.float32 for x in leaves]
  joined, split = flatten_util.ravel_pytree(
    [x for x, small in zip(leaves, is_small, strict=True) if small]
  )
  sums = iter(split(jax.lax.psum(joined, axis)))
  return jax.tree.unflatten(
    structure,
    [
      next(sums) if small else jax.lax.psum(x, axis)
      for x, small in zip(leaves, is_small, strict=True)
    ],
  )
