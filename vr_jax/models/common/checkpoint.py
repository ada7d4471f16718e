"""Loading of Hugging Face weights straight to the devices that hold them.

A parameter is filled in place, layer by layer (tables: some rows at a time), and a process reads
only the shards of its own devices. So host memory holds no more than a few pieces at a time.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import math
import pathlib
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, DTypeLike, PyTree
import numpy as np

from vr_jax import atomic, errors, inner_path, plain_json
from vr_jax.models import family as family_lib
from vr_jax.models import interface
from vr_jax.models.common import tensor_file, weight_mapping

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
PIECE_BYTES = 64 * 2**20  # bytes of a parameter on the host at once, unless one layer is larger

Index = tuple[slice, ...]


def from_pretrained(
  path: str | pathlib.Path,
  mesh: Mesh | None = None,
  dtype: DTypeLike = "float32",
  *,
  shardings: Callable[[PyTree], PyTree] | None = None,
  piece_bytes: int = PIECE_BYTES,
  family: family_lib.ModelFamily,
) -> tuple[interface.ModelConfig, PyTree]:
  """Reads a model's config and its parameters in `dtype`.

  All processes of the mesh call this; each reads the shards of its own devices. The parameters are
  the state of `nnx.split(family.make_model(config, …))`.

  mesh: each parameter is sharded over all its devices along the longest axis that they divide;
    None: the first device.
  shardings: instead of that, a function from abstract parameters to the NamedSharding of each.
    Training passes `functools.partial(parallel.mesh.param_shardings, mesh=mesh)`.
  piece_bytes: bytes of a parameter that are read at once, at least one layer.

  Raises:
    InputError: not a model of the family, an unfinished export, a missing or damaged file, a tensor
      that is missing, unknown, duplicated or of a wrong shape. It names the file and the tensor.
  """
  directory = pathlib.Path(path)
  _check_finished(directory)
  config = family.read_config(directory / "config.json")
  params = family.abstract_params(config)
  flat = weight_mapping.flat(params)
  slots = family.weights.slots(config, flat)
  stored = _locate(directory, slots, family.weights, config)
  if config.tie_word_embeddings and family.weights.head in stored:
    _check_tied(stored[family.weights.head], stored[family.weights.embedding])
  if shardings is None:
    devices = np.array(jax.local_devices()[:1])
    shardings = functools.partial(_spread, mesh=mesh or Mesh(devices, ("all",)))
  placed = weight_mapping.flat(shardings(params))
  dtype, filled = jnp.dtype(dtype), {}
  for name, variable in flat.items():
    read = functools.partial(_read, slots[name], stored, dtype)
    value = _fill(variable.shape, dtype, placed[name].get_value(), read, piece_bytes)
    filled[name] = variable.replace(value)
  return config, weight_mapping.unflat(filled)


def check_files(path: str | pathlib.Path, *, family: family_lib.ModelFamily) -> None:
  """Checks that the files of a model are complete and hold its tensors, without reading these.

  Raises InputError as `from_pretrained` does.
  """
  directory = pathlib.Path(path)
  _check_finished(directory)
  config = family.read_config(directory / "config.json")
  flat = weight_mapping.flat(family.abstract_params(config))
  slots = family.weights.slots(config, flat)
  _locate(directory, slots, family.weights, config)


def unused_tensors(
  path: str | pathlib.Path, config: interface.ModelConfig, *, family: family_lib.ModelFamily
) -> list[tensor_file.StoredTensor]:
  """The tensors of a model's files that the family reads but does not use, by their bare names."""
  found = []
  for file in _files(pathlib.Path(path)):
    for full, stored in tensor_file.tensors(file).items():
      name = family.weights.bare(full)
      if family.weights.unused(config, name):
        found.append(dataclasses.replace(stored, name=name))
  return found


def has_weights(path: str | pathlib.Path) -> bool:
  """Whether a directory has files of weights, which need not be complete."""
  directory = pathlib.Path(path)
  return (directory / INDEX).is_file() or any(directory.glob("*.safetensors"))


def _spread(params: PyTree, mesh: Mesh) -> PyTree:
  """Shards each parameter over all devices of a mesh, never along the layers axis."""

  def place(variable: nnx.Variable) -> nnx.Variable:
    axes, shape = variable.get_metadata().get("axes", ()), variable.shape
    fits = [d for d, n in enumerate(shape) if axes[d] != "layers" and n % mesh.size == 0]
    spec: list[Any] = [None] * len(shape)
    if fits:
      spec[max(fits, key=lambda d: shape[d])] = mesh.axis_names
    return variable.replace(NamedSharding(mesh, PartitionSpec(*spec)))

  return jax.tree.map(place, params, is_leaf=lambda x: isinstance(x, nnx.Variable))


def _read(
  slot: weight_mapping.Slot,
  stored: Mapping[str, tensor_file.StoredTensor],
  dtype: np.dtype,
  index: Index,
) -> np.ndarray:
  """Reads the slices `index` of a parameter; tensors are memory-mapped one at a time."""
  shape = (len(slot.names), *slot.shape) if slot.stacked else slot.shape
  target = np.empty([len(range(*s.indices(n))) for s, n in zip(index, shape, strict=True)], dtype)
  if not slot.stacked:
    return slot.from_file(stored[slot.names[0]].view(), index, target)
  for layer, name in enumerate(slot.names[index[0]]):
    slot.from_file(stored[name].view(), index[1:], target[layer])
  return target


