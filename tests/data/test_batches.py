import itertools
import json
import zlib

import numpy as np
import pytest

from vr_jax import records
from vr_jax.data import batches, examples, frame_store, ingest, sampling
from vr_jax.errors import InputError

EIGHT = sampling.UniformRule(frames=8)


@pytest.fixture
def train(ingested):
  return ingest.open_split(ingested.output, "train")


def identity(clip, epoch):
  return clip.example.id


def iterate(split, **arguments):
  source, store = split
  defaults = {"seed": 0, "batch_size": 5, "frame_rule": EIGHT, "transform": identity}
  return batches.batches(source, store, **defaults | arguments)


def ragged(clip, epoch=0):
  """A length that few clips share."""
  return zlib.crc32(clip.example.id.encode()) % 7


def take(iterator, count):
  return [next(iterator) for _ in range(count)]


def test_a_batch_is_a_list_of_transformed_clips_with_frames_and_their_times(train):
  source, store = train
  iterator = iterate(train, transform=lambda clip, epoch: clip, shuffle=False)
  (batch,) = take(iterator, 1)
  assert [clip.example for clip in batch] == [source[index] for index in range(5)]
  for clip in batch:
    assert clip.frames.shape == (8, 64, 64, 3)
    np.testing.assert_array_equal(clip.frames, store.read(clip.example.video, range(8)))
    np.testing.assert_array_equal(clip.timestamps, np.arange(8.0))
    np.testing.assert_array_equal(clip.frame_indices, np.arange(8))


@pytest.mark.parametrize("length", [None, ragged])
@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("done", [0, 1, 4, 5, 11])
def test_an_iterator_given_the_state_of_another_goes_on_exactly_there(train, done, threads, length):
  first = iterate(train, threads=threads, length_fn=length)
  take(first, done)
  state = json.loads(json.dumps(first.get_state()))
  expected = take(first, 12)
  second = iterate(train, threads=2, length_fn=length)
  take(second, 3)  # a state must not depend on what the iterator did before
  second.set_state(state)
  assert take(second, 12) == expected


def test_an_evaluation_goes_on_exactly_where_it_stopped_too(train):
  first = iterate(train, repeat=False)
  take(first, 3)
  second = iterate(train, repeat=False)
  second.set_state(first.get_state())
  assert list(second) == list(first)


@pytest.mark.parametrize("length", [None, ragged])
def test_the_number_of_threads_changes_nothing(train, length):
  expected = take(iterate(train, threads=0, length_fn=length), 9)
  assert take(iterate(train, threads=4, length_fn=length), 9) == expected


def test_every_epoch_holds_each_example_once_in_an_order_of_its_own(train):
  source, _ = train
  everything = sorted(example.id for example in source)
  epochs = take(iterate(train, batch_size=len(source)), 3)
  assert all(sorted(epoch) == everything for epoch in epochs)
  assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
  assert take(iterate(train, batch_size=len(source)), 3) == epochs
  other_epochs = take(iterate(train, batch_size=len(source), seed=1), 3)
  assert not any(epoch in epochs for epoch in other_epochs)


def test_batches_of_one_example_follow_each_other_as_in_larger_ones(train):
  alone = [name for (name,) in take(iterate(train, batch_size=1), 10)]
  assert alone == [name for batch in take(iterate(train, batch_size=5), 2) for name in batch]


@pytest.mark.parametrize("process_count", [2, 3, 5, 24])
@pytest.mark.parametrize("shuffle", [True, False])
def test_processes_share_each_epoch_without_overlap_or_gap(train, process_count, shuffle):
  source, _ = train
  shares = [
    [
      name
      for batch in iterate(
        train, process_index=index, process_count=process_count, repeat=False, shuffle=shuffle
      )
      for name in batch
    ]
    for index in range(process_count)
  ]
  together = [name for share in shares for name in share]
  assert sorted(together) == sorted(example.id for example in source)
  assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("length", [None, ragged])
