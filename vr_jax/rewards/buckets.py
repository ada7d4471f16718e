"""Few shapes for ragged work: what is padded to one shape is computed together, and compiled once."""

from collections.abc import Iterator, Sequence

from jaxtyping import Int
import numpy as np


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
    for start in range(0, len(members), sizes[-1]):
      chosen = members[start : start + sizes[-1]]
      yield chosen, next(size for size in sizes if size >= len(chosen)), shape
