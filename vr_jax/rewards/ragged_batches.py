"""Groups ragged items into batches of a few fixed shapes, so that few programs are compiled."""

from collections.abc import Iterator, Sequence

from jaxtyping import Int
import numpy as np

PAD = -1  # fills rows of ids
# A batch is padded to at most this many times its items. If every size is larger than that, the
# next smaller size is filled and the rest goes into another batch.
_MAX_PADDING = 4


def bucket_size(lengths: Int[np.ndarray, "*shape"], lowest: int) -> Int[np.ndarray, "*shape"]:
  """Rounds each length up to lowest, 4 lowest, 16 lowest, …"""
  exponent = np.ceil(np.log2(np.maximum(lengths, lowest) / lowest) / 2)
  return (lowest * 4**exponent).astype(np.int64)


def group_by_shape(
  shapes: Int[np.ndarray, "items axes"], sizes: Sequence[int]
) -> Iterator[tuple[Int[np.ndarray, "chosen"], int, tuple[int, ...]]]:
  """Splits items into batches of equal shape, so that one long item does not pad all others.

  Args:
    shapes: the padded shape of each item (see `bucket_size`).
    sizes: numbers of items that a batch may be padded to, increasing. No batch exceeds the last.

  Yields:
    (indices of the batch's items, number of items to pad to, shape).
  """
  for shape in sorted(set(map(tuple, shapes.tolist()))):
    members = np.flatnonzero((shapes == shape).all(axis=1))
    while len(members):
      rows = _batch_size(len(members), sizes)
      yield members[:rows], rows, shape
      members = members[rows:]


def _batch_size(items: int, sizes: Sequence[int]) -> int:
  """The size of the next batch if `items` items remain."""
  close = [size for size in sizes if items <= size <= _MAX_PADDING * items]
  return close[0] if close else max((size for size in sizes if size <= items), default=sizes[0])


class RaggedRows:
  """Rows of ids of any lengths, stored as one array for fast lookup of many rows."""

  def __init__(self, rows: Sequence[Sequence[int] | Int[np.ndarray, "_"]]):
    self.lengths = np.array([len(row) for row in rows], np.int64)
    self._starts = np.cumsum(self.lengths) - self.lengths
    self._ids = np.concatenate([*rows, [PAD]]).astype(np.int32)

  def pad(
    self, chosen: Int[np.ndarray, "chosen"], width: int, rows: int
  ) -> Int[np.ndarray, "rows width"]:
    """Returns the chosen rows, followed by empty ones, padded with PAD.

    chosen: indices of rows that are no longer than `width`; at most `rows` of them.
    """
    column = np.arange(width)
    position = self._starts[chosen, None] + column
    within = column < self.lengths[chosen, None]
    result = np.full((rows, width), PAD, np.int32)
    result[: len(chosen)] = self._ids[np.where(within, position, -1)]
    return result
