"""Rewards of key frames and boxes: cases by hand, and the paper's formulas in plain NumPy."""

import hypothesis
from hypothesis import strategies as st
import numpy as np
import pytest

from vr_jax.rewards import boxes

GONE = (np.nan,) * 4
SMALL, MIDDLE, LARGE = (0, 0, 10, 10), (5, 5, 25, 15), (10, 10, 40, 20)  # areas 100, 200, 300
FAR = (50, 50, 60, 60)
RULE = boxes.BoxRule()
VISIBLE, NONE = boxes.BoxRule(temporal_kind="visible"), boxes.BoxRule(temporal_kind="none")
SOFT = boxes.BoxRule(spatial_kind="soft")


def episodes(truth, *replies, padding=0):
  """One prompt, and for each of its replies (key frame or None, box or None)."""
  count = len(truth)
  chosen, given = zip(*replies, strict=True)
  return boxes.GroundedEpisodes(
    checks=np.array([[[0.5, 0.5 * (box is not None)] for box in given]], np.float32),
    key_frame=np.array([[-1 if k is None else k for k in chosen]], np.int32),
    has_key_frame=np.array([[k is not None for k in chosen]]),
    box=np.array([[(0, 0, 0, 0) if box is None else box for box in given]], np.float32),
    has_box=np.array([[box is not None for box in given]]),
    truth=np.array([[*truth, *[GONE] * padding]], np.float32),
    shown=np.arange(count + padding)[None] < count,
  )


def temporal(truth, *frames, rule=RULE, padding=0):
  found = boxes.rewards(episodes(truth, *[(k, None) for k in frames], padding=padding), rule)
  return np.asarray(found.temporal[0]).tolist()


@pytest.mark.parametrize(
  ("truth", "expected"),
  [
    ([SMALL, MIDDLE, LARGE], [0, 0.5, 1]),
    ([SMALL, GONE, LARGE], [1 / 3, 0, 1]),  # where it is not visible, the area is 0
    ([SMALL, SMALL, SMALL], [1, 1, 1]),  # all as large
    ([SMALL, GONE, SMALL], [1, 0, 1]),
    ([GONE, GONE, GONE], [0, 0, 0]),  # never visible
  ],
)
@pytest.mark.parametrize("padding", [0, 2])
def test_a_key_frame_earns_more_the_larger_the_box_in_it(truth, expected, padding):
  np.testing.assert_allclose(temporal(truth, 0, 1, 2, padding=padding), expected, rtol=1e-6)


def test_without_a_key_frame_nothing_is_earned_for_it_and_nothing_for_a_box():
  found = boxes.rewards(episodes([LARGE], (None, LARGE), (0, LARGE), (0, None)), RULE)
  assert np.asarray(found.temporal[0]).tolist() == [0, 1, 1]
  assert np.asarray(found.spatial[0]).tolist() == [0, 1, 0]
  assert np.asarray(found.format[0]).tolist() == [[0.5, 0.5], [0.5, 0.5], [0.5, 0]]


def test_ablations_reward_visibility_alone_or_nothing():
  truth = [SMALL, GONE, LARGE]
  assert temporal(truth, 0, 1, 2, rule=VISIBLE) == [1, 0, 1]
  assert temporal(truth, 0, 1, 2, rule=NONE) == [0, 0, 0]


def test_a_box_is_compared_with_the_true_one_of_its_key_frame():
  half = (10, 10, 40, 15)  # IoU exactly 0.5, which does not exceed it
  more = (10, 10, 40, 16)
  replies = [(1, LARGE), (1, more), (1, half), (1, FAR), (0, LARGE), (2, LARGE)]
  batch = episodes([SMALL, LARGE, GONE], *replies)
  assert np.asarray(boxes.rewards(batch, RULE).spatial[0]).tolist() == [1, 1, 0, 0, 0, 0]
  soft = boxes.rewards(batch, SOFT)
  np.testing.assert_allclose(soft.spatial[0], [1, 0.6, 0.5, 0, 0, 0], rtol=1e-6)
  np.testing.assert_array_equal(soft.spatial, soft.iou)
  assert np.asarray(soft.visible[0]).tolist() == [True] * 5 + [False]


def test_each_prompt_has_its_own_truth():
  one, other = episodes([SMALL, LARGE], (0, SMALL)), episodes([LARGE, SMALL], (0, SMALL))
  names = one.__dataclass_fields__
  both = {name: np.concatenate([getattr(one, name), getattr(other, name)]) for name in names}
  found = boxes.rewards(boxes.GroundedEpisodes(**both), RULE)
  assert np.asarray(found.temporal[:, 0]).tolist() == [0, 1]
  assert np.asarray(found.spatial[:, 0]).tolist() == [1, 0]


def plain_area(box):
  return 0.0 if np.isnan(box).any() else max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def plain_iou(one, other):
  corners = [
    max(one[0], other[0]),
    max(one[1], other[1]),
    min(one[2], other[2]),
    min(one[3], other[3]),
  ]
  if np.isnan(other).any() or corners[0] >= corners[2] or corners[1] >= corners[3]:
    return 0.0
  shared = plain_area(corners)
  return shared / (plain_area(one) + plain_area(other) - shared)


def plain_rewards(truth, key_frame, box, kind):
  """Equations 7 and 8 of the paper, and its table 5, for one episode, in float64."""
  if key_frame is None:
    return 0.0, 0.0
  areas = [plain_area(each) for each in truth]
  low, high = min(areas), max(areas)
  soft = (areas[key_frame] - low) / (high - low) if high > low else 1.0
  spatial = 0.0 if box is None else plain_iou(box, truth[key_frame])
  temporal = {"soft": soft, "visible": 1.0, "none": 0.0}[kind]
  return temporal if areas[key_frame] > 0 else 0.0, spatial


coordinate = st.integers(0, 60)
box_of = st.tuples(coordinate, coordinate, st.integers(1, 40), st.integers(1, 40)).map(
  lambda x: (x[0], x[1], x[0] + x[2], x[1] + x[3])
)
FRAMES, REPLIES = 4, 3  # one shape: it is compiled once


@hypothesis.given(
  truth=st.lists(st.one_of(st.just(GONE), box_of), min_size=1, max_size=FRAMES),
  frames=st.lists(st.one_of(st.none(), st.integers(0, FRAMES - 1)), min_size=3, max_size=REPLIES),
  given_boxes=st.lists(st.one_of(st.none(), box_of), min_size=3, max_size=REPLIES),
  rule=st.sampled_from([RULE, VISIBLE, NONE]),
)
def test_rewards_are_those_of_the_formulas(truth, frames, given_boxes, rule):
  frames = [None if k is None else k % len(truth) for k in frames]
  replies = list(zip(frames, given_boxes, strict=True))
  batch = episodes(truth, *replies, padding=FRAMES - len(truth))
  found, soft = boxes.rewards(batch, rule), boxes.rewards(batch, SOFT)
  expected = [
    plain_rewards(np.array(truth, float), k, box, rule.temporal_kind) for k, box in replies
  ]
  np.testing.assert_array_equal(found.format, batch.checks)
  np.testing.assert_allclose(found.temporal[0], [each[0] for each in expected], atol=1e-6)
  np.testing.assert_allclose(soft.spatial[0], [each[1] for each in expected], atol=1e-6)
  hard = [float(np.float32(each[1]) > 0.5) for each in expected]
  assert np.asarray(found.spatial[0]).tolist() == hard
