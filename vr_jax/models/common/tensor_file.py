"""Reading and writing of safetensors files one tensor at a time.

The library `safetensors` checks that a file is complete. But it maps whole files, and writes only
what is complete in memory; here each tensor is mapped alone, and a file can be written while its
tensors are still being computed.

Format: eight bytes of header length (little endian), a JSON header with dtype, shape and offsets by
name, the data.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import json
import math
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors

from vr_jax import errors

DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
CODES = {name: code for code, name in DTYPES.items()}
_POINTER = b"version https://git-lfs"
_MOST_AXES = 32  # of an array
ALIGNMENT = 8  # bytes; the header is padded with spaces


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredTensor:
  """One tensor of a file.

  name: as in the file.
  code: dtype in the file's spelling.
  offset: bytes from the start of the file.
  """

  path: pathlib.Path
  name: str
  code: str
  shape: tuple[int, ...]
  offset: int

  @property
  def dtype(self) -> np.dtype:
    """The NumPy dtype. Raises InputError if models are not stored in it."""
    if self.code not in DTYPES:
      raise errors.InputError(
        f"{self.path}: tensor {self.name} is {self.code}, but only {', '.join(DTYPES)} can be read"
      )
    return jnp.dtype(DTYPES[self.code])

  def view(self) -> np.ndarray:
    """Maps the tensor read-only; it is unmapped with the array."""
    mapped = np.memmap(self.path, self.dtype, mode="r", offset=self.offset, shape=self.shape)
    return mapped.view(np.ndarray)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorEntry:
  """A tensor to be written."""

  name: str
  dtype: np.dtype
  shape: tuple[int, ...]

  @property
  def bytes(self) -> int:
    """Size in the file, in bytes."""
    return math.prod(self.shape) * self.dtype.itemsize


def tensors(path: pathlib.Path) -> dict[str, StoredTensor]:
  """Reads the header of a file. Raises InputError if the file is damaged or truncated."""
  try:
    with safetensors.safe_open(path, framework="np"):
      pass
  except (safetensors.SafetensorError, OSError) as error:
    if path.is_file() and path.open("rb").read(len(_POINTER)) == _POINTER:
      raise errors.InputError(
        f"{path}: is a pointer of Git LFS, not the file; run git lfs pull, or fetch the model with "
        "hf download"
      ) from error
    raise errors.InputError(f"{path}: damaged safetensors ({error}); download it again") from error
  with path.open("rb") as file:
    length = int.from_bytes(file.read(8), "little")
    fields = json.loads(file.read(length))
  for name, field in fields.items():
    if name != "__metadata__" and len(field["shape"]) > _MOST_AXES:
      raise errors.InputError(f"{path}: tensor {name!r:.60} has {len(field['shape'])} axes")
  return {
    name: StoredTensor(
      path=path,
      name=name,
      code=field["dtype"],
      shape=tuple(field["shape"]),
      offset=8 + length + field["data_offsets"][0],
    )
    for name, field in fields.items()
    if name != "__metadata__"
  }


def header(entries: Iterable[TensorEntry], metadata: Mapping[str, str]) -> bytes:
  """The first bytes of a file with these tensors in this order."""
  fields: dict[str, Any] = {"__metadata__": dict(metadata)}
  offset = 0
  for entry in entries:
    fields[entry.name] = {
      "dtype": CODES[entry.dtype.name],
      "shape": list(entry.shape),
      "data_offsets": [offset, offset + entry.bytes],
    }
    offset += entry.bytes
  text = json.dumps(fields, separators=(",", ":")).encode()
  text += b" " * (-len(text) % ALIGNMENT)
  return len(text).to_bytes(8, "little") + text
