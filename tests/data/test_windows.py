"""The order of a stream in windows: elements of about one length together, nothing lost, and as random as before otherwise."""

import itertools

import grain
import numpy as np
import pytest

from vr_jax.data import windows

EPOCHS = 5


def drawn(epoch, *, seed=0):
  """(number of the epoch, element) of some epochs, each in an order of its own."""
  rng = np.random.default_rng(seed)
  return [(number, int(one)) for number in range(EPOCHS) for one in rng.permutation(epoch)]


def ordered(elements, epoch, batch, *, length=lambda element: element[1], seed=0):
  stream = grain.MapDataset.source(elements)
  return windows.ByLength(stream, epoch=epoch, batch=batch, length=length, seed=seed)


def whole(*arguments, **options):
  """All of it: Grain's streams go on from their start."""
  found = ordered(*arguments, **options)
  return [found[index] for index in range(len(found))]


def batches(found, batch):
  return [found[start : start + batch] for start in range(0, len(found), batch)]


@pytest.mark.parametrize(("epoch", "batch"), [(100, 4), (100, 7), (18, 6), (5, 4), (3, 8), (64, 8)])
def test_every_epoch_still_holds_each_element_once(epoch, batch):
  elements = drawn(epoch)
  found = whole(elements, epoch, batch)
  for number in range(EPOCHS):
    part = found[number * epoch : (number + 1) * epoch]
    assert sorted(part) == [(number, one) for one in range(epoch)]


def test_a_window_holds_what_it_held_and_its_batches_hardly_overlap_in_length():
  elements, batch = drawn(200), 5
  window = batch * windows.BATCHES
  found = whole(elements, 200, batch)[:window]
  assert sorted(found) == sorted(elements[:window])
  spans = sorted((min(one)[1], max(one)[1]) for one in batches(found, batch))
  assert all(last < first for (_, last), (first, _) in itertools.pairwise(spans))


def test_batches_of_a_window_and_their_rows_stand_in_an_order_of_the_seed():
  elements, batch = drawn(200), 5
  by_seed = [batches(whole(elements, 200, batch, seed=seed)[:40], batch) for seed in range(20)]
  shortest = [found.index(min(found, key=min)) for found in by_seed]
  longest_row = [found[0].index(max(found[0])) for found in by_seed]
  assert len(set(shortest)) > 3
  assert len(set(longest_row)) > 3
  assert batches(whole(elements, 200, batch, seed=3)[:40], batch) == by_seed[3]


def test_what_stands_at_an_index_does_not_hang_on_what_was_read_before():
  elements = drawn(50)
  expected = whole(elements, 50, 3)
  for index in reversed(range(len(elements))):
    assert ordered(elements, 50, 3)[index] == expected[index]


def test_elements_of_one_length_stay_where_they_are():
  elements = drawn(50)
  assert whole(elements, 50, 4, length=lambda element: 7) == elements


def test_a_batch_of_two_epochs_stays_as_it_is():
  elements, found = drawn(10), whole(drawn(10), 10, 4)
  assert found[8:12] == elements[8:12]
  assert found != elements
