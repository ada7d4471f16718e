"""The mesh of devices, and where each array lives on it.

Parameters carry logical axis names; `RULES` is the one table that maps them to mesh axes. Model code never names a mesh
axis. Batches are split on their prompts axis over `data` and `fsdp`.
"""

from collections.abc import Mapping, Sequence
import dataclasses

from flax import nnx
import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree
import numpy as np

from vr_jax import errors, records

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")

# logical axis of a parameter -> mesh axis that it is split over (absent: replicated)
RULES: Mapping[str, str] = {
  "embed": "fsdp",
  "vision_embed": "fsdp",
  "heads": "tensor",
  "kv_heads": "tensor",
  "mlp": "tensor",
  "vocab": "tensor",
  "vision_heads": "tensor",
  "vision_mlp": "tensor",
}


def make_mesh(shape: Sequence[int], devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A mesh (data, fsdp, tensor) of all devices; -1 in one place of `shape` means: what is left.

  Raises InputError where the shape does not use each device exactly once.
  """
  devices = jax.devices() if devices is None else devices
  shape = tuple(shape)
  fixed = int(np.prod([size for size in shape if size != -1]))
  if len(shape) != len(AXES) or shape.count(-1) > 1 or any(s < 1 and s != -1 for s in shape):
    raise errors.InputError(
      f"config.mesh={shape}: needs three sizes (data, fsdp, tensor), at most one -1"
    )
  if len(devices) % fixed or (-1 not in shape and fixed != len(devices)):
    raise errors.InputError(
      f"config.mesh={shape}: does not divide the {len(devices)} devices of this run"
    )
  sizes = [len(devices) // fixed if size == -1 else size for size in shape]
  return Mesh(np.asarray(devices).reshape(sizes), AXES)


def param_shardings(params: PyTree, mesh: Mesh, rules: Mapping[str, str] = RULES) -> PyTree:
  """The sharding of each parameter, in the structure of `params` (an nnx.State of variables with `axes` metadata).

  Raises InputError where a mesh axis does not divide the dimension that it splits.
  """

  def of_variable(path: tuple, variable: nnx.Variable) -> nnx.Variable:
    axes = variable.get_metadata().get("axes") or (None,) * variable.get_value().ndim
    shape = variable.get_value().shape
    spec = [rules.get(axis) if axis else None for axis in axes]
    for size, axis, name in zip(shape, spec, axes, strict=True):
      if axis and size % mesh.shape[axis]:
        raise errors.InputError(
          f"config.mesh: {axis}={mesh.shape[axis]} does not divide {name}={size} of "
          f"{jax.tree_util.keystr(path, simple=True, separator='.')}"
        )
    return variable.replace(NamedSharding(mesh, PartitionSpec(*spec)))

  return jax.tree.map_with_path(of_variable, params, is_leaf=lambda x: isinstance(x, nnx.Variable))


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of what every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def put_batch(batch: PyTree, mesh: Mesh) -> PyTree:
  """Host arrays of this process -> global arrays, split on the prompts axis.

  That is axis 0 of every leaf but `Prompt.positions` ([3, prompts, prefix]), whose it is 1.
  """

  def sharding(_: np.ndarray, axis: int = 0) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(*([None] * axis), BATCH))

  shardings = jax.tree.map(sharding, batch)
  if isinstance(batch, records.Prompt):
    shardings = dataclasses.replace(shardings, positions=sharding(batch.positions, 1))
  # One call for all leaves: each of its own would give up the interpreter to the threads that read ahead.
  return jax.make_array_from_process_local_data(shardings, batch)


def check_batch(prompts: int, mesh: Mesh | AbstractMesh, flag: str, *, parts: int = 1) -> None:
  """Raises InputError where a batch can't be split evenly into micro-batches, and these over the mesh.

  `flag` names the field at fault.
  """
  ways = mesh.shape["data"] * mesh.shape["fsdp"]
  if prompts < 1 or parts < 1 or prompts % (ways * parts):
    raise errors.InputError(
      f"{flag}={prompts}: not a multiple of {ways * parts} = data x fsdp of config.mesh ({ways}) x "
      f"microbatches ({parts})"
    )


def local_rows(x: jax.Array) -> np.ndarray:
  """The rows (axis 0) of a batch array that this process holds, in order, on the host."""
  if x.is_fully_addressable:
    return np.asarray(x)
  shards = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
  return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
