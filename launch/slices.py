"""TPU slices by Google Cloud's names: v5e-16, v6e-8, v5p-16, tpu7x-64, several as 2xv5p-64.

The number of a name counts TensorCores. A chip of v5e and v6e has one, so there it is the number of
chips; a chip of v5p and TPU7x has two.

Sources:
  Google Cloud's pages "TPU v5e", "TPU v5p", "TPU v6e", "TPU software versions" and "Plan TPUs in
    GKE" (docs.cloud.google.com/tpu/docs/v5e, v5p, v6e, runtimes;
    docs.cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus), read 2026-11.
  That a tpu7x name counts TensorCores is not on these pages. Google's own recipes say it
    (llm-on-gke/tpu-recipes, training/ironwood), and XPK prints it: tpu7x-128 for 4x4x4.
"""

from collections.abc import Mapping
import dataclasses
import math
import re

from launch import chips
from vr_jax import errors


@dataclasses.dataclass(frozen=True, kw_only=True)
class TpuGeneration:
  """How Google Cloud names and builds slices of a generation.

  cores: TensorCores of a chip.
  accelerator: begins the accelerator type of a TPU VM; empty where there are none.
  runtime: software version of a TPU VM.
  label: value of a GKE node's label cloud.google.com/gke-tpu-accelerator.
  machine: GKE machine type without the number of its chips.
  single_host: the most chips that one host may have; larger slices have hosts of 4.
  """

  cores: int
  accelerator: str
  runtime: str
  label: str
  machine: str
  single_host: int


GENERATIONS: Mapping[str, TpuGeneration] = {
  "v5e": TpuGeneration(
    cores=1,
    accelerator="v5litepod",
    runtime="v2-alpha-tpuv5-lite",
    label="tpu-v5-lite-podslice",
    machine="ct5lp-hightpu",
    single_host=8,
  ),
  "v5p": TpuGeneration(
    cores=2,
    accelerator="v5p",
    runtime="v2-alpha-tpuv5",
    label="tpu-v5p-slice",
    machine="ct5p-hightpu",
    single_host=4,
  ),
  "v6e": TpuGeneration(
    cores=1,
    accelerator="v6e",
    runtime="v2-alpha-tpuv6e",
    label="tpu-v6e-slice",
    machine="ct6e-standard",
    single_host=8,
  ),
  "tpu7x": TpuGeneration(
    cores=2,
    accelerator="",
    runtime="",
    label="tpu7x",
    machine="tpu7x-standard",
    single_host=4,
  ),
}

_HOST = 4  # chips of a host of a slice with several
_NAME = re.compile(r"(?:([1-9]\d*)x)?([a-z]\w*?)-(\d+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NamedSlice:
  """One slice, or several of one kind that work together.

  count: slices.
  cores: TensorCores of a slice: the number in its name.
  shape: chips along each side of a slice.
  """

  name: str
  generation: str
  count: int
  cores: int
  shape: tuple[int, ...]

  @property
  def kind(self) -> TpuGeneration:
    """How its generation is named and built."""
    return GENERATIONS[self.generation]

  @property
  def chips(self) -> int:
    """Chips of all slices."""
    return self.count * math.prod(self.shape)

  @property
  def devices(self) -> int:
    """Devices of all slices, as JAX counts them."""
    return self.chips * chips.CHIPS[self.generation].devices_per_chip

  @property
  def chips_per_host(self) -> int:
    """Chips of one virtual machine, on GKE."""
    size = math.prod(self.shape)
    return size if size <= self.kind.single_host else _HOST

  @property
  def hosts(self) -> int:
    """Virtual machines of one slice, on GKE."""
    return math.prod(self.shape) // self.chips_per_host

  @property
  def all_hosts(self) -> int:
    """Virtual machines of all slices."""
    return self.count * self.hosts

  @property
  def topology(self) -> str:
    """The shape as GKE writes it, in chips: 2x2x4."""
    return "x".join(map(str, self.shape))

  @property
  def accelerator_type(self) -> str:
    """The accelerator type of a TPU VM."""
    return f"{self.kind.accelerator}-{self.cores}"

  @property
  def machine_type(self) -> str:
    """The machine type of a GKE node."""
    return f"{self.kind.machine}-{self.chips_per_host}t"


def parse(name: str, where: str = "slice") -> NamedSlice:
  """The slice of a name.

  where: names the flag or the field of a file in errors.

  Raises InputError where there is no such slice.
  """
  match = _NAME.fullmatch(name.replace("v5litepod-", "v5e-"))
  generation = match[2] if match else ""
  if match is None or generation not in GENERATIONS:
    raise errors.InputError(
      f"{where}: {name} is no name of a TPU slice; write v5e-16, v6e-8, v5p-16, tpu7x-64, or "
      "2xv5p-64 for two"
    )
  shapes = _shapes(generation)
  cores = int(match[3])
  if cores not in shapes:
    known = ", ".join(f"{generation}-{number}" for number in shapes)
    raise errors.InputError(f"{where}: there is no {generation}-{cores}; there are {known}")
  return NamedSlice(
    name=name,
    generation=generation,
    count=int(match[1] or 1),
    cores=cores,
    shape=shapes[cores],
  )


def _shapes(generation: str) -> dict[int, tuple[int, ...]]:
  """The shapes of a generation by the number in the name of their slice."""
  named = chips.CHIPS[generation].shapes
  if GENERATIONS[generation].cores == 1:
    named = ("1x1", *named)  # a single chip, for which no program needs a mesh
  sides = [tuple(map(int, shape.split("x"))) for shape in named]
  return {math.prod(shape) * GENERATIONS[generation].cores: shape for shape in sides}
