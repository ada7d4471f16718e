import numpy as np

from vr_jax.rewards import buckets


def test_lengths_are_rounded_up_to_powers_of_four_times_the_lowest():
  np.testing.assert_array_equal(
    buckets.rung(np.array([[0, 1, 16], [17, 64, 65]]), 16), [[16, 16, 16], [64, 64, 256]]
  )


def test_every_item_is_in_one_batch_of_its_shape():
  shapes = np.array([[16, 64], [16, 16], [16, 64], [16, 64], [16, 64]])
  batches = [
    (chosen.tolist(), rows, shape) for chosen, rows, shape in buckets.batches(shapes, (1, 3))
  ]
  assert batches == [([1], 1, (16, 16)), ([0, 2, 3], 3, (16, 64)), ([4], 1, (16, 64))]


def test_no_items_are_no_batch():
  assert list(buckets.batches(np.zeros((0, 2), np.int64), (1, 3))) == []
