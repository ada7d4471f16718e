"""Length bucketing: orders examples so that those of a batch have similar lengths.

A batch is padded to its longest prompt. With randomly drawn clips of very different lengths, most
of a batch would be padding.
"""

from collections.abc import Callable
import functools
import threading
from typing import Any, SupportsIndex

import grain
from jaxtyping import Int
import numpy as np

BATCHES = 8  # batches in a window; more would save little padding and make the order less random


class LengthBucketedOrder:
  """A stream of shuffled epochs, reordered within windows of a few batches.

  The elements of a window are sorted by length and cut into batches; the batches are then shuffled.

  - The element at an index depends on the seed and the stream alone, so reading may begin anywhere.
  - A window is within one epoch, so each epoch still has each example once.
  - Batches that straddle two epochs, and windows whose elements all have the same length, are left
    as they are.
  """

  def __init__(
    self,
    stream: grain.MapDataset,
    *,
    epoch: int,
    batch: int,
    length: Callable[[Any], int],
    seed: int,
  ):
    """Creates the stream. Reads no element yet.

    stream: the elements, epoch after epoch.
    epoch: number of elements in an epoch.
    batch: number of elements that all processes pad together.
    length: returns the length of an element.
    seed: for the order of batches in a window, and of rows in a batch.
    """
    self._stream, self._epoch_size, self._batch_size = stream, epoch, batch
    self._length, self._seed = length, seed
    self._order = functools.lru_cache(maxsize=4)(self._compute_order)
    # Prefetching threads reach a window at the same time; one of them computes its order.
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return len(self._stream)

  def __getitem__(self, index: SupportsIndex) -> Any:
    position = index.__index__()
    first, stop = self._window(position // self._batch_size)
    if stop == first:
      return self._stream[position]
    with self._lock:
      order = self._order(first, stop)
    return self._stream[int(order[position - first * self._batch_size])]

  def _window(self, batch_index: int) -> tuple[int, int]:
    """The batches of a batch's window, [first, stop). Empty if the batch straddles two epochs."""
    epoch_index = batch_index * self._batch_size // self._epoch_size
    # The batches that lie in this epoch: the first that begins in it (rounded up), up to the last
    # that ends in it (rounded down).
    first = -(-epoch_index * self._epoch_size // self._batch_size)
    stop = (epoch_index + 1) * self._epoch_size // self._batch_size
    if not first <= batch_index < stop:
      return batch_index, batch_index
    # Windows of `BATCHES` batches follow one another from there; the last may be shorter.
    first += (batch_index - first) // BATCHES * BATCHES
    return first, min(first + BATCHES, stop)

  def _compute_order(self, first: int, stop: int) -> Int[np.ndarray, "positions"]:
    """The stream positions of a window's elements, in their new order.

    Reads all elements of the window, to measure them.
    """
    positions = np.arange(first * self._batch_size, stop * self._batch_size)
    lengths = np.array([self._length(self._stream[int(position)]) for position in positions])
    if (lengths == lengths[0]).all():
      return positions
    rng = np.random.default_rng([self._seed, first])
    batches = positions[np.argsort(lengths, kind="stable")].reshape(-1, self._batch_size)
    # The rows of each batch are shuffled too. Each process takes a contiguous block of rows, so in
    # sorted rows the last one would always read the longest.
    return rng.permuted(batches[rng.permutation(len(batches))], axis=1).reshape(-1)
