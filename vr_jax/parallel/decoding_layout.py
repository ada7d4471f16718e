"""The layout of decoding, whose weights, caches and slots need not lie as training has them.

An update has many tokens a device, so that `fsdp` can split weights and gather each layer's. A step
of decoding has one token a slot: it is bound by reading weights, and the fewer a device reads, the
faster it is. So the devices of `fsdp` become tensor ones (`tensor`): feed-forward layers and the
vocabulary are split over all devices but those of `data`. Heads are split over as many as share the
keys' heads evenly; the other devices split the slots and their prompts (data-parallel attention).
Hidden states of the slots, which are small, are summed and are whole on all these devices.
"""

from collections.abc import Mapping, Sequence
import math

from flax import nnx
import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from vr_jax.parallel import mesh as mesh_lib

KINDS = ("training", "replicated", "tensor")  # values of config.rl.decode_layout
# The mesh of `tensor`: fsdp is split in two.
AXES = ("data", "fsdp", "fsdp_heads", "sequence", "tensor")


def make(mesh: Mesh, kind: str, params: PyTree) -> mesh_lib.MeshLayout:
  """The layout of a model on a mesh, which has that of decoding as `decoding`.

  kind: training: decoding has weights as training has them, and receives those of `fsdp` for each
    token; replicated: only `tensor` of the mesh splits them; tensor: see above.
  params: an nnx.State whose variables have `axes` metadata; only their shapes are read.
  """
  if kind == "training" or mesh.size == 1:
    return mesh_lib.MeshLayout(mesh)
  if kind == "replicated":
    return mesh_lib.MeshLayout(mesh, of_decoding=mesh_lib.MeshLayout(mesh, (("embed", ()),)))
  if kind != "tensor":
    raise ValueError(f"{kind!r}: not one of {KINDS}")
  return mesh_lib.MeshLayout(mesh, of_decoding=_tensor(mesh, _sizes(params)))


def _tensor(mesh: Mesh, sizes: Mapping[str, int]) -> mesh_lib.MeshLayout:
  data, fsdp, sequence, tensor = mesh.devices.shape
  owners = [
    frozenset(device.process_index for device in devices)
    for devices in mesh.devices.reshape(data * fsdp, -1)
  ]
  ways = heads_ways(owners, fsdp, sizes.get("kv_heads", 1) // tensor)
  shape = (data, fsdp // ways, ways, sequence, tensor)
  # The order of the devices stays, so that one program can have arrays of both layouts.
  split = Mesh(mesh.devices.reshape(shape), AXES)

  def most(name: str) -> tuple[str, ...]:
    """The most of all axes but data that divide the size; the innermost ones at the least."""
    choices = (AXES[start:] for start in range(1, len(AXES)))
    size = sizes.get(name, 1)
    return next((c for c in choices if size % math.prod(split.shape[a] for a in c) == 0), ())

  heads = ("fsdp_heads", "tensor")
  return mesh_lib.MeshLayout(
    split,
    (
      ("embed", ()),
      ("heads", heads),
      ("kv_heads", heads),
      ("mlp", most("mlp")),
      ("vocab", most("vocab")),
      ("hidden_slots", ("data",)),
      ("draws", AXES),
    ),
  )


def heads_ways(owners: Sequence[frozenset[int]], fsdp: int, kv_heads: int) -> int:
  """Over how many devices of fsdp heads are split: the most that divide them.

  These devices have the same prompts, so that they have to belong to the same processes.

  owners: processes of each place along data and fsdp, in order.
  kv_heads: of a device of tensor.
  """

  def fits(ways: int) -> bool:
    groups = [owners[start : start + ways] for start in range(0, len(owners), ways)]
    return all(len(set(group)) == 1 for group in groups)

  common = math.gcd(fsdp, kv_heads)
  return max(ways for ways in range(1, common + 1) if common % ways == 0 and fits(ways))


def _sizes(params: PyTree) -> dict[str, int]:
  """The greatest common divisor of the sizes of each logical axis."""
  sizes: dict[str, int] = {}
  for variable in jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, nnx.Variable)):
    shape = variable.get_value().shape
    axes = variable.get_metadata().get("axes") or (None,) * len(shape)
    for name, size in zip(axes, shape, strict=True):
      if name:
        sizes[name] = math.gcd(sizes.get(name, 0), size)
  return sizes
