"""Devices of a TPU slice that is not attached: programs can be compiled for them, but not run."""

from collections.abc import Sequence
import dataclasses
import importlib.util
import os

import jax

from launch import chips, slices
from vr_jax import errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
  """The devices of a topology and the chip that they belong to. sides: chips a dimension."""

  name: str
  chip: chips.Chip
  sides: tuple[int, ...]
  devices: Sequence[jax.Device]  # pyright: ignore[reportInvalidTypeForm] a C++ class

  @property
  def chips(self) -> int:
    """How many chips there are."""
    return len(self.devices) // self.chip.devices_per_chip

  def place(
    self,
    device: jax.Device,  # pyright: ignore[reportInvalidTypeForm] a C++ class
  ) -> tuple[int, ...]:
    """Coordinates of a device's chip, one a side; JAX gives flat slices a third, always 0."""
    return tuple(device.coords[: len(self.sides)])


def prepare() -> None:
  """Lets libtpu compile where there is no TPU. Call it before jax starts a backend."""
  jax.config.update("jax_platforms", "cpu")
  # A program for a device that is not attached can't be loaded from the cache.
  jax.config.update("jax_enable_compilation_cache", False)
  os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # there is no metadata server to answer
  # No process opens a device, so several may load libtpu at once.
  os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
  # libtpu complains without a type and host names; any will do.
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
  os.environ.setdefault("TPU_STDERR_LOG_LEVEL", "3")


def find(name: str) -> Slice:
  """The slice of a topology, `v5p:4x4x4`, or of Google Cloud's name for one, `v5p-128`.

  Raises InputError where there is no such topology, or no TPU compiler.
  """
  if ":" not in name:
    named = slices.parse(name, "--topology")
    if named.count > 1:
      raise errors.InputError(f"--topology={name}: a plan is of one slice, not of {named.count}")
    name = f"{named.generation}:{named.topology}"
  generation, _, shape = name.partition(":")
  if generation not in chips.CHIPS:
    raise errors.InputError(f"--topology={name}: unknown; {known()}")
  chip = chips.CHIPS[generation]
  sides = shape.split("x")
  if len(sides) != chip.dimensions or not all(map(str.isdecimal, sides)):
    raise errors.InputError(f"--topology={name}: no shape of a {generation} slice; {known()}")
  if importlib.util.find_spec("libtpu") is None:
    raise errors.InputError(
      "libtpu: not installed, and programs of another compiler say nothing about a TPU; "
      "pip install 'vr_jax[tpu]'"
    )
  from jax.experimental import topologies  # imports libtpu

  try:
    description = topologies.get_topology_desc(platform="tpu", topology_name=name)
  except jax.errors.JaxRuntimeError as error:
    reason = str(error).splitlines()[0]
    raise errors.InputError(f"--topology={name}: {reason}; {known()}") from error
  if description.devices[0].platform != "tpu":
    raise errors.InputError(f"--topology={name}: the compiler at hand is not TPU's")
  return Slice(
    name=name,
    chip=chip,
    sides=tuple(map(int, sides)),
    devices=description.devices,
  )


def known() -> str:
  """The topologies that exist, on one line."""
  names = (f"{name}:{{{','.join(chip.shapes)}}}" for name, chip in chips.CHIPS.items())
  return f"known are {', '.join(names)}, or Google Cloud's names, as v5p-16"
