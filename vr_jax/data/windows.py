"""Windows: an order of examples in which those of about one length stand in one batch, and that is as random otherwise.

A batch is padded to its longest prompt: of clips that differ much in length, drawn at random, most of it is padding.
"""

from collections.abc import Callable
import functools
import threading
from typing import Any, SupportsIndex

import grain
from jaxtyping import Int
import numpy as np

BATCHES = 8  # of a window: more of them save little padding, and order an epoch more


class ByLength:
  """A stream of shuffled epochs, of which some batches at a time are sorted by length and shuffled as batches.

  What stands at an index follows from the seed and the stream alone, so that reading may begin anywhere. A window lies within an
  epoch, so that one still holds each example once; a batch of two epochs stays as it is, and so does a window of one length.
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
    """Reads nothing yet.

    stream: elements in any order, epoch after epoch. epoch: how many one has. batch: how many are padded together, by all
    processes. length: of an element. seed: of the order of batches, and of rows in a batch.
    """
    self._stream, self._epoch, self._batch = stream, epoch, batch
    self._length, self._seed = length, seed
    self._order = functools.lru_cache(maxsize=4)(self._drawn)
    # Threads that read ahead enter a window together, and one of them is to order it.
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return len(self._stream)

  def __getitem__(self, index: SupportsIndex) -> Any:
    place = index.__index__()
    first, stop = self._window(place // self._batch)
    if stop > first:
      with self._lock:
        order = self._order(first, stop)
      place = int(order[place - first * self._batch])
    return self._stream[place]

  def _window(self, batch: int) -> tuple[int, int]:
    """The first batch of its window, and the one behind it; none where the batch is of two epochs."""
    epoch = batch * self._batch // self._epoch
    first = -(-epoch * self._epoch // self._batch)
    stop = (epoch + 1) * self._epoch // self._batch
    if not first <= batch < stop:
      return batch, batch
    first += (batch - first) // BATCHES * BATCHES
    return first, min(first + BATCHES, stop)

  def _drawn(self, first: int, stop: int) -> Int[np.ndarray, "places"]:
    """Where in the stream the elements of a window stand, in their new order."""
    places = np.arange(first * self._batch, stop * self._batch)
    lengths = np.array([self._length(self._stream[int(place)]) for place in places])
    if (lengths == lengths[0]).all():
      return places
    rng = np.random.default_rng([self._seed, first])
    batches = places[np.argsort(lengths, kind="stable")].reshape(-1, self._batch)
    # Rows too: of several processes, one would otherwise read the longest clips of every batch.
    return rng.permuted(batches[rng.permutation(len(batches))], axis=1).reshape(-1)
