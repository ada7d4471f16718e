"""Devices of TPU slices that are not attached: programs can be compiled for them, but not run."""

from collections.abc import Sequence
import dataclasses
import importlib.util
import os
import re
from typing import Any

import jax

from launch import chips, slices
from vr_jax import errors

_EFFORT = "jax_exec_time_optimization_effort"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slice:
  """The devices of a slice, or of several of one kind, and the chip that they belong to.

  sides: chips a dimension of a slice.
  devices: one slice after the other.
  count: slices.
  """

  name: str
  chip: chips.Chip
  sides: tuple[int, ...]
  devices: Sequence[jax.Device]  # pyright: ignore[reportInvalidTypeForm] a C++ class
  count: int = 1

  @property
  def chips(self) -> int:
    """How many chips there are, in all slices."""
    return len(self.devices) // self.chip.devices_per_chip

  def place(
    self,
    device: jax.Device,  # pyright: ignore[reportInvalidTypeForm] a C++ class
  ) -> tuple[int, ...]:
    """Coordinates of a device's chip in its slice, one a side.

    JAX gives flat slices a third, always 0.
    """
    return tuple(device.coords[: len(self.sides)])


def prepare(*, quick: bool = False) -> None:
  """Lets libtpu compile where there is no TPU. Call it before jax starts a backend.

  quick: the compiler spends less time on making programs fast and small.
  """
  jax.config.update("jax_platforms", "cpu")
  if quick:
    jax.config.update(_EFFORT, -1.0)
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


def is_quick() -> bool:
  """Whether the compiler spends less time than usual, by `prepare` or by JAX's own setting."""
  return jax.config.values[_EFFORT] < 0


def find(name: str) -> Slice:
  """The slice of a topology, `v5p:4x4x4`, or of Google Cloud's name for one, `v5p-128`.

  `2x` in front stands for two such slices.
  Raises InputError where there is no such topology, or no TPU compiler.
  """
  if ":" not in name:
    named = slices.parse(name, "--topology")
    several = f"{named.count}x" if named.count > 1 else ""
    name = f"{several}{named.generation}:{named.topology}"
  generation, _, shape = name.partition(":")
  count, joined = 1, re.fullmatch(r"([1-9]\d*)x(.*)", generation)
  if joined:
    count, generation = int(joined[1]), joined[2]
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

  options: dict[str, Any] = {"num_slices": count} if count > 1 else {}
  if set(sides) == {"1"}:
    options["chips_per_host_bounds"] = (1, 1, 1)  # it takes hosts of four otherwise
  try:
    description = topologies.get_topology_desc(
      platform="tpu", topology_name=f"{generation}:{shape}", **options
    )
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
    count=count,
  )


def known() -> str:
  """The topologies that exist, on one line."""
  names = (f"{name}:{{{','.join(chip.shapes)}}}" for name, chip in chips.CHIPS.items())
  return f"known are {', '.join(names)}, or Google Cloud's names, as v5p-16, 2xv5p-64 or v6e-1"