def _fill(
  shape: tuple[int, ...],
  dtype: np.dtype,
  sharding: NamedSharding,
  read: Callable[[Any], np.ndarray],
  piece_bytes: int,
) -> Array:
  """Fills a global array by calls of `read`, some entries of every shard's first axis at a time."""
  local = sharding.shard_shape(shape)
  entry = math.prod(local[1:]) * dtype.itemsize * len(sharding.addressable_devices)
  count = max(piece_bytes // entry, 1)
  if count >= local[0]:
    return jax.make_array_from_callback(shape, sharding, read)
  piece_shape = (shape[0] // local[0] * count, *shape[1:])
  array = jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)()
  for start in range(0, local[0], count):
    first = min(start, local[0] - count)  # the last piece may overlap the one before

    def part(index: Any, first: int = first) -> np.ndarray:
      shard = (index[0].start or 0) // count
      begin = shard * local[0] + first
      return read((slice(begin, begin + count), *index[1:]))

    piece = jax.make_array_from_callback(piece_shape, sharding, part)
    array = _write(array, piece, first, sharding)
    array.block_until_ready()  # otherwise pieces are read faster than they are transferred
  return array


@functools.partial(jax.jit, static_argnames="sharding", donate_argnums=0)
def _write(array: Array, piece: Array, first: int | Array, sharding: NamedSharding) -> Array:
  """Writes `piece`, entries `first`, `first` + 1, … of every shard, into a donated array."""

  def write(array: Array, piece: Array, first: int | Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(array, piece, first, axis=0)

  spec = sharding.spec
  specs = {"in_specs": (spec, spec, PartitionSpec()), "out_specs": spec}
  return jax.shard_map(write, mesh=sharding.mesh, **specs)(array, piece, first)


def _check_finished(directory: pathlib.Path) -> None:
  """Raises InputError if an export to this directory was interrupted."""
  partial = directory.with_name(directory.name + atomic.PARTIAL)
  if directory.suffix == atomic.PARTIAL or (partial.is_dir() and not atomic.is_whole(directory)):
    unfinished = directory if directory.suffix == atomic.PARTIAL else partial
    raise errors.InputError(f"{unfinished}: an export that was not finished; export again")


def _files(directory: pathlib.Path) -> dict[pathlib.Path, frozenset[str]]:
  """The safetensors files of a model, with the tensors that its index, if any, lists for them."""
  index, single = directory / INDEX, directory / SINGLE
  if not index.is_file():
    if not single.is_file():
      other = sorted(directory.glob("*.bin")) or sorted(directory.glob("*.gguf"))
      why = f"; {other[0].name} can't be read, fetch the safetensors files" if other else ""
      if not other and (parts := sorted(directory.glob("*/pytorch_model.bin"))):
        part = parts[0].relative_to(directory)
        why = f"; {part} is a part of a model, save the whole model as safetensors"
      raise errors.InputError(f"{directory}: has neither {SINGLE} nor {INDEX}{why}")
    return {single: frozenset()}
  try:
    weight_map = plain_json.parse(index.read_bytes())["weight_map"]
    names = {directory / file: set() for file in sorted(set(weight_map.values()))}
    for name, file in weight_map.items():
      names[directory / file].add(name)
      if not inner_path.is_plain(file):
        raise ValueError(f"{file!r:.60} is no file of this directory")
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise errors.InputError(f"{index}: no valid index ({error!r}); download it again") from error
  for path in names:
    if not path.is_file():
      raise errors.InputError(f"{path}: no such file, but {index.name} names it; download it again")
  return {path: frozenset(listed) for path, listed in names.items()}


def _locate(
  directory: pathlib.Path,
  slots: Mapping[str, weight_mapping.Slot],
  mapping: weight_mapping.WeightMapping,
  config: interface.ModelConfig,
) -> dict[str, tensor_file.StoredTensor]:
  """Finds the tensors of a directory by bare name, and checks that they are the model's."""
  by_tensor, found = weight_mapping.by_tensor(slots), {}
  # Files of tied models may hold the embedding twice, also as the output matrix; it must be equal.
  tied = {mapping.head: by_tensor[mapping.embedding]} if config.tie_word_embeddings else {}
  known = by_tensor | tied
  for path, expected in _files(directory).items():
    tensors = tensor_file.tensors(path)
    if absent := sorted(expected - tensors.keys()):
      raise errors.InputError(f"{path}: no tensor {_some(absent)}, but {INDEX} says so")
    for full, stored in tensors.items():
      name = mapping.bare(full)
      if name in found:
        raise errors.InputError(f"{path}: tensor {full} is also in {found[name].path}")
      if mapping.unused(config, name):
        continue
      if name not in known:
        raise errors.InputError(
          f"{path}: tensor {full} is none of this model's; wrong config.json?"
        )
      if stored.shape != known[name].file_shape:
        raise errors.InputError(
          f"{path}: tensor {full} has shape {stored.shape}, "
          f"but config.json asks for {known[name].file_shape}"
        )
      found[name] = stored
  if missing := sorted(by_tensor.keys() - found.keys()):
    raise errors.InputError(f"{directory}: no tensor {_some(missing)}")
  return found


def _some(missing: list[str]) -> str:
  more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
  return ", ".join(missing[:3]) + more


def _check_tied(head: tensor_file.StoredTensor, embedding: tensor_file.StoredTensor) -> None:
  rows = max(PIECE_BYTES // (embedding.shape[1] * embedding.dtype.itemsize), 1)
  for start in range(0, embedding.shape[0], rows):
    part = slice(start, start + rows)
    if not np.array_equal(head.view()[part], embedding.view()[part]):
      raise errors.InputError(
        f"{head.path}: {head.name} is not the embedding, "
        "though config.json says tie_word_embeddings"
      )
