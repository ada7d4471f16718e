"""Writing of parameters from devices to files piece by piece, so that the host never holds a model.

All processes that share the arrays take part in each piece; the first one writes, on a shared disk.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
import json
import math
import pathlib
from typing import BinaryIO

import jax
from jax.experimental import multihost_utils
from jaxtyping import Array
import numpy as np

from vr_jax import atomic, errors
from vr_jax.models.common import checkpoint, tensor_file, weight_mapping

METADATA = {"format": "pt"}  # readers expect it in files with the layout of PyTorch


def tensors(
  slots: Mapping[str, weight_mapping.Slot],
  array_of: Callable[[str], Array],
  *,
  piece_bytes: int = checkpoint.PIECE_BYTES,
) -> Iterator[np.ndarray]:
  """Yields the tensors of all slots in order, in file layout; tables in several pieces of rows.

  array_of: returns the array of a slot by its key, when it is needed.
  piece_bytes: bytes of an array on the host at once, at least one tensor of the file.
  """
  for key, slot in slots.items():
    array = array_of(key)
    length = array.shape[0]
    entry = math.prod(array.shape[1:]) * array.dtype.itemsize
    # An array can be sliced along its first axis if that is layers, or also first in the file.
    sliceable = slot.stacked or not slot.inputs
    count = min(max(piece_bytes // entry, 1), length) if sliceable else length
    for start in range(0, length, count):
      piece = _on_host(_part(array, start, min(count, length - start)))
      for values in piece if slot.stacked else (piece,):
        yield slot.to_file(values) if values.shape == slot.shape else values


def entries(
  slots: Mapping[str, weight_mapping.Slot], dtypes: Mapping[str, np.dtype]
) -> list[tensor_file.TensorEntry]:
  """The entries of what `tensors` yields, in its order. slots: with names as in the file."""
  return [
    tensor_file.TensorEntry(name=name, dtype=dtypes[key], shape=slot.file_shape)
    for key, slot in slots.items()
    for name in slot.names
  ]


def write_directory(
  directory: pathlib.Path, stream: Iterator[np.ndarray], write: Callable[[pathlib.Path], None]
) -> None:
  """A directory that appears whole: `write` fills another, which is then renamed.

  It runs in the first process and draws `stream` to its end; the others draw theirs alongside.

  Raises InputError where the directory is there already or can't be written.
  """
  if directory.exists():
    raise errors.InputError(f"{directory}: is there already; delete it or choose another")
  _wait(f"{directory}: begin")  # or the first might be done before another has looked
  if jax.process_index():
    for _ in stream:
      pass  # its part of each piece has reached the first
  else:
    with atomic.directory(directory) as partial:
      write(partial)
  _wait(f"{directory}: end")


def write_files(
  directory: pathlib.Path,
  listed: Sequence[tensor_file.TensorEntry],
  stream: Iterator[np.ndarray],
  file_bytes: int,
) -> None:
  """Writes files of about `file_bytes` and their index.

  stream: arrays with the bytes of all listed entries, in order.
  """
  groups = _groups(listed, file_bytes)
  weight_map = {}
  for number, group in enumerate(groups, start=1):
    name = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
    weight_map |= {entry.name: name for entry in group}
    write_file(directory / name, group, stream)
  total = sum(entry.bytes for entry in listed)
  index = {"metadata": {"total_size": total}, "weight_map": weight_map}
  (directory / checkpoint.INDEX).write_text(json.dumps(index, indent=2) + "\n")


def write_file(
  path: pathlib.Path, listed: Sequence[tensor_file.TensorEntry], stream: Iterator[np.ndarray]
) -> None:
  """Writes one file of the next entries of a stream."""
  with path.open("wb") as file:
    file.write(tensor_file.header(listed, METADATA))
    for entry in listed:
      _write_tensor(file, entry, stream)


def _write_tensor(
  file: BinaryIO, entry: tensor_file.TensorEntry, stream: Iterator[np.ndarray]
) -> None:
  written = 0
  while written < entry.bytes:
    written += file.write(next(stream).reshape(-1).view(np.uint8).data)


def _groups(
  listed: Sequence[tensor_file.TensorEntry], file_bytes: int
) -> list[list[tensor_file.TensorEntry]]:
  """Groups entries by file, in order."""
  groups, size = [[]], 0
  for entry in listed:
    if groups[-1] and size + entry.bytes > file_bytes:
      groups.append([])
      size = 0
    groups[-1].append(entry)
    size += entry.bytes
  return groups


def _part(array: Array, start: int, count: int) -> Array:
  return array if count == array.shape[0] else _slice(array, start, count)


@functools.partial(jax.jit, static_argnames="count")
def _slice(array: Array, start: int | Array, count: int) -> Array:
  return jax.lax.dynamic_slice_in_dim(array, start, count, axis=0)


def _on_host(array: Array) -> np.ndarray:
  """Gathers a sharded array on the host; all processes must call this."""
  if array.is_fully_addressable:
    return np.asarray(array)
  return multihost_utils.process_allgather(array, tiled=True)


def _wait(name: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)
