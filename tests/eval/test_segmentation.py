import itertools

from hypothesis import given, strategies
from hypothesis.extra import numpy as arrays
import numpy as np
import pytest

from benchmarks import segmentation_metrics as plain
from vr_jax.errors import InputError
from vr_jax.eval import segmentation


def blob(height, width, seed, share=0.1):
  """A random smooth mask; some are empty, some fill the picture, some touch its edges."""
  rng = np.random.default_rng(seed)
  coarse = rng.random((3 + height // 12, 3 + width // 12))
  rows = np.linspace(0, coarse.shape[0] - 1.001, height)
  columns = np.linspace(0, coarse.shape[1] - 1.001, width)
  y, x = rows.astype(int), columns.astype(int)
  down, across = (rows - y)[:, None], (columns - x)[None]
  upper = coarse[y][:, x] * (1 - across) + coarse[y][:, x + 1] * across
  lower = coarse[y + 1][:, x] * (1 - across) + coarse[y + 1][:, x + 1] * across
  return upper * (1 - down) + lower * down < share


SIZES = [(1, 1), (1, 9), (7, 1), (2, 2), (13, 31), (101, 67), (480, 854), (300, 411)]


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_j_and_f_are_those_of_the_formula_to_the_last_digit(height, width):
  shares = (0, 0.2, 0.35, 0.5, 0.8, 1.1)
  masks = [blob(height, width, seed, share) for seed, share in enumerate(shares)]
  pairs = [*itertools.product(masks, repeat=2)][:: 1 if height < 200 else 7]
  prediction, truth = (np.stack(side) for side in zip(*pairs, strict=True))
  void = np.stack([blob(height, width, 50 + k, 0.3) for k in range(len(pairs))])
  np.testing.assert_array_equal(plain.ours(prediction, truth), plain.reference(prediction, truth))
  j, f = (
    [metric(*triple) for triple in zip(prediction, truth, void, strict=True)]
    for metric in (plain.reference_j, plain.reference_f)
  )
  np.testing.assert_array_equal(segmentation.region_similarity(prediction, truth, void), j)
  np.testing.assert_array_equal(segmentation.boundary_f(prediction, truth, void), f)


pictures = strategies.tuples(
  strategies.integers(1, 3), strategies.integers(1, 24), strategies.integers(1, 24)
).flatmap(lambda shape: strategies.tuples(arrays.arrays(bool, shape), arrays.arrays(bool, shape)))


@given(pictures)
def test_any_masks_score_as_by_the_formula(pair):
  np.testing.assert_array_equal(plain.ours(*pair), plain.reference(*pair))


@given(pictures)
def test_a_mask_is_like_itself_and_sides_can_be_exchanged(pair):
  prediction, truth = pair
  assert segmentation.j_and_f(truth, truth) == segmentation.MaskScore(j=1.0, f=1.0)
  there = segmentation.j_and_f(prediction, truth)
  back = segmentation.j_and_f(truth, prediction)
  assert there.j == back.j
  assert there.f == pytest.approx(back.f)
  assert 0 <= there.j_and_f <= 1


def square(top, left, side=10, size=100):
  mask = np.zeros((1, size, size), bool)
  mask[:, top : top + side, left : left + side] = True
  return mask


def test_cases_by_hand():
  empty, whole = np.zeros((1, 100, 100), bool), np.ones((1, 100, 100), bool)
  one, moved, far = square(20, 20), square(20, 25), square(70, 70)
  assert segmentation.region_similarity(moved, one) == [50 / 150]
  # The radius is ceil(0.008 * 141.4) = 2, so sides that moved by 5 don't meet.
  assert segmentation.boundary_radius(100, 100) == 2
  assert segmentation.boundary_radius(480, 854) == 8
  assert 0 < segmentation.boundary_f(moved, one)[0] < 1
  assert segmentation.boundary_f(square(21, 21), one) == [1.0]
  assert segmentation.boundary_f(moved, one, tolerance=5.0) == [1.0]
  for prediction, truth, j, f in (
    (empty, empty, 1, 1),
    (one, empty, 0, 0),
    (empty, one, 0, 0),
    (far, one, 0, 0),
    (whole, whole, 1, 1),  # no boundary on either side
    (whole, empty, 0, 1),
    (one, whole, 0.01, 0),
  ):
    score = segmentation.j_and_f(prediction, truth)
    assert (score.j, score.f) == (j, f)


def test_pixels_that_are_void_count_for_nothing():
  one, moved = square(20, 20), square(20, 25)
  everything = np.ones_like(one)
  score = segmentation.j_and_f(moved, one, everything)
  assert (score.j, score.f) == (1, 1)
  assert segmentation.region_similarity(moved, one, moved & ~one) == [0.5]


@pytest.mark.parametrize("shape", [(1, 50, 100), (2, 100, 100)])
def test_masks_of_another_size_are_named(shape):
  one, other = square(0, 0), np.zeros(shape, bool)
  for pair in ((one, other), (other, one), (one, one, other)):
    with pytest.raises(InputError, match=r"have to be alike .*\(1, 100, 100\)"):
      segmentation.j_and_f(*pair)
  with pytest.raises(InputError, match="no frames"):
    segmentation.j_and_f(one[:0], one[:0])


def test_statistics_are_those_of_davis():
  scores = np.concatenate([np.full(5, 0.9), np.full(10, 0.5), np.full(5, 0.2)])
  found = segmentation.statistics(scores)
  assert found.mean == pytest.approx(0.525)
  assert found.recall == 0.25
  assert found.decay == pytest.approx(np.mean(scores[:6]) - np.mean(scores[14:]))
  # A video of more frames than a byte counts.
  rising = segmentation.statistics(np.linspace(0, 1, 400))
  assert rising.decay == pytest.approx(-0.75, abs=0.01)
  assert segmentation.statistics(np.array([0.7])).decay == 0


def test_proposals_are_matched_with_objects_in_the_best_way():
  truths = np.stack([square(10, 10), square(50, 50), square(80, 10)])
  proposals = np.stack([square(51, 50), square(10, 11), square(0, 90)])
  scores = segmentation.unsupervised_scores(proposals, truths)
  assert scores[0] == segmentation.j_and_f(proposals[1], truths[0])
  assert scores[1] == segmentation.j_and_f(proposals[0], truths[1])
  assert scores[2].j == 0
  # An object that no proposal is left for is compared with an empty mask.
  empty = segmentation.j_and_f(np.zeros_like(truths[2]), truths[2])
  assert segmentation.unsupervised_scores(proposals[:2], truths) == [*scores[:2], empty]
  assert segmentation.unsupervised_scores(proposals[:0], truths[:1])[0].j == 0
  # More proposals than objects: the others cost nothing.
  assert segmentation.unsupervised_scores(proposals, truths[:1]) == scores[:1]
  with pytest.raises(InputError, match="21 proposals"):
    segmentation.unsupervised_scores(np.stack([square(0, 0)] * 21), truths)


def test_where_masks_of_objects_overlap_the_first_wins():
  scores = np.array([[0.0, 1.0, 1.0, 0.4], [0.0, 0.0, 1.0, 0.45], [0.05, 0.6, 0.6, 0.9]])
  labels = segmentation.merge_objects(scores[:, None, None])
  assert labels.tolist() == [[[0, 1, 1, 3]]]
  assert labels.dtype == np.uint8


def test_iou_over_images_of_any_size():
  small, large = np.eye(2, dtype=bool), np.ones((4, 4), bool)
  nothing = np.zeros((3, 3), bool)
  giou, ciou = segmentation.iou_over_images([small, large, nothing], [~small, large, nothing])
  assert giou == pytest.approx(2 / 3)
  assert ciou == 16 / 20
  assert segmentation.iou_over_images([nothing], [nothing]) == (1.0, 1.0)
  with pytest.raises(InputError, match="no images"):
    segmentation.iou_over_images([], [])


def test_robustness_counts_wrong_pixels_once_and_visa_by_their_value():
  truth, foreground = square(0, 0), square(0, 0) | square(50, 50, side=20)
  prediction = square(0, 0) | square(30, 30, side=5)
  assert segmentation.robustness(prediction, truth, foreground) == pytest.approx(1 - 25 / 500)
  instances = truth.astype(np.uint8)
  for value, wrong in ((1, 25), (2, 50), (255, 6375)):
    r, a = segmentation.visa_compatible(prediction, instances, foreground, pixel_value=value)
    assert r == pytest.approx(max(1 - wrong / 500, 0))
    agreed = 1 - 25 / 10000 - (0 if value == 1 else 100 / 10000)
    assert a == pytest.approx(agreed)
  # Where two instances overlap, 1 - 2 is 255 in bytes, and 255 * 255 is 1.
  twice = instances.copy()
  twice[0, 0, :4] = 2
  for value, each in ((1, 255), (255, 1), (2, 254)):
    r, _ = segmentation.visa_compatible(truth, twice, foreground, pixel_value=value)
    assert r == pytest.approx(max(1 - 4 * each / 500, 0))
  none = np.zeros_like(truth)
  assert segmentation.robustness(none, none, none) == [1.0]
  assert segmentation.robustness(prediction, truth, none) == [0.0]


def test_revos_rounds_before_it_averages_and_means_are_of_each_group():
  assert segmentation.revos_percent(np.array([1 / 3, 1 / 3])) == 33.33
  assert segmentation.group_means([10.0, 20.0, 60.0], [0, 0, 1]) == {0: 15.0, 1: 60.0}