@pytest.mark.parametrize("process_count", [2, 3])
def test_processes_read_together_what_one_would_read_alone(train, process_count, length):
  reads = [
    iterate(train, batch_size=4, process_index=index, process_count=process_count, length_fn=length)
    for index in range(process_count)
  ]
  together = zip(*(take(read, 11) for read in reads), strict=True)
  alone = take(iterate(train, batch_size=4 * process_count, length_fn=length), 11)
  assert [list(itertools.chain(*rows)) for rows in together] == alone


@pytest.mark.parametrize("arguments", [{}, {"length_fn": ragged}, {"shuffle": False}])
def test_a_transform_is_told_the_epoch(train, arguments):
  """24 examples in batches of 2 of 3 processes: an epoch has 4 batches of each process."""
  for process in range(3):
    numbers = {"process_index": process, "process_count": 3, "batch_size": 2}
    read = iterate(train, transform=lambda clip, epoch: epoch, **numbers, **arguments)
    assert take(read, 12) == [[epoch] * 2 for epoch in range(3) for _ in range(4)]
  for batch in iterate(train, transform=lambda clip, epoch: epoch, repeat=False):
    assert set(batch) == {0}


def test_clips_of_about_one_length_share_a_batch_where_lengths_are_given(train):
  padded = {}
  for length in (None, ragged):
    read = iterate(train, batch_size=4, length_fn=length, transform=ragged)
    padded[length] = sum(max(batch) for batch in take(read, 24))
  assert padded[ragged] < 0.9 * padded[None]
  as_drawn = iterate(train, length_fn=lambda clip: len(clip))
  assert take(as_drawn, 12) == take(iterate(train), 12)


def test_an_evaluation_ends_with_a_smaller_batch(train):
  sizes = [len(batch) for batch in iterate(train, repeat=False, shuffle=False)]
  assert sizes == [5, 5, 5, 5, 4]


def test_a_clip_shorter_than_required_is_an_error_that_names_the_example(train):
  with pytest.raises(InputError, match=r"example '.*' of video '.*': 0 to 8 s .* holds 8 stored"):
    next(iterate(train, frame_rule=sampling.UniformRule(frames=10, required=10)))


@pytest.mark.parametrize("without", ["shuffle", "repeat"])
def test_lengths_need_shuffled_epochs_without_end(train, without):
  with pytest.raises(ValueError, match="length_fn needs"):
    iterate(train, length_fn=ragged, **{without: False})


def test_a_rate_above_the_stored_one_is_an_error_at_once(train):
  with pytest.raises(InputError, match="2 frames a second are more than the 1 stored"):
    iterate(train, frame_rule=sampling.RateRule(fps=2.0))


def test_more_processes_than_examples_are_an_error_at_once(train):
  with pytest.raises(InputError, match="24 examples are too few for 25 processes"):
    iterate(train, process_count=25)


def test_an_empty_split_is_an_error_at_once(train, tmp_path):
  examples.write(tmp_path, {"train": []})
  with pytest.raises(InputError, match=r"\(train\).*: 0 examples are too few"):
    iterate((examples.ExampleSource(tmp_path, "train"), train[1]))


def test_an_example_whose_video_is_not_stored_is_an_error(train, tmp_path):
  shown = records.Span(start=0.0, end=8.0)
  stray = records.Example(
    id="x", video="x.mp4", question="?", answer="1", problem_type="numerical", shown=shown
  )
  examples.write(tmp_path, {"train": [stray]})
  with pytest.raises(InputError, match=r"no video 'x\.mp4'"):
    next(iterate((examples.ExampleSource(tmp_path, "train"), train[1])))


def test_a_damaged_shard_stops_the_batches(ingested, tmp_path):
  for path in (ingested.output / "frames").iterdir():
    content = b"" if path.suffix == ".array_record" else path.read_bytes()
    (tmp_path / path.name).write_bytes(content)
  source = examples.ExampleSource(ingested.output, "train")
  split = (source, frame_store.FrameStore(tmp_path))
  with pytest.raises(InputError, match=r"frames-.*\.array_record: record .* is damaged"):
    next(iterate(split, transform=lambda clip, epoch: clip.frames))
  assert next(iterate(split, transform=lambda clip, epoch: clip.shape)) == [(8, 64, 64)] * 5
