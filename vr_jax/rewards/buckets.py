"""Few shapes for ragged work: what is padded to one shape is computed together, and compiled once."""

from collections.abc import Iterator, Sequence

from jaxtyping import Int
import numpy as np

PAD = -1  # what rows of ids are filled with
# A batch has at most so many places an item; where no size is that near, a smaller one is filled.
_PLACES = 4


def rung(lengths: Int[np.ndarray, "*shape"], lowest: int) -> Int[np.ndarray, "*shape"]:
  """Each length rounded up to lowest, 4 lowest, 16 lowest, …"""
  exponent = np.ceil(np.log2(np.maximum(lengths, lowest) / lowest) / 2)
  return (lowest * 4**exponent).astype(np.int64)


def batches(
  shapes: Int[np.ndarray, "items axes"], sizes: Sequence[int]
) -> Iterator[tuple[Int[np.ndarray, "chosen"], int, tuple[int, ...]]]:
  """Cuts items into batches of one shape each: one long item costs what it is long, and not that much for every other.

  Args:
    shapes: of each item, padded (see `rung`).
    sizes: numbers of items that a batch may be padded to, rising; no batch has more than the last.

  Yields:
    The indices of a batch's items, the number of items to pad them to, their shape.
  """
  for shape in sorted(set(map(tuple, shapes.tolist()))):
    members = np.flatnonzero((shapes == shape).all(axis=1))
    while len(members):
      rows = _size(len(members), sizes)
      yield members[:rows], rows, shape
      members = members[rows:]


def _size(items: int, sizes: Sequence[int]) -> int:
  """That of the next batch, with so many items left."""
  near = [size for size in sizes if items <= size <= _PLACES * items]
  return near[0] if near else max((size for size in sizes if size <= items), default=sizes[0])


class Rows:
  """Rows of ids of any lengths, to be looked up many at a time."""

  def __init__(self, rows: Sequence[Sequence[int] | Int[np.ndarray, "_"]]):
    self.lengths = np.array([len(row) for row in rows], np.int64)
    self._starts = np.cumsum(self.lengths) - self.lengths
    self._ids = np.concatenate([*rows, [PAD]]).astype(np.int32)

  def padded(
    self, chosen: Int[np.ndarray, "chosen"], width: int, rows: int
  ) -> Int[np.ndarray, "rows width"]:
    """The chosen ones, no longer than `width`, in the first of as many rows, filled with PAD."""
    column = np.arange(width)
    place = self._starts[chosen, None] + column
    within = column < self.lengths[chosen, None]
    result = np.full((rows, width), PAD, np.int32)
    result[: len(chosen)] = self._ids[np.where(within, place, -1)]
    return result
