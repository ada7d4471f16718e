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
  - A batch that spans two epochs keeps its order, and so does a window of equal lengths.
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
    self._stream, self._epoch, self._batch = stream, epoch, batch
    self._length, self._seed = length, seed
    self._order = functools.lru_cache(maxsize=4)(self._sample_order)
    # Prefetching threads reach a window at the same time; one of them computes its order.
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return len(self._stream)

  def __getitem__(self, index: SupportsIndex) -> Any:
    position = index.__index__()
    first, stop = self._window(position // self._batch)
    if stop > first:
      with self._lock:
        order = self._order(first, stop)
      position = int(order[position - first * self._batch])
    return self._stream[position]

  def _window(self, batch: int) -> tuple[int, int]:
    """The batches of a batch's window, [first, stop). Empty if the batch spans two epochs."""
    epoch = batch * self._batch // self._epoch
    first = -(-epoch * self._epoch // self._batch)
    stop = (epoch + 1) * self._epoch // self._batch
    if not first <= batch < stop:
      return batch, batch
    first += (batch - first) // BATCHES * BATCHES
    return first, min(first + BATCHES, stop)

  def _sample_order(self, first: int, stop: int) -> Int[np.ndarray, "positions"]:
    """The stream positions of a window's elements, in their new order."""
    positions = np.arange(first * self._batch, stop * self._batch)
    lengths = np.array([self._length(self._stream[int(position)]) for position in positions])
    if (lengths == lengths[0]).all():
      return positions
    rng = np.random.default_rng([self._seed, first])
    batches = positions[np.argsort(lengths, kind="stable")].reshape(-1, self._batch)
    # The rows of each batch are shuffled too. Else the last process would always read the longest.
    return rng.permuted(batches[rng.permutation(len(batches))], axis=1).reshape(-1)
