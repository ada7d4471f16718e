"""How a model shards its arrays: it names logical axes, and a `Layout` maps them to a mesh.

A model names the axes of an array, such as `("prompts", "prefix", None)`. `parallel.mesh` has the
Layout of a mesh; the default, `OneDevice`, shards nothing.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array
import numpy as np

Axes = tuple[str | None, ...]


@runtime_checkable
class Layout(Protocol):
  """A mesh as a model sees it. Hashable, since it is a static attribute of the model."""

  @property
  def platform(self) -> str:
    """Platform of the devices: cpu, gpu or tpu."""
    ...

  @property
  def merges(self) -> bool:
    """Whether leading axes of activations can be reshaped into one without communication."""
    ...

  @property
  def decoding(self) -> "Layout":
    """The layout of decoding: of its parameters, caches and slots, and of the prompts they read."""
    ...

  def place(self, x: Array, axes: Axes) -> Array:
    """Shards an array by its axes; an axis not divisible by its devices stays whole."""
    ...

  def move(self, x: Array, axes: Axes) -> Array:
    """Shards a weight that lies in another layout; like `place`, but never whole on the way."""
    ...

  def shards(self, axes: Axes, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The number of shards along each axis of an array of this shape."""
    ...

  def ways(self, axis: str) -> int:
    """The number of shards of a logical axis whose size it divides."""
    ...

  def parts_here(self, axis: str) -> tuple[int, ...]:
    """Indices of the shards of a logical axis that this process holds, in order."""
    ...

  def from_host(self, x: np.ndarray, axes: Axes) -> Array:
    """Makes a global array from host arrays, sharded along the one axis that has a name.

    x: this process's shards of that axis, concatenated in order.
    """
    ...

  def per_shard(
    self,
    function: Callable[..., Array],
    inputs: Sequence[tuple[Array | np.ndarray, Axes]],
    out: tuple[Axes, tuple[int, ...]] | None = None,
  ) -> Array:
    """Calls `function` on each device with that device's shards of the inputs.

    inputs: arrays and their logical axes.
    out: (axes, shape) of the result; None: as the first input.
    """
    ...

  def gather_shards(self, x: Array, axis: str) -> Array:
    """Within `per_shard`: concatenates the rows of all devices along a logical axis, in order."""
    ...

  def exchange_shards(self, x: Array, axis: str) -> Array:
    """Within `per_shard`: sends each device along a logical axis its part of the rows.

    x: [ways * rows, ...], part i for device i. Returns [ways, rows, ...], part i from device i.
    """
    ...

  def permute_shards(self, x: Array, axis: str, to: Sequence[int] | np.ndarray) -> Array:
    """Within `per_shard`: sends the array of device i along a logical axis to device `to[i]`."""
    ...

  def look_up(self, table: Array, tokens: Array, axes: Axes, dtype: jnp.dtype) -> Array:
    """Looks up rows [*axes, embed] of a table [vocab, embed].

    dtype: of the result. The table's gradient keeps the table's dtype.
    """
    ...


@dataclasses.dataclass(frozen=True)
class OneDevice:
  """The layout of a single device."""

  @property
  def platform(self) -> str:
    """Platform of jax's default device."""
    return jax.default_backend()

  @property
  def merges(self) -> bool:
    """Always true."""
    return True

  @property
  def decoding(self) -> "OneDevice":
    """The same."""
    return self

  def place(self, x: Array, axes: Axes) -> Array:
    """Returns the array unchanged."""
    del axes
    return x

  move = place

  def shards(self, axes: Axes, shape: tuple[int, ...]) -> tuple[int, ...]:
    """One shard along every axis."""
    del axes
    return (1,) * len(shape)

  def ways(self, axis: str) -> int:
    """One shard."""
    del axis
    return 1

  def parts_here(self, axis: str) -> tuple[int, ...]:
    """The only shard."""
    del axis
    return (0,)

  def from_host(self, x: np.ndarray, axes: Axes) -> Array:
    """Copies the array to the device."""
    del axes
    return jnp.asarray(x)

  def per_shard(
    self,
    function: Callable[..., Array],
    inputs: Sequence[tuple[Array | np.ndarray, Axes]],
    out: tuple[Axes, tuple[int, ...]] | None = None,
  ) -> Array:
    """Calls `function` on the whole arrays."""
    del out
    return function(*(x for x, _ in inputs))

  def gather_shards(self, x: Array, axis: str) -> Array:
    """Returns the array unchanged."""
    del axis
    return x

  def exchange_shards(self, x: Array, axis: str) -> Array:
    """The only part."""
    del axis
    return x[None]

  def permute_shards(self, x: Array, axis: str, to: Sequence[int] | np.ndarray) -> Array:
    """Returns the array unchanged."""
    del axis, to
    return x

  def look_up(self, table: Array, tokens: Array, axes: Axes, dtype: jnp.dtype) -> Array:
    """Looks up rows of the table."""
    del axes
    return table[tokens].astype(dtype)
