"""Two meshes of one shape: half of each process's devices samples while the other half trains.

Device i of both meshes belongs to the same process. So arrays go from one mesh to the other from
device to device, without a gather and without other processes.
"""

from collections.abc import Sequence
import dataclasses

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from vr_jax import errors
from vr_jax.parallel import absent_tpu
from vr_jax.parallel import mesh as mesh_lib

# TPUs for which libtpu 0.0.42.1 can't compile programs of some chips of each of several hosts.
_WHOLE_HOSTS = ("v5 lite", "v5e", "v6 lite", "v6e")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DisjointMeshes:
  """The mesh that samples and the mesh that trains.

  JAX puts what has no sharding, as random keys, on the first device, which samples: there it does
  not wait for an update.
  """

  sampling: Mesh
  training: Mesh

  @classmethod
  def make(
    cls,
    shape: Sequence[int],
    devices: Sequence[jax.Device] | None = None,  # pyright: ignore[reportInvalidTypeForm] C++
  ) -> "DisjointMeshes":
    """Makes both of all devices. shape: of each, as for `mesh.make_mesh`.

    Raises InputError if a process has an odd number of devices, the shape does not fit a half, or
    TPUs can't be split so.
    """
    absent_tpu.leave_out()
    devices = jax.devices() if devices is None else devices
    own: dict[int, list[jax.Device]] = {}  # pyright: ignore[reportInvalidTypeForm]
    for device in devices:
      own.setdefault(device.process_index, []).append(device)
    kind = devices[0].device_kind
    if len(own) > 1 and any(name in kind.lower() for name in _WHOLE_HOSTS):
      raise errors.InputError(
        f"--config.rl.disjoint_meshes: the compiler makes no program for half of the chips of each "
        f"of {len(own)} hosts of {kind}; set it to False, or take one host, v5p or TPU7x"
      )
    sampling, training = [], []
    for index, each in sorted(own.items()):
      if len(each) % 2:
        raise errors.InputError(
          f"--config.rl.disjoint_meshes: needs an even number of devices in each process, and "
          f"process {index} has {len(each)}; set it to False"
        )
      sampling += each[: len(each) // 2]
      training += each[len(each) // 2 :]
    try:
      meshes = [mesh_lib.make_mesh(shape, devices=half) for half in (sampling, training)]
    except errors.InputError as error:
      raise errors.InputError(f"{error} for each of rl.disjoint_meshes") from error
    return cls(sampling=meshes[0], training=meshes[1])

  def to_training(self, tree: PyTree) -> PyTree:
    """Copies arrays from the mesh that samples to the one that trains, without waiting for it."""
    return _copy(tree, self.sampling, self.training)

  def to_sampling(self, tree: PyTree) -> PyTree:
    """Copies arrays from the mesh that trains to the one that samples, without waiting for it."""
    return _copy(tree, self.training, self.sampling)


def _copy(tree: PyTree, source: Mesh, target: Mesh) -> PyTree:
  leaves, structure = jax.tree.flatten(tree)
  partner = dict(zip(source.devices.flat, target.devices.flat, strict=True))
  shards = [shard for x in leaves for shard in x.addressable_shards]
  # One call for all, so that the copies run beside each other.
  copies = iter(jax.device_put([s.data for s in shards], [partner[s.device] for s in shards]))
  arrays = [
    jax.make_array_from_single_device_arrays(
      x.shape, _on(x.sharding, target), [next(copies) for _ in x.addressable_shards]
    )
    for x in leaves
  ]
  return jax.tree.unflatten(structure, arrays)


def _on(sharding: jax.sharding.Sharding, mesh: Mesh) -> NamedSharding:
  """The same sharding on another mesh of the same shape."""
  spec = sharding.spec if isinstance(sharding, NamedSharding) else PartitionSpec()
  assert isinstance(sharding, NamedSharding) or sharding.is_fully_replicated, sharding
  return NamedSharding(mesh, spec)


def training_mesh(shape: Sequence[int], *, disjoint: bool) -> Mesh:
  """The mesh of all devices, or the one that trains of two disjoint ones. Raises as these do."""
  return DisjointMeshes.make(shape).training if disjoint else mesh_lib.make_mesh(shape)
