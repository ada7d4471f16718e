"""A lower bound of a program's time: the slowest of matrix units, memory and links.

Each is taken to run at its peak rate and in parallel with the others; collectives run one by one.
"""

from collections.abc import Sequence
import dataclasses

from launch import chips, costs

Place = tuple[int, ...]  # of a device: its chip along each dimension of the slice


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
  """Seconds that a program needs of each resource at its peak rate."""

  compute: float
  memory: float
  network: float

  @property
  def seconds(self) -> float:
    """Seconds of the resource that is needed longest."""
    return max(self.compute, self.memory, self.network)

  @property
  def bound(self) -> str:
    """The name of that resource."""
    return max(("compute", "memory", "network"), key=lambda name: getattr(self, name))


def estimate(
  spent: costs.Costs, chip: chips.Chip, places: Sequence[Place], sides: Sequence[int]
) -> Roofline:
  """The roofline of one device's costs. places: of the devices, in the order of the mesh."""
  return Roofline(
    compute=spent.passes / chip.peak,
    memory=spent.bytes / chip.bandwidth,
    network=sum(t.times * transfer_seconds(t, chip, places, sides) for t in spent.transfers),
  )


def transfer_seconds(
  transfer: costs.Transfer, chip: chips.Chip, places: Sequence[Place], sides: Sequence[int]
) -> float:
  """Seconds of one run of a collective, over rings along the dimensions where its devices differ.

  A dimension moves data over two links where its ends are joined, over one otherwise.
  Source: the usual costs of ring collectives, as in "How to Scale Your Model"
    (jax-ml.github.io/scaling-book), part 3.
  """
  group = [places[device] for device in transfer.devices]
  count = len(group)
  if count < 2:
    return 0.0
  if transfer.kind == "collective-permute":
    return transfer.bytes * max(1.0, _mean_hops(group, chip, sides)) / _link(group, chip)
  spans = [len({place[axis] for place in group}) for axis in range(len(sides))]
  rates = [
    (2 if _joined(side, chip) else 1) * chip.link if span > 1 else 0.0
    for span, side in zip(spans, sides, strict=True)
  ]
  rate = sum(rates) or chip.between_halves
  if transfer.kind == "all-to-all":
    # A piece travels a quarter of a ring (half of a line) on average.
    lengths = [span / 4 / r for span, r in zip(spans, rates, strict=True) if r]
    return transfer.bytes * max(lengths, default=1 / rate)
  share = (count - 1) / count
  return transfer.bytes * share * (2 if transfer.kind == "all-reduce" else 1) / rate


def _link(group: Sequence[Place], chip: chips.Chip) -> float:
  return chip.link if len(set(group)) > 1 else chip.between_halves


def _mean_hops(group: Sequence[Place], chip: chips.Chip, sides: Sequence[int]) -> float:
  """Mean number of links between source and target; `group` lists source, target, source, …"""
  pairs = list(zip(group[::2], group[1::2], strict=True))
  hops = 0
  for source, target in pairs:
    for a, b, side in zip(source, target, sides, strict=True):
      distance = abs(a - b)
      hops += min(distance, side - distance) if _joined(side, chip) else distance
  return hops / len(pairs)


def _joined(side: int, chip: chips.Chip) -> bool:
  return side > 2 and side % chip.ring == 0
