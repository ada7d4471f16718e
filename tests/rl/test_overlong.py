"""DAPO's penalty of length, in tokens: the formula, and whose reward it is."""

import ml_collections
import numpy as np
import pytest

from vr_jax import records
from vr_jax.rl import overlong


def section(**changes):
  fields = {
    "overlong_buffer": 4,
    "overlong_max_tokens": 0,
    "overlong_weight": 0.5,
    "max_new_tokens": 10,
  }
  return ml_collections.ConfigDict({**fields, **changes})


def scores(segments):
  total = np.arange(4 * segments, dtype=np.float32).reshape(1, 4, segments)
  return records.Scores(rewards={"accuracy": total}, scored=np.ones(total.shape, bool), total=total)


def segment_of(*replies):
  """The segment of each token, [1, replies, 12], from the lengths of each reply's segments."""
  found = np.full((1, len(replies), 12), -1, np.int32)
  for row, counts in enumerate(replies):
    tokens = np.repeat(np.arange(len(counts)), counts)
    found[0, row, : len(tokens)] = tokens
  return found


@pytest.mark.parametrize(
  ("tokens", "expected"),
  [(0, 0), (5, 0), (6, 0), (7, -0.25), (9, -0.75), (10, -1), (11, -1), (999, -1)],
)
def test_the_penalty_is_that_of_the_equation(tokens, expected):
  penalty = overlong.overlong_penalty(np.array([tokens]), max_tokens=10, buffer=4)
  np.testing.assert_array_equal(penalty, np.array([expected], np.float32))
  assert penalty.dtype == np.float32


def test_the_penalty_is_a_reward_of_its_own_and_its_weighted_value_is_in_the_total():
  before = scores(1)
  found = overlong.add_overlong_penalty(
    before, segment_of([6], [7], [10], [0]), section(), multi_turn=False
  )
  np.testing.assert_array_equal(found.rewards["overlong"][0, :, 0], [0, -0.25, -1, 0])
  np.testing.assert_allclose(found.total[0, :, 0], [0, 1 - 0.125, 2 - 0.5, 3])
  assert found.total.dtype == np.float32
  np.testing.assert_array_equal(found.rewards["accuracy"], before.total)
  np.testing.assert_array_equal(found.scored, before.scored)
  assert "overlong" not in before.rewards


def test_of_a_reply_in_segments_the_whole_length_counts_and_the_last_pays():
  replies = segment_of([4, 0, 4], [1, 1, 8], [9, 0, 0], [2, 2, 2])
  found = overlong.add_overlong_penalty(scores(3), replies, section(), multi_turn=False)
  np.testing.assert_array_equal(found.rewards["overlong"][0, :, :2], 0)
  np.testing.assert_array_equal(found.rewards["overlong"][0, :, 2], [-0.5, -1, -0.75, 0])


def test_of_several_turns_each_pays_for_its_own_length():
  replies = segment_of([4, 8], [8, 4], [6, 6], [9, 0])
  found = overlong.add_overlong_penalty(scores(2), replies, section(), multi_turn=True)
  np.testing.assert_array_equal(
    found.rewards["overlong"][0], [[0, -0.5], [-0.5, 0], [0, 0], [-0.75, 0]]
  )


def test_a_shorter_reply_may_be_wanted_than_is_allowed():
  replies = segment_of([4], [5], [8], [9])
  found = overlong.add_overlong_penalty(
    scores(1), replies, section(overlong_max_tokens=8), multi_turn=False
  )
  np.testing.assert_array_equal(found.rewards["overlong"][0, :, 0], [0, -0.25, -1, -1])


def test_without_a_buffer_scores_are_the_same_object():
  before = scores(2)
  replies = segment_of([4, 8], [8, 4], [6, 6], [9, 0])
  assert (
    overlong.add_overlong_penalty(before, replies, section(overlong_buffer=0), multi_turn=False)
    is before
  )
