"""Batches of examples and their frames: shuffled, sharded by process and prefetched, with Grain."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

import grain
from jaxtyping import Float, Int, UInt8, UInt32
import numpy as np

from vr_jax import records
from vr_jax.data import examples, frame_store, length_bucketing, sampling
from vr_jax.errors import InputError

# More than any run reads. If repeated without end, Grain's count of examples would overflow an int.
_EPOCHS = 2**32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Clip:
  """One example with the frames that the model sees.

  timestamps: when each frame is shown first, in seconds.
  frame_indices: the frames' indices in the store.
  """

  example: records.Example
  store: frame_store.FrameStore
  timestamps: Float[np.ndarray, "frames"]
  frame_indices: Int[np.ndarray, "frames"]

  def __len__(self) -> int:
    """The number of frames."""
    return len(self.frame_indices)

  @functools.cached_property
  def frames(self) -> UInt8[np.ndarray, "frames height width 3"]:
    """All frames, RGB, read at first use."""
    return self.read(range(len(self)))

  def read(self, frames: Sequence[int]) -> UInt8[np.ndarray, "frames height width 3"]:
    """Reads some frames, RGB, by their position in this clip.

    Raises InputError if a stored record is damaged.
    """
    return self.store.read(self.example.video, self.frame_indices[list(frames)])

  @property
  def shape(self) -> tuple[int, int, int]:
    """(frames, height, width), without reading the frames."""
    return (len(self.frame_indices), *self.store.size(self.example.video))

  @property
  def checksums(self) -> UInt32[np.ndarray, "frames"]:
    """The CRC-32 of each stored frame, without reading the frames."""
    return self.store.checksums(self.example.video)[self.frame_indices]


def batches(
  source: examples.ExampleSource | examples.ExampleSubset,
  store: frame_store.FrameStore,
  *,
  seed: int,
  batch_size: int,
  frame_rule: sampling.Rule,
  transform: Callable[[Clip, int], Any],
  collate: Callable[[Sequence[Any]], Any] = list,
  length_fn: Callable[[Clip], int] | None = None,
  process_index: int = 0,
  process_count: int = 1,
  shuffle: bool = True,
  repeat: bool = True,
  threads: int = 2,
) -> grain.DatasetIterator:
  """Makes an iterator over batches: `collate` of a list of `batch_size` transformed clips.

  Resuming: `get_state()` returns a small JSON-able dict, the number of batches returned so far.
  After `set_state(state)`, an iterator made with the same arguments returns exactly the batches
  that would have followed. Prefetched batches don't affect the state.

  Sharding: all processes share one order of examples.

  - With `repeat=True` process p takes batches p, p + process_count, … of this order. Together they
    read what one process would read as a batch of `process_count * batch_size`. A state fits any
    number of processes with the same total batch.
  - With `repeat=False` process p takes examples p, p + process_count, …. None is left out, and
    processes differ by at most one example. So let them agree on the number of batches before any
    collective operation, or it hangs.

  Args:
    source: the examples of a split, or some of them.
    store: the frames of the split's videos.
    seed: for shuffling, 0 or more; every epoch has its own order.
    batch_size: of this process.
    frame_rule: which frames to take from the shown span.
    transform: converts a clip to an element of a batch; gets the number of the epoch, from 0, too.
      Runs in the prefetch threads; must not return None.
    collate: converts a list of elements to a batch. Runs in the prefetch threads.
    length_fn: the length of a clip, computed without its frames, in the unit that is padded (media
      tokens in training). If given, clips of similar lengths share a batch of all processes
      (`length_bucketing.LengthBucketedOrder`). Needs `shuffle` and `repeat`.
    process_index: of this process.
    process_count: number of processes that share the examples.
    shuffle: False keeps the order of the source.
    repeat: True repeats epochs without end; a batch may span two epochs. False ends after one
      epoch, and the last batch may be smaller.
    threads: prefetch threads, one batch each; 0 reads on demand.

  Raises:
    InputError: at once, if a process would have no example or the rule samples more frames a second
      than are stored. From the iterator, if a clip has fewer frames than the rule requires, or a
      stored record that `transform` reads is damaged.
    ValueError: `length_fn` is given without `shuffle` and `repeat`.
  """
  if length_fn is not None and not (shuffle and repeat):
    raise ValueError("length_fn needs shuffle=True and repeat=True")
  _check(source, store, frame_rule, process_count)
  dataset = grain.MapDataset.source(source)
  # Grain adds the epoch to the seed. With the seed itself, seed 1 would begin with the second epoch
  # of seed 0.
  grain_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
  if shuffle:
    dataset = dataset.shuffle(seed=grain_seed)

  def load(index: int, example: records.Example) -> Any:
    return transform(select_clip(example, store, frame_rule), index // len(source))

  own_part = slice(process_index, None, process_count)
  if repeat:
    dataset = dataset.repeat(_EPOCHS)
    if length_fn is not None:
      by_length = length_bucketing.LengthBucketedOrder(
        dataset,
        epoch=len(source),
        batch=batch_size * process_count,
        length=lambda example: length_fn(select_clip(example, store, frame_rule)),
        seed=grain_seed,
      )
      dataset = grain.MapDataset.source(by_length)
    dataset = dataset.map_with_index(load).batch(batch_size, batch_fn=collate)[own_part]
  else:
    dataset = dataset[own_part].map_with_index(load).batch(batch_size, batch_fn=collate)
  prefetch = grain.ReadOptions(
    num_threads=threads, prefetch_buffer_size=max(2, threads) if threads else 0
  )
  return iter(dataset.to_iter_dataset(prefetch))


def example_name(example: records.Example) -> str:
  """The name of an example in error messages."""
  return f"example {example.id!r} of video {example.video!r}"


def select_clip(
  example: records.Example, store: frame_store.FrameStore, rule: sampling.Rule
) -> Clip:
  """Chooses the frames that `rule` takes from the shown span, without reading them.

  Raises InputError if the span has no frame, or fewer than the rule requires.
  """
  timestamps = store.timestamps(example.video)
  indices = sampling.choose(
    timestamps, store.ends(example.video), example.shown, rule, where=example_name(example)
  )
  return Clip(
    example=example,
    store=store,
    timestamps=sampling.shown_times(timestamps, indices, example.shown),
    frame_indices=indices,
  )


def _check(
  source: examples.ExampleSource | examples.ExampleSubset,
  store: frame_store.FrameStore,
  rule: sampling.Rule,
  process_count: int,
) -> None:
  if len(source) < process_count:
    raise InputError(f"{source}: {len(source)} examples are too few for {process_count} processes")
  sampling.check_rate(rule, store.fps)
