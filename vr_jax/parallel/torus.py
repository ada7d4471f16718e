"""Which chip of a TPU slice, or of several, is at which place of a mesh.

JAX's own function for that, `mesh_utils.create_device_mesh`, knows the torus but not its hosts: on
most slices it scatters a host's chips over the batch, so that no host has whole shares of it. Here
the inner axes of a mesh fill the chips of each host, and the outer ones the grid of hosts: the rows
of a host follow one another. Within this, neighbours along an axis are neighbours on the torus.
"""

from collections.abc import Iterable, Iterator, Sequence
import functools
import itertools
import math
from typing import Any

import numpy as np

from vr_jax import errors

Device = Any  # a jax.Device, or what has its attributes
Vector = tuple[int, ...]  # z, y, x, and the core of a chip


def place_devices(sizes: Sequence[int], devices: Sequence[Device]) -> np.ndarray:
  """Places devices in a mesh whose inner axes need the fastest links.

  Of several slices, each has a part of the first axis. Devices other than TPUs, and TPUs that are
  not whole boxes of hosts, stay in their order.

  sizes: of the axes; their product is the number of devices.
  Returns an array of devices [*sizes].

  Raises InputError if the first axis can't be split over the slices.
  """
  if devices[0].platform != "tpu":
    return np.asarray(devices).reshape(sizes)
  slices: dict[int, list[Device]] = {}
  for device in devices:
    slices.setdefault(getattr(device, "slice_index", None) or 0, []).append(device)
  count, (first, *rest) = len(slices), sizes
  if first % count or len({len(those) for those in slices.values()}) > 1:
    raise errors.InputError(_unsplit(sizes, len(devices), count))
  parts = (_on_slice((first // count, *rest), slices[index]) for index in sorted(slices))
  return np.concatenate(list(parts))


def _unsplit(sizes: Sequence[int], devices: int, count: int) -> str:
  """Says why a mesh does not go with several slices, and which one does."""
  _, _, sequence, tensor = sizes
  line = f"config.mesh={tuple(sizes)}: data={sizes[0]} can't be split over {count} slices, "
  if devices % (count * sequence * tensor):
    return line + f"nor can the {devices} devices with sequence x tensor={sequence * tensor}"
  return line + (
    "so weights or activations would travel between them; use "
    f'--config.mesh="({count},-1,{sequence},{tensor})"'
  )


def _on_slice(sizes: Sequence[int], devices: Sequence[Device]) -> np.ndarray:
  spots: dict[Vector, Device] = {
    (*reversed(device.coords), device.core_on_chip): device for device in devices
  }
  hosts: dict[int, list[Vector]] = {}
  for spot, device in spots.items():
    hosts.setdefault(device.process_index, []).append(spot)
  corner, sides = _box(spots)
  boxes = [_box(own) for own in hosts.values()]
  _, host = boxes[0]
  same = all(
    own == host and not any((a - b) % side for a, b, side in zip(low, corner, own, strict=True))
    for low, own in boxes
  )
  full = {len(own) for own in hosts.values()} == {math.prod(host)}
  if not (same and full and math.prod(sides) == len(devices)):
    return np.asarray(devices).reshape(sizes)
  paths = _paths(sizes, host, [side // own for side, own in zip(sides, host, strict=True)])
  places = itertools.product(*paths)
  placed = [spots[functools.reduce(_sum, vectors, corner)] for vectors in places]
  return np.asarray(placed).reshape(sizes)


def _box(spots: Iterable[Vector]) -> tuple[Vector, Vector]:
  """The lowest corner of the box around these spots, and its sides."""
  low, high = (tuple(map(end, zip(*spots, strict=True))) for end in (min, max))
  return low, tuple(b - a + 1 for a, b in zip(low, high, strict=True))


def _paths(sizes: Sequence[int], host: Sequence[int], grid: Sequence[int]) -> list[list[Vector]]:
  """The way that each axis goes; a device is where the sum of one vector of each axis leads.

  host: sides of a host's box; grid: hosts a dimension.
  """
  near, far = [1] * len(host), list(host)  # strides: within a host, and from host to host
  host, grid = list(host), list(grid)  # what is left of them
  paths: list[list[Vector]] = []
  for size in reversed(sizes):
    inner = _share(math.gcd(size, math.prod(host)), host, near)
    # A dimension of which this axis has all that was left goes on in the next host.
    strides = [b // a if b // a == n else b for a, b, n in zip(inner, far, near, strict=True)]
    outer = _share(size // math.prod(inner), grid, strides)
    paths.insert(0, _way(_scaled(outer, far), list(_turned(inner, near))))
    for left, strides, taken in ((host, near, inner), (grid, far, outer)):
      for dimension, ways in enumerate(taken):
        left[dimension] //= ways
        strides[dimension] *= ways
  return paths


def _share(size: int, left: Sequence[int], strides: Sequence[int]) -> Vector:
  """Splits the size of an axis over dimensions: as compact as possible, over whole dimensions.

  left: what is free of each dimension; its product is a multiple of the size.
  """
  divisors = ([n for n in range(1, side + 1) if side % n == 0] for side in left)
  fitting = (ways for ways in itertools.product(*divisors) if math.prod(ways) == size)

  def cost(ways: Vector) -> tuple:
    length = sum((n - 1) * stride for n, stride in zip(ways, strides, strict=True))
    whole = sum(n == side > 1 for n, side in zip(ways, left, strict=True))
    return length, -whole, ways

  return min(fitting, key=cost)


def _snake(sides: Sequence[int]) -> list[Vector]:
  """All places of a box, each next to the one before."""
  if not sides:
    return [()]
  rest = _snake(sides[1:])
  return [(n, *tail) for n in range(sides[0]) for tail in rest[:: -1 if n % 2 else 1]]


def _scaled(sides: Sequence[int], strides: Sequence[int]) -> list[Vector]:
  return [
    tuple(n * stride for n, stride in zip(place, strides, strict=True)) for place in _snake(sides)
  ]


def _turned(sides: Sequence[int], strides: Sequence[int]) -> Iterator[list[Vector]]:
  """The ways through a box that start at any corner and turn in any order."""
  used = [dimension for dimension, side in enumerate(sides) if side > 1]
  for order in itertools.permutations(used):
    for mirrored in itertools.product((False, True), repeat=len(used)):
      way = []
      for place in _snake([sides[dimension] for dimension in order]):
        vector = [0] * len(sides)
        for dimension, n, mirror in zip(order, place, mirrored, strict=True):
          vector[dimension] = strides[dimension] * (sides[dimension] - 1 - n if mirror else n)
        way.append(tuple(vector))
      yield way


def _way(hosts: Sequence[Vector], turned: Sequence[list[Vector]]) -> list[Vector]:
  """Goes from host to host, through each so that its end is near the next one."""
  way: list[Vector] = []
  for host, following in itertools.zip_longest(hosts, hosts[1:]):
    through = [[_sum(host, spot) for spot in inside] for inside in turned]
    goals = [_sum(following, spot) for spot in turned[0]] if following else []
    before = way[-1:]
    links = [
      sum(_apart(spot, ways[0]) for spot in before)
      + min((_apart(ways[-1], goal) for goal in goals), default=0)
      for ways in through
    ]
    way += through[links.index(min(links))]
  return way


def _sum(a: Vector, b: Vector) -> Vector:
  return tuple(x + y for x, y in zip(a, b, strict=True))


def _apart(a: Vector, b: Vector) -> int:
  """Links between two chips, without those that join the ends of a dimension."""
  return sum(abs(x - y) for x, y in zip(a, b, strict=True))
