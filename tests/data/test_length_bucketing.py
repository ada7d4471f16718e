"""Length bucketing: similar lengths share a batch, nothing is lost, and the order stays random."""

import itertools

import grain
import numpy as np
import pytest

from vr_jax.data import length_bucketing

EPOCHS = 5


def random_epochs(epoch, *, seed=0):
  """(epoch, element) of several epochs, each in its own random order."""
  rng = np.random.default_rng(seed)
  return [(number, int(element)) for number in range(EPOCHS) for element in rng.permutation(epoch)]


def ordered(elements, epoch, batch, *, length=lambda element: element[1], seed=0):
  stream = grain.MapDataset.source(elements)
  return length_bucketing.LengthBucketedOrder(
    stream, epoch=epoch, batch=batch, length=length, seed=seed
  )


def whole(*arguments, **options):
  """All elements, by index: iteration would not stop, since Grain's streams start again."""
  result = ordered(*arguments, **options)
  return [result[index] for index in range(len(result))]


def batches(result, batch):
  return [result[start : start + batch] for start in range(0, len(result), batch)]


@pytest.mark.parametrize(("epoch", "batch"), [(100, 4), (100, 7), (18, 6), (5, 4), (3, 8), (64, 8)])
def test_every_epoch_still_holds_each_element_once(epoch, batch):
  elements = random_epochs(epoch)
  result = whole(elements, epoch, batch)
  for number in range(EPOCHS):
    part = result[number * epoch : (number + 1) * epoch]
    assert sorted(part) == [(number, element) for element in range(epoch)]


def test_a_window_holds_what_it_held_and_its_batches_hardly_overlap_in_length():
  elements, batch = random_epochs(200), 5
  window = batch * length_bucketing.BATCHES
  result = whole(elements, 200, batch)[:window]
  assert sorted(result) == sorted(elements[:window])
  spans = sorted((min(batch_)[1], max(batch_)[1]) for batch_ in batches(result, batch))
  assert all(last < first for (_, last), (first, _) in itertools.pairwise(spans))


def test_batches_of_a_window_and_their_rows_stand_in_an_order_of_the_seed():
  elements, batch = random_epochs(200), 5
  by_seed = [batches(whole(elements, 200, batch, seed=seed)[:40], batch) for seed in range(20)]
  shortest = [result.index(min(result, key=min)) for result in by_seed]
  longest_row = [result[0].index(max(result[0])) for result in by_seed]
  assert len(set(shortest)) > 3
  assert len(set(longest_row)) > 3
  assert batches(whole(elements, 200, batch, seed=3)[:40], batch) == by_seed[3]


def test_what_stands_at_an_index_does_not_hang_on_what_was_read_before():
  elements = random_epochs(50)
  expected = whole(elements, 50, 3)
  for index in reversed(range(len(elements))):
    assert ordered(elements, 50, 3)[index] == expected[index]


def test_elements_of_one_length_stay_where_they_are():
  elements = random_epochs(50)
  assert whole(elements, 50, 4, length=lambda element: 7) == elements


def test_a_batch_of_two_epochs_stays_as_it_is():
  elements, result = random_epochs(10), whole(random_epochs(10), 10, 4)
  assert result[8:12] == elements[8:12]
  assert result != elements
