"""Speeds and memory of TPU chips, by the names that topologies start with.

Sources:
  Google Cloud's pages "TPU v5e", "TPU v5p", "TPU v6e" and "TPU7x (Ironwood)"
    (docs.cloud.google.com/tpu/docs/v5e, v5p, v6e, tpu7x), read 2026-11. They state the bandwidth
    between chips for both directions of all links together. The network of the data centre: Gb/s a
    chip on the page of TPU7x, for v5e 6.4 Tb/s for the 256 chips of a pod.
  The memory that a program may use: the error of libtpu 0.0.42's compiler where one does not fit.
"""

from collections.abc import Mapping
import dataclasses

TERA, GIGA, GIB = 1e12, 1e9, 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """One device as JAX sees it: a chip, or one of the two halves of a TPU7x.

  peak: bfloat16 FLOP/s.
  memory: bytes of HBM that a program may use.
  bandwidth: of HBM, bytes/s.
  clock: cycles/s, from the peak and the matrix units (four of 128 x 128 a core on v5e and v5p, four
    of 256 x 256 in all on v6e and half a TPU7x).
  link: bytes/s of one link in one direction; there are two links for each of `dimensions`.
  ring: where a side of the slice is a multiple of it, its ends are linked as well.
  shapes: of the slices that exist, in chips.
  dcn: bytes/s in one direction over the network of the data centre, which joins slices.
  between_halves: bytes/s in one direction between the two devices of a chip, where it has two.
  dtypes: of inputs of its matrix units.
  """

  name: str
  peak: float
  memory: float
  bandwidth: float
  clock: float
  link: float
  dimensions: int
  ring: int
  dcn: float
  shapes: tuple[str, ...]
  devices_per_chip: int = 1
  between_halves: float = 0.0
  dtypes: tuple[str, ...] = ("bfloat16", "float32")


_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16")

CHIPS: Mapping[str, Chip] = {
  "v5e": Chip(
    name="TPU v5e",
    peak=197 * TERA,
    memory=15.75 * GIB,
    bandwidth=819 * GIGA,
    clock=1.5 * GIGA,
    link=400 * GIGA / 8,
    dimensions=2,
    ring=16,
    dcn=6400 / 256 * GIGA / 8,
    shapes=_FLAT,
  ),
  "v5p": Chip(
    name="TPU v5p",
    peak=459 * TERA,
    memory=95.74 * GIB,
    bandwidth=2765 * GIGA,
    clock=1.75 * GIGA,
    link=1200 * GIGA / 12,
    dimensions=3,
    ring=4,
    dcn=50 * GIGA / 8,
    shapes=_CUBES,
  ),
  "v6e": Chip(
    name="TPU v6e",
    peak=918 * TERA,
    memory=31.25 * GIB,
    bandwidth=1638 * GIGA,
    clock=1.75 * GIGA,
    link=800 * GIGA / 8,
    dimensions=2,
    ring=16,
    dcn=100 * GIGA / 8,
    shapes=_FLAT,
  ),
  # The halves share the chip's links. Source: the page says that the connection between them is six
  # times as fast as one of these.
  "tpu7x": Chip(
    name="TPU7x (Ironwood)",
    peak=2307 * TERA / 2,
    memory=94.75 * GIB,
    bandwidth=7380 * GIGA / 2,
    clock=2.2 * GIGA,
    link=1200 * GIGA / 12 / 2,
    dimensions=3,
    ring=4,
    dcn=100 * GIGA / 8 / 2,
    shapes=_CUBES,
    devices_per_chip=2,
    between_halves=6 * 1200 * GIGA / 12,
  ),
}
