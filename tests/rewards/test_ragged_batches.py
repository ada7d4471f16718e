import numpy as np
import pytest

from vr_jax.rewards import ragged_batches


def test_lengths_are_rounded_up_to_powers_of_four_times_the_lowest():
  np.testing.assert_array_equal(
    ragged_batches.bucket_size(np.array([[0, 1, 16], [17, 64, 65]]), 16),
    [[16, 16, 16], [64, 64, 256]],
  )


def test_every_item_is_in_one_batch_of_its_shape():
  shapes = np.array([[16, 64], [16, 16], [16, 64], [16, 64], [16, 64]])
  batches = [
    (chosen.tolist(), rows, shape)
    for chosen, rows, shape in ragged_batches.group_by_shape(shapes, (1, 3))
  ]
  assert batches == [([1], 1, (16, 16)), ([0, 2, 3], 3, (16, 64)), ([4], 1, (16, 64))]


@pytest.mark.parametrize(
  ("items", "sizes"),
  [
    (1, [4]),
    (4, [4]),
    (5, [4, 4]),
    (8, [32]),
    (40, [32, 32]),
    (60, [32, 32]),
    (64, [256]),
    (300, [256, 32, 32]),
    (128, [256]),
  ],
)
def test_a_batch_has_at_most_four_places_an_item_or_the_fewest_there_are(items, sizes):
  batches = list(ragged_batches.group_by_shape(np.full((items, 1), 16), (4, 32, 256)))
  assert [rows for _, rows, _ in batches] == sizes
  np.testing.assert_array_equal(np.concatenate([chosen for chosen, _, _ in batches]), range(items))


def test_chosen_rows_are_padded_to_a_shape_and_may_repeat():
  rows = ragged_batches.RaggedRows([[3, 1], [], np.array([7], np.int32)])
  expected = [[7, -1, -1], [3, 1, -1], [-1, -1, -1], [7, -1, -1], [-1, -1, -1]]
  np.testing.assert_array_equal(rows.pad(np.array([2, 0, 1, 2]), 3, 5), expected)
  assert ragged_batches.RaggedRows([]).pad(np.zeros(0, np.int64), 2, 1).tolist() == [[-1, -1]]


def test_no_items_are_no_batch():
  assert list(ragged_batches.group_by_shape(np.zeros((0, 2), np.int64), (1, 3))) == []
