"""A lower bound of a program's time: the slowest of matrix units, memory, links and DCN.

Links are those between the chips of a slice; DCN, the network of the data centre, joins slices.
Each is taken to run at its peak rate and in parallel with the others; collectives over the same
one run one by one, and each takes at least the delay of the hops on its way.
"""

from collections.abc import Sequence
import dataclasses

from launch import chips, costs

# Seconds from a chip to its neighbour, however few the bytes. Source: "How to Scale Your Model"
# (jax-ml.github.io/scaling-book), part 3.
HOP = 1e-6
RESOURCES = ("compute", "memory", "network", "dcn")
Place = tuple[int, ...]  # of a device: its chip along each dimension of the slice


@dataclasses.dataclass(frozen=True, kw_only=True)
class Roofline:
  """Seconds that a program needs of each resource at its peak rate.

  Beside these, and in none of them:
  schedule: seconds by the compiler's own cost model, one instruction after the other, without
    collectives; each kernel at peak FLOPs or bandwidth, whichever takes longer.
  vector: of these, instructions without a matrix product: vector work and sorts.
  latency: of `network`, the delays of links, where they take longer than the bytes.
  """

  compute: float
  memory: float
  network: float
  dcn: float = 0.0
  schedule: float = 0.0
  vector: float = 0.0
  latency: float = 0.0

  @property
  def seconds(self) -> float:
    """Seconds of the resource that is needed longest."""
    return max(self.compute, self.memory, self.network, self.dcn)

  @property
  def bound(self) -> str:
    """The name of that resource."""
    return max(RESOURCES, key=lambda name: getattr(self, name))


def estimate(
  spent: costs.Costs, chip: chips.Chip, places: Sequence[Place], sides: Sequence[int]
) -> Roofline:
  """The roofline of one device's costs.

  places: of the devices of a slice, in the order of the mesh.
  """
  within = [
    (t.times, transfer_seconds(t, chip, places, sides), latency(t, chip, places, sides))
    for t in spent.transfers
    if t.slices == 1
  ]
  return Roofline(
    compute=spent.passes / chip.peak,
    memory=spent.bytes / chip.bandwidth,
    network=sum(times * max(moved, delay) for times, moved, delay in within),
    latency=sum(times * max(0.0, delay - moved) for times, moved, delay in within),
    schedule=spent.cycles / chip.clock
    + sum(
      each.times * max(each.passes / chip.peak, each.bytes / chip.bandwidth)
      for each in spent.kernels
    ),
    vector=spent.vector_cycles / chip.clock,
    dcn=sum(t.times * sent_between_slices(t) for t in spent.transfers if t.slices > 1) / chip.dcn,
  )


def sent_between_slices(transfer: costs.Transfer) -> float:
  """Bytes that each device sends to other slices in one run of a collective between slices.

  For the reductions those of a ring. A device's part of an all-gather goes to each other slice.
  """
  others = transfer.slices - 1
  if transfer.kind == "all-gather":
    return transfer.bytes * others
  if transfer.kind == "collective-permute":
    return transfer.bytes
  return transfer.bytes * others / transfer.slices * (2 if transfer.kind == "all-reduce" else 1)


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


def latency(
  transfer: costs.Transfer, chip: chips.Chip, places: Sequence[Place], sides: Sequence[int]
) -> float:
  """Seconds of one run of a collective that moves no bytes: the hops on its way, one by one.

  The farthest chip of a ring is half of it away, that of a line all of it.
  """
  group = [places[device] for device in transfer.devices]
  if len(group) < 2:
    return 0.0
  if transfer.kind == "collective-permute":
    return HOP * max(1.0, _mean_hops(group, chip, sides))
  spans = [len({place[axis] for place in group}) for axis in range(len(sides))]
  hops = sum(
    span // 2 if _joined(side, chip) else span - 1 for span, side in zip(spans, sides, strict=True)
  )
  return HOP * max(1, hops) * (2 if transfer.kind == "all-reduce" else 1)


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
