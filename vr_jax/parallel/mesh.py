"""The mesh of devices, and where each array lives on it.

Parameters and activations carry logical axis names; `RULES` is the one table that maps them to mesh axes. Model code never
names a mesh axis.
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import math
import os

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree
import numpy as np

from vr_jax import errors, records
from vr_jax.parallel import processes

AXES = ("data", "fsdp", "sequence", "tensor")

# Logical axis -> mesh axes that it is split over, the first named outermost (absent: whole on every device). An array uses
# each mesh axis once: what comes first in it takes it.
RULES: Mapping[str, tuple[str, ...]] = {
  # of parameters
  "embed": ("fsdp", "sequence"),
  "vision_embed": ("fsdp", "sequence"),
  "heads": ("tensor",),
  "kv_heads": ("tensor",),
  "mlp": ("tensor",),
  "vocab": ("tensor",),
  "vision_heads": ("tensor",),
  "vision_mlp": ("tensor",),
  # of batches and activations, which also have heads, mlp and vocab
  "prompts": ("data", "fsdp"),
  "prefix": ("sequence",),
  "frames": ("sequence",),
  "group": ("sequence",),
  "slots": ("data", "fsdp", "sequence"),
  "time": ("sequence",),
}

VISION = ("prompts", "frames")  # the leading axes of what a vision tower reads

# The leading axes of the fields of a prompt that are not [prompts, prefix, …].
_PROMPT_AXES = {
  "next_position": ("prompts",),
  "media": ("prompts",),
  "vision": VISION,
}


def split_cpu(devices: int) -> None:
  """Makes a host without accelerators count as so many devices; 0: as many as JAX says.

  That many it keeps where XLA_FLAGS or `jax_num_cpu_devices` say how many, and where JAX has started already.
  """
  said = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
  if not devices or said or jax.config.jax_num_cpu_devices >= 0:
    return
  with contextlib.suppress(RuntimeError):
    jax.config.update("jax_num_cpu_devices", devices)


def make_mesh(shape: Sequence[int], devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A mesh (data, fsdp, sequence, tensor) of all devices; -1 in one place of `shape` means: what is left.

  Raises InputError where the shape does not use each device exactly once.
  """
  devices = jax.devices() if devices is None else devices
  shape = tuple(shape)
  fixed = int(np.prod([size for size in shape if size != -1]))
  if len(shape) != len(AXES) or shape.count(-1) > 1 or any(s < 1 and s != -1 for s in shape):
    raise errors.InputError(
      f"config.mesh={shape}: needs four sizes (data, fsdp, sequence, tensor), at most one -1"
    )
  if len(devices) % fixed or (-1 not in shape and fixed != len(devices)):
    raise errors.InputError(
      f"config.mesh={shape}: does not divide the {len(devices)} devices of this run"
    )
  sizes = [len(devices) // fixed if size == -1 else size for size in shape]
  return Mesh(np.asarray(devices).reshape(sizes), AXES)


def spec_of(
  axes: Sequence[str | None], shape: Sequence[int], mesh: Mesh | AbstractMesh
) -> PartitionSpec:
  """How an activation of these logical axes is split: by `RULES`, axes that the mesh does not divide left whole."""
  taken: set[str] = set()
  parts: list[tuple[str, ...] | None] = []
  for name, size in zip(axes, shape, strict=True):
    wanted = tuple(axis for axis in RULES.get(name, ()) if axis not in taken) if name else ()
    ways = math.prod(mesh.shape[axis] for axis in wanted)
    split = ways > 1 and size % ways == 0
    parts.append(wanted if split else None)
    taken.update(wanted if split else ())
  return PartitionSpec(*parts)


@dataclasses.dataclass(frozen=True)
class MeshLayout:
  """What `models.layout.Layout` asks for, on a mesh. Hashable."""

  mesh: Mesh

  @property
  def platform(self) -> str:
    """What the devices are: cpu, gpu or tpu."""
    return self.mesh.devices.flat[0].platform

  @property
  def merges(self) -> bool:
    """Whether only the first axis of activations is split."""
    return self.mesh.shape["sequence"] == 1

  def place(self, x: Array, axes: tuple[str | None, ...]) -> Array:
    """Lays `x` out as the rules say of its axes."""
    if self.mesh.size == 1:
      return x
    spec = spec_of(axes, x.shape, self.mesh)
    return jax.lax.with_sharding_constraint(x, NamedSharding(self.mesh, spec))

  def shards(self, axes: tuple[str | None, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Into how many parts each axis is split."""
    part = NamedSharding(self.mesh, spec_of(axes, shape, self.mesh)).shard_shape(shape)
    return tuple(size // of_device for size, of_device in zip(shape, part, strict=True))

  def ways(self, axis: str) -> int:
    """Into how many parts an axis is split where that divides it."""
    return math.prod(self.mesh.shape[name] for name in RULES[axis])

  def parts_here(self, axis: str) -> tuple[int, ...]:
    """Which of these parts, in order, devices of this process hold."""
    ways = self.ways(axis)
    sharding = NamedSharding(self.mesh, spec_of((axis,), (ways,), self.mesh))
    found = sharding.addressable_devices_indices_map((ways,)).values()
    return tuple(sorted({part.start or 0 for (part,) in found}))

  def from_host(self, x: np.ndarray, axes: tuple[str | None, ...]) -> Array:
    """An array, split along the one axis that is named, of which each process gives its own parts, one after the other."""
    (axis,) = filter(None, axes)
    at, parts = axes.index(axis), len(self.parts_here(axis))
    shape = (*x.shape[:at], x.shape[at] * self.ways(axis) // parts, *x.shape[at + 1 :])
    sharding = NamedSharding(self.mesh, spec_of(axes, shape, self.mesh))
    return jax.make_array_from_process_local_data(sharding, x, shape)

  def per_shard(
    self,
    function: Callable[..., Array],
    inputs: Sequence[tuple[Array, tuple[str | None, ...]]],
    out: tuple[tuple[str | None, ...], tuple[int, ...]] | None = None,
  ) -> Array:
    """Calls `function` with each device's parts of the inputs; its result is laid out as `out` says, or as the first."""
    arrays = [x for x, _ in inputs]
    if self.mesh.size == 1:
      return function(*arrays)
    specs = tuple(spec_of(axes, x.shape, self.mesh) for x, axes in inputs)
    # What is computed alike on several devices is not declared so: Pallas kernels could not say it.
    mapped = jax.shard_map(
      function,
      mesh=self.mesh,
      in_specs=specs,
      out_specs=spec_of(*out, self.mesh) if out else specs[0],
      check_vma=False,
    )
    return mapped(*arrays)

  def look_up(
    self,
    table: Array,
    tokens: Array,
    axes: tuple[str | None, ...],
    dtype: jnp.dtype,
    *,
    whole: bool = False,
  ) -> Array:
    """Rows of a table [vocab, embed], without moving the table.

    Each device looks up its own columns of its own rows, for the tokens of all devices that share the other columns; then
    these exchange columns for tokens. whole: each has all columns.
    """
    if self.mesh.size == 1:
      return table[tokens].astype(dtype)
    columns, rows = (
      tuple(axis for axis in axes if self.mesh.shape[axis] > 1)
      for axes in (() if whole else RULES["embed"], RULES["vocab"])
    )
    out = [part or () for part in spec_of(axes, tokens.shape, self.mesh)]
    out = [(part,) if isinstance(part, str) else part for part in out]
    gathered = [tuple(axis for axis in part if axis not in columns) for part in out]
    dims = [next((d for d, part in enumerate(out) if axis in part), None) for axis in columns]
    # The innermost first, so that columns come back in order; at once where they split one dimension, whose order counts too.
    exchanged = list(zip(columns, dims, strict=True))[::-1]
    if dims and dims[0] is not None and len(set(dims)) == 1:
      exchanged = [(columns, dims[0])]

    def local(table: Array, tokens: Array) -> Array:
      if not rows and not exchanged:
        return table[tokens].astype(dtype)
      place = tokens - jax.lax.axis_index(rows) * table.shape[0]
      mine = (place >= 0) & (place < table.shape[0])
      x = table[jnp.where(mine, place, 0)].astype(dtype)
      x = jax.lax.psum(jnp.where(mine[..., None], x, 0), rows)
      for axes, dim in exchanged:
        if dim is None:
          x = jax.lax.all_gather(x, axes, axis=x.ndim - 1, tiled=True)
        else:
          x = jax.lax.all_to_all(x, axes, dim, x.ndim - 1, tiled=True)
      return x

    mapped = jax.shard_map(
      local,
      mesh=self.mesh,
      in_specs=(PartitionSpec(rows or None, columns or None), PartitionSpec(*gathered)),
      out_specs=PartitionSpec(*out, None),
      check_vma=False,
    )
    return mapped(table, tokens)


def param_shardings(params: PyTree, mesh: Mesh) -> PyTree:
  """The sharding of each parameter, in the structure of `params` (an nnx.State of variables with `axes` metadata).

  Raises InputError where mesh axes do not divide the dimension that they split.
  """

  def of_variable(path: tuple, variable: nnx.Variable) -> nnx.Variable:
    axes = variable.get_metadata().get("axes") or (None,) * variable.get_value().ndim
    shape = variable.get_value().shape
    spec = [RULES.get(name) if name else None for name in axes]
    for size, split, name in zip(shape, spec, axes, strict=True):
      ways = math.prod(mesh.shape[axis] for axis in split or ())
      if size % ways:
        raise errors.InputError(
          f"config.mesh: {' x '.join(split)}={ways} does not divide {name}={size} of "
          f"{jax.tree_util.keystr(path, simple=True, separator='.')}"
        )
    return variable.replace(NamedSharding(mesh, PartitionSpec(*spec)))

  return jax.tree.map_with_path(of_variable, params, is_leaf=lambda x: isinstance(x, nnx.Variable))


def replicated(mesh: Mesh) -> NamedSharding:
  """The sharding of what every device holds whole."""
  return NamedSharding(mesh, PartitionSpec())


def put_batch(batch: PyTree, mesh: Mesh, *, axes: Sequence[str | None] = ("prompts",)) -> PyTree:
  """Host arrays of this process (its `row_share` of the rows) -> global arrays, split along prompts.

  Those of a `Prompt` are split along prefix and frames too, others along their leading `axes`, as far as they have these.
  Raises InputError where the mesh does not divide the prefix.
  """
  _, readers = row_share(mesh)
  target = jax.tree.leaves(abstract_batch(batch, mesh, readers=readers, axes=axes))
  shardings, shapes = [x.sharding for x in target], [x.shape for x in target]
  # One call for all leaves: each of its own would give up the interpreter to the threads that read ahead.
  arrays = jax.make_array_from_process_local_data(shardings, jax.tree.leaves(batch), shapes)
  return jax.tree.unflatten(jax.tree.structure(batch), arrays)


def abstract_batch(
  batch: PyTree, mesh: Mesh, *, readers: int = 1, axes: Sequence[str | None] = ("prompts",)
) -> PyTree:
  """Shapes, dtypes and shardings of a batch of which `batch` (arrays or shapes) is one of `readers` equal shares.

  Raises InputError where the mesh does not divide the prefix of a `Prompt`.
  """
  if isinstance(batch, records.Prompt):
    check_prefix(batch.tokens.shape[1], mesh)

  def target(path: tuple, x: np.ndarray | jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    named = _leading_axes(path) if isinstance(batch, records.Prompt) else axes
    whole = (*named[: x.ndim], *[None] * (x.ndim - len(named)))
    shape = (x.shape[0] * readers, *x.shape[1:])
    sharding = NamedSharding(mesh, spec_of(whole, shape, mesh))
    return jax.ShapeDtypeStruct(shape, x.dtype, sharding=sharding)

  return jax.tree.map_with_path(target, batch)


def _leading_axes(path: tuple) -> tuple[str, ...]:
  """Those of a prompt's array."""
  return _PROMPT_AXES.get(jax.tree_util.keystr(path[:1], simple=True), ("prompts", "prefix"))


def row_share(mesh: Mesh) -> tuple[int, int]:
  """Which share of a batch's rows this process reads, and how many shares there are: (index, count).

  Processes whose devices split one row between them (along sequence or tensor) read the same rows.
  Raises InputError where the devices of a process hold rows that are not one such share.
  """
  rows = mesh.shape["sequence"] * mesh.shape["tensor"]
  owners = [
    frozenset(device.process_index for device in devices)
    for devices in mesh.devices.reshape(-1, rows)
  ]
  shares = list(dict.fromkeys(owners))
  mine = [index for index, share in enumerate(shares) if jax.process_index() in share]
  if len(mine) != 1:
    raise errors.InputError(
      f"config.mesh: sequence x tensor={rows} does not fit the devices of a process; "
      "choose a divisor or a multiple of their number"
    )
  return mine[0], len(shares)


def as_first(tree: PyTree, mesh: Mesh) -> PyTree:
  """Host arrays about this process's rows, as the first of the processes that have these rows has them; all must ask."""
  share, shares = row_share(mesh)
  if shares == jax.process_count():
    return tree
  first = int(np.argmax(processes.gathered(np.array([share]))[:, 0] == share))
  return jax.tree.map(lambda x: processes.gathered(x.reshape(-1))[first].reshape(x.shape), tree)


def rung(rows: int, most: int, mesh: Mesh) -> int:
  """The number of rows, 0, a power of two for each device of this process or `most`, that holds `rows` of them.

  `most`: rows of this process in a whole batch. Programs that run for some of its rows are compiled for these sizes only.
  """
  _, readers = row_share(mesh)
  size = max(1, mesh.shape["data"] * mesh.shape["fsdp"] // readers)
  while size < rows:
    size *= 2
  return min(size, most) if rows else 0


def check_prefix(length: int, mesh: Mesh) -> None:
  """Raises InputError where prompts of this length can't be split along the axis `sequence`."""
  ways = mesh.shape["sequence"]
  if length % ways:
    raise errors.InputError(
      f"config.model.prefix_buckets: {length} is not a multiple of {ways} = sequence of config.mesh"
    )


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
