"""Where a model's arrays lie on devices, as the model asks for it: by logical names of axes.

A model says what the axes of an array are (`("prompts", "prefix", None)`); whoever builds it for a mesh hands in a `Layout`
that knows where such an axis lives. Without one it computes on one device.
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
  """A mesh as a model sees it. Hashable: it is part of the static half of a model."""

  @property
  def platform(self) -> str:
    """What the devices are: cpu, gpu or tpu."""
    ...

  @property
  def merges(self) -> bool:
    """Whether the leading axes of activations can be made one without moving data between devices."""
    ...

  def place(self, x: Array, axes: Axes) -> Array:
    """The same array, laid out by its axes; an axis that its devices do not divide stays whole."""
    ...

  def shards(self, axes: Axes, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Into how many parts each axis of such an array is split."""
    ...

  def ways(self, axis: str) -> int:
    """Into how many parts an axis is split where that divides it."""
    ...

  def parts_here(self, axis: str) -> tuple[int, ...]:
    """Which of these parts, in order, devices of this process hold."""
    ...

  def from_host(self, x: np.ndarray, axes: Axes) -> Array:
    """An array, split along the one axis that is named, of which each process gives its own parts, one after the other."""
    ...

  def per_shard(
    self,
    function: Callable[..., Array],
    inputs: Sequence[tuple[Array | np.ndarray, Axes]],
    out: tuple[Axes, tuple[int, ...]] | None = None,
  ) -> Array:
    """Calls `function` on the parts of its inputs that each device holds.

    Its result lies as `out` (axes, shape) says, or as the first of the inputs.
    """
    ...

  def look_up(
    self, table: Array, tokens: Array, axes: Axes, dtype: jnp.dtype, *, whole: bool = False
  ) -> Array:
    """Rows [*axes, embed] of a table [vocab, embed] in a dtype; the table gets its gradient in its own.

    whole: its rows are whole on every device, and not split as those of parameters.
    """
    ...


@dataclasses.dataclass(frozen=True)
class OneDevice:
  """Everything on the device that computes."""

  @property
  def platform(self) -> str:
    """That of jax's default device."""
    return jax.default_backend()

  @property
  def merges(self) -> bool:
    """Always."""
    return True

  def place(self, x: Array, axes: Axes) -> Array:
    """As it is."""
    del axes
    return x

  def shards(self, axes: Axes, shape: tuple[int, ...]) -> tuple[int, ...]:
    """One each."""
    del axes
    return (1,) * len(shape)

  def ways(self, axis: str) -> int:
    """One."""
    del axis
    return 1

  def parts_here(self, axis: str) -> tuple[int, ...]:
    """The one."""
    del axis
    return (0,)

  def from_host(self, x: np.ndarray, axes: Axes) -> Array:
    """On the device that computes."""
    del axes
    return jnp.asarray(x)

  def per_shard(
    self,
    function: Callable[..., Array],
    inputs: Sequence[tuple[Array | np.ndarray, Axes]],
    out: tuple[Axes, tuple[int, ...]] | None = None,
  ) -> Array:
    """On the whole arrays."""
    del out
    return function(*(x for x, _ in inputs))

  def look_up(
    self, table: Array, tokens: Array, axes: Axes, dtype: jnp.dtype, *, whole: bool = False
  ) -> Array:
    """Rows of the table."""
    del axes, whole
    return table[tokens].astype(dtype)
