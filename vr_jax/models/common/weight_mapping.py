"""Mapping between parameters and the tensors of Hugging Face files.

Here the parameters of all layers are one stacked array, in a file one tensor a layer. Here matrices
are [inputs…, outputs…], in a file [outputs, inputs]. A family maps the names (`WeightMapping`).
"""

import abc
from collections.abc import Mapping, Sequence
import dataclasses
import math

from flax import nnx
from jaxtyping import PyTree
import numpy as np

from vr_jax.models import interface

ROWS = 64  # rows transposed at a time, so that a block and its transpose stay in CPU caches


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slot:
  """The tensors of one parameter.

  names: bare tensor names, one a layer, or only one.
  stacked: whether the parameter has a leading layers axis.
  shape: of one layer of the parameter.
  file_shape: of one tensor in a file.
  inputs: how many leading axes of `shape` come last in a file; 0 if the order is the same.
  """

  names: tuple[str, ...]
  stacked: bool
  shape: tuple[int, ...]
  file_shape: tuple[int, ...]
  inputs: int

  def from_file(
    self, tensor: np.ndarray, index: tuple[slice, ...], target: np.ndarray
  ) -> np.ndarray:
    """Writes the slices `index` (in parameter axes) of a file's tensor into `target`."""
    axes = self.shape[self.inputs :], self.shape[: self.inputs]
    source = tensor.reshape(*axes[0], *axes[1])
    source = source[(*index[self.inputs :], *index[: self.inputs])]
    if not self.inputs:
      target[...] = source
      return target
    for outer in np.ndindex(source.shape[: len(axes[0]) - 1]):
      rows, columns = source[outer], target[(..., *outer, slice(None))]
      for start in range(0, len(rows), ROWS):
        block = rows[start : start + ROWS].astype(target.dtype)
        columns[..., start : start + ROWS] = np.moveaxis(block, 0, -1)
    return target

  def to_file(self, values: np.ndarray) -> np.ndarray:
    """Converts one layer of the parameter to the file's tensor."""
    order = (*range(self.inputs, values.ndim), *range(self.inputs))
    return np.ascontiguousarray(values.transpose(order)).reshape(self.file_shape)


class WeightMapping(abc.ABC):
  """The tensors of a family's parameters.

  names: bare tensor name of each parameter, with {} for the layer.
  tables: parameters that are [vocab, embed] here and in a file.
  merged_inputs: weights whose two leading axes [heads, head_dim] are one axis in a file.
  head, embedding: bare names of the output matrix and the token embedding.
  """

  names: Mapping[str, str]
  tables: tuple[str, ...]
  merged_inputs: tuple[str, ...]
  head: str
  embedding: str

  @abc.abstractmethod
  def bare(self, name: str) -> str:
    """Strips the prefixes of a tensor's name that differ between versions of transformers."""

  @abc.abstractmethod
  def released(self, name: str) -> str:
    """The tensor name in released models, which every version reads, of a bare name."""

  @abc.abstractmethod
  def module(self, parameter: str) -> str:
    """The module of transformers' model that has a weight, with {} for the layer."""

  def unused(self, config: interface.ModelConfig, name: str) -> bool:
    """Whether a model has no parameter for a tensor of its files, by the tensor's bare name."""
    del config, name
    return False

  def file_shape(
    self, config: interface.ModelConfig, parameter: str, shape: tuple[int, ...]
  ) -> tuple[int, ...] | None:
    """File shape of a parameter (without layers) with a special layout; None for others."""
    del config, parameter, shape
    return None

  def inputs(self, parameter: str) -> int:
    """How many leading axes of a matrix, without layers, are its inputs."""
    return 2 if parameter in self.merged_inputs else 1

  def slots(
    self, config: interface.ModelConfig, flat_params: Mapping[str, nnx.Variable]
  ) -> dict[str, Slot]:
    """The tensors of every parameter of a model, by the parameter's dotted name."""
    return {
      name: self._slot(config, name, variable.shape) for name, variable in flat_params.items()
    }

  def adapter_slots(self, parameter: str, shapes: Sequence[tuple[int, ...]]) -> tuple[Slot, Slot]:
    """The tensors of a weight's adapter matrices A and B in a PEFT file.

    shapes: of our two matrices, layers included.
    """
    full = f"base_model.model.{self.module(parameter)}"

    def slot(end: str, shape: tuple[int, ...], leading: int) -> Slot:
      return Slot(
        names=tuple(f"{full.format(layer)}.{end}.weight" for layer in range(shape[0])),
        stacked=True,
        shape=shape[1:],
        file_shape=(math.prod(shape[1 + leading :]), math.prod(shape[1 : 1 + leading])),
        inputs=leading,
      )

    return slot("lora_A", shapes[0], self.inputs(parameter)), slot("lora_B", shapes[1], 1)

  def _slot(self, config: interface.ModelConfig, parameter: str, shape: tuple[int, ...]) -> Slot:
    stacked = "{}" in self.names[parameter]
    inner = shape[1:] if stacked else shape
    vector = parameter.endswith("_bias") or len(inner) == 1
    leading = 0 if vector or parameter in self.tables else self.inputs(parameter)
    file_shape = self.file_shape(config, parameter, inner)
    if file_shape is None and vector:
      file_shape = (math.prod(inner),)
    elif file_shape is None and parameter in self.tables:
      file_shape = inner
    elif file_shape is None:
      file_shape = (math.prod(inner[leading:]), math.prod(inner[:leading]))
    names = [self.names[parameter].format(layer) for layer in range(shape[0] if stacked else 1)]
    return Slot(
      names=tuple(names), stacked=stacked, shape=inner, file_shape=file_shape, inputs=leading
    )


def by_tensor(slots_by_name: Mapping[str, Slot]) -> dict[str, Slot]:
  """Keys slots by the bare names of their tensors."""
  return {name: slot for slot in slots_by_name.values() for name in slot.names}


def flat(params: PyTree) -> dict[str, nnx.Variable]:
  """Flattens parameters to variables by dotted name, in tree order."""
  return {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(params)}


def part(params: PyTree, names: Sequence[str]) -> PyTree:
  """Selects the parameters with these names, or in the modules with these names."""
  selected = {
    name: variable
    for name, variable in flat(params).items()
    if any(f"{name}.".startswith(f"{each}.") for each in names)
  }
  return unflat(selected)


def unflat(flat_params: Mapping[str, nnx.Variable]) -> PyTree:
  """Inverts `flat`."""
  return nnx.from_flat_state([(tuple(n.split(".")), v) for n, v in flat_params.items()])
