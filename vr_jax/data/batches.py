"""Batches: examples and their frames, shuffled, sharded by process and read ahead, by Grain."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

import grain
from jaxtyping import Float, Int, UInt8, UInt32
import numpy as np

from vr_jax import records
from vr_jax.data import examples, frame_store, sampling, windows
from vr_jax.errors import InputError

# More than any run reads; without end Grain counts examples beyond what an int holds.
_EPOCHS = 2**32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
  """One example with the frames that the model sees of it: their times in seconds, their indices in the store."""

  example: records.Example
  store: frame_store.FrameStore
  timestamps: Float[np.ndarray, "frames"]
  frame_indices: Int[np.ndarray, "frames"]

  def __len__(self) -> int:
    """How many frames there are."""
    return len(self.frame_indices)

  @functools.cached_property
  def frames(self) -> UInt8[np.ndarray, "frames height width 3"]:
    """All frames, RGB, read when they are first asked for."""
    return self.read(range(len(self)))

  def read(self, frames: Sequence[int]) -> UInt8[np.ndarray, "frames height width 3"]:
    """Some of the frames, by their number here; raises InputError where a stored record is damaged."""
    return self.store.read(self.example.video, self.frame_indices[list(frames)])

  @property
  def shape(self) -> tuple[int, int, int]:
    """Number, height and width of the frames, without reading them."""
    return (len(self.frame_indices), *self.store.size(self.example.video))

  @property
  def checksums(self) -> UInt32[np.ndarray, "frames"]:
    """Those of the stored frames, without reading them."""
    return self.store.checksums(self.example.video)[self.frame_indices]


def batches(
  source: examples.ExampleSource | examples.Chosen,
  store: frame_store.FrameStore,
  *,
  seed: int,
  batch_size: int,
  sampling: sampling.Rule,
  transform: Callable[[Clip], Any],
  collate: Callable[[list], Any] = list,
  length: Callable[[Clip], int] | None = None,
  process_index: int = 0,
  process_count: int = 1,
  shuffle: bool = True,
  repeat: bool = True,
  threads: int = 2,
) -> grain.DatasetIterator:
  """An iterator over batches: `collate` of a list of `batch_size` transformed clips.

  `get_state()` gives a small JSON-able dict that says how many batches were handed out; after `set_state(state)`, on an
  iterator made with the same arguments, exactly the batches follow that would have followed. Threads and what they
  have read ahead leave no trace in it.

  Processes share one common order. With `repeat=True` they take its batches in turn: what they read together, one after
  the other, is what one process would read as a batch of `process_count * batch_size`, and the state fits any number of
  processes that read as much together. With `repeat=False` they take every `process_count`-th example: none is left out,
  and shares differ by at most one example, so count the batches before a collective.

  Args:
    source: of one split, or some examples of it.
    store: that holds the videos of the split.
    seed: of the shuffling, 0 or more; every epoch has an order of its own.
    batch_size: of this process.
    sampling: which frames of what is shown.
    transform: from a clip to whatever the batch holds; runs in the prefetching threads and must not return None.
    collate: from a list of those to a batch; runs in the prefetching threads.
    length: of a clip, without its frames. Where it is given, clips of about one length share a batch of all processes
      (`windows.ByLength`); needs `shuffle` and `repeat`.
    process_index: of this process.
    process_count: how many share the examples.
    shuffle: False keeps the order of the source.
    repeat: epoch after epoch without end; an epoch's last examples and the next one's first share a batch. False ends
      after one epoch, and the last batch may be smaller.
    threads: that read ahead, a batch each; 0 reads when asked.

  Raises:
    InputError: at once, when a process would have no example, or the rule samples faster than the store holds; from
      the iterator, when a clip is too short for the rule or a stored record that `transform` reads is damaged.
  """
  _check(source, store, sampling, process_count)
  dataset = grain.MapDataset.source(source)
  # Grain adds the epoch to the seed: without mixing, seed 1 would begin with the second epoch of seed 0.
  mixed = int(np.random.SeedSequence(seed).generate_state(1)[0])
  if shuffle:
    dataset = dataset.shuffle(seed=mixed)

  def load(example: records.Example) -> Any:
    return transform(load_clip(example, store, sampling))

  mine = slice(process_index, None, process_count)
  if repeat:
    dataset = dataset.repeat(_EPOCHS)
    if length is not None and shuffle:
      by_length = windows.ByLength(
        dataset,
        epoch=len(source),
        batch=batch_size * process_count,
        length=lambda example: length(load_clip(example, store, sampling)),
        seed=mixed,
      )
      dataset = grain.MapDataset.source(by_length)
    dataset = dataset.map(load).batch(batch_size, batch_fn=collate)[mine]
  else:
    dataset = dataset[mine].map(load).batch(batch_size, batch_fn=collate)
  ahead = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=max(2, threads) if threads else 0
  )
  return iter(dataset.to_iter_dataset(ahead))


def name(example: records.Example) -> str:
  """What errors call an example."""
  return f"example {example.id!r} of video {example.video!r}"


def load_clip(example: records.Example, store: frame_store.FrameStore, rule: sampling.Rule) -> Clip:
  """The frames that `rule` takes of what is shown, not read yet; raises InputError as `batches` says."""
  timestamps = store.timestamps(example.video)
  indices = sampling.choose(timestamps, example.shown, rule, where=name(example))
  return Clip(
    example=example,
    store=store,
    timestamps=timestamps[indices],
    frame_indices=indices,
  )


def _check(
  source: examples.ExampleSource | examples.Chosen,
  store: frame_store.FrameStore,
  rule: sampling.Rule,
  process_count: int,
) -> None:
  if len(source) < process_count:
    raise InputError(f"{source}: {len(source)} examples are too few for {process_count} processes")
  sampling.check_rate(rule, store.fps)
