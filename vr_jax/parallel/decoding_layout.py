"""The layout of decoding, whose weights, caches and slots need not lie as training has them.

An update has many tokens a device, so that `fsdp` can split weights and gather each layer's. A step
of decoding has one token a slot: it is bound by reading weights, and the fewer a device reads, the
faster it is. So the devices of `fsdp` become tensor ones (`tensor`): feed-forward layers and the
vocabulary are split over all devices but those of `data`. Heads are split over as many as share the
keys' heads evenly; the other devices split the slots and their prompts (data-parallel attention).
Hidden states of the slots are summed and are whole on all these devices. They are small where slots
are few. Where they are many, several copies of the weights have a part of the slots each.
"""

from collections.abc import Sequence
import math

from flax import nnx
import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from vr_jax import errors
from vr_jax.parallel import mesh as mesh_lib

KINDS = ("training", "replicated", "tensor")  # values of config.rl.decode_layout
# The mesh of `tensor`: fsdp is split in three.
AXES = ("data", "copies", "fsdp", "fsdp_heads", "sequence", "tensor")
# A device's bandwidth of memory over that of its links together: 4 to 6 on v5e to TPU7x.
_MEMORY_OVER_LINKS = 5


def make(
  mesh: Mesh, kind: str, params: PyTree, *, slots: int = 1, copies: int = 0
) -> mesh_lib.MeshLayout:
  """The layout of a model on a mesh, which has that of decoding as `decoding`.

  kind: training: decoding has weights as training has them, and receives those of `fsdp` for each
    token; replicated: only `tensor` of the mesh splits them; tensor: see above.
  params: an nnx.State whose variables have `axes` metadata; only their shapes are read.
  slots: that decode at once, averaged over tokens; for `tensor`.
  copies: of the weights at each place along data, of `tensor`; 0: see `choose_copies`.

  Raises InputError if the devices of fsdp can't be split so.
  """
  if kind == "training" or mesh.size == 1:
    return mesh_lib.MeshLayout(mesh)
  if kind == "replicated":
    return mesh_lib.MeshLayout(mesh, of_decoding=mesh_lib.MeshLayout(mesh, (("embed", ()),)))
  if kind != "tensor":
    raise ValueError(f"{kind!r}: not one of {KINDS}")
  return mesh_lib.MeshLayout(mesh, of_decoding=_tensor(mesh, params, slots, copies))


def _tensor(mesh: Mesh, params: PyTree, slots: int, copies: int) -> mesh_lib.MeshLayout:
  sizes = _sizes(params)
  data, fsdp, sequence, tensor = mesh.devices.shape
  owners = [
    frozenset(device.process_index for device in devices)
    for devices in mesh.devices.reshape(data * fsdp, -1)
  ]
  ways = heads_ways(owners, fsdp, sizes.get("kv_heads", 1) // tensor)
  copies = copies or choose_copies(params, fsdp // ways, mesh.size // data, slots // data)
  if fsdp // ways % copies:
    raise errors.InputError(
      f"config.rl.decode_copies={copies}: not a divisor of {fsdp // ways}, the devices of fsdp "
      "over those that split heads"
    )
  shape = (data, copies, fsdp // ways // copies, ways, sequence, tensor)
  # The order of the devices stays, so that one program can have arrays of both layouts.
  split = Mesh(mesh.devices.reshape(shape), AXES)

  def most(name: str) -> tuple[str, ...]:
    """The most of all axes but data and copies that divide the size; at least the innermost."""
    choices = (AXES[start:] for start in range(2, len(AXES)))
    size = sizes.get(name, 1)
    return next((c for c in choices if size % math.prod(split.shape[a] for a in c) == 0), ())

  heads = ("fsdp_heads", "tensor")
  of_weights = {"heads": heads, "kv_heads": heads, "mlp": most("mlp"), "vocab": most("vocab")}
  # Copies split weights along another axis first, and then gather them. XLA would make all of them
  # whole on the way otherwise.
  parts = (("embed", ("copies",)), *of_weights.items())
  on_the_way = mesh_lib.MeshLayout(split, parts) if copies > 1 else None
  # Copies split what data splits.
  rows = {name: axes for name, axes in mesh_lib.RULES.items() if "data" in axes}
  return mesh_lib.MeshLayout(
    split,
    (
      *((name, ("data", "copies", *axes[1:])) for name, axes in rows.items()),
      ("embed", ()),
      *of_weights.items(),
      ("hidden_slots", ("data", "copies")),
      ("draws", AXES),
    ),
    on_the_way=on_the_way,
  )


def choose_copies(params: PyTree, most: int, devices: int, slots: int) -> int:
  """How many copies of the weights make a token fastest: a divisor of `most`.

  With more copies a device reads more weights, and sums hidden states of fewer slots with fewer
  devices. Both are counted as one after the other, at two bytes a number.

  devices, slots: at one place along data.
  """
  shaped = [
    (variable.get_value().shape, variable.get_metadata().get("axes") or ())
    for variable in jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, nnx.Variable))
  ]
  split = [each for each in shaped if not {"heads", "kv_heads", "mlp", "vocab"}.isdisjoint(each[1])]
  weights = sum(math.prod(shape) for shape, _ in split)
  # Products that sum over what is split.
  summed = sum(
    math.prod(size for size, name in zip(shape, axes, strict=True) if name in ("layers", "embed"))
    for shape, axes in split
    if axes[-1:] == ("embed",) and "vocab" not in axes
  )

  def bytes_read(copies: int) -> float:
    sums = 2 * (1 - copies / devices) * summed * slots / copies
    return 2 * (weights * copies / devices + _MEMORY_OVER_LINKS * sums)

  return min((n for n in range(1, most + 1) if most % n == 0), key=bytes_read)


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
