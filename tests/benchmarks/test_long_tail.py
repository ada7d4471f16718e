"""The simulation of decoding on lengths whose steps can be counted by hand."""

import numpy as np

from benchmarks import long_tail


def test_equal_replies_take_turns_in_the_slots():
  lengths = np.full((4, 2), 5)
  found = long_tail.refill(lengths, 4)
  assert found.steps == {4: 10}
  assert long_tail.waves(lengths, 4) == {4: 10}
  assert long_tail.shrink(lengths) == {8: 5}


def test_a_freed_slot_gets_the_next_prompts_reply():
  lengths = np.array([[10, 2], [3, 5]])
  # By hand: 2 steps, then replies of 3 and 5 tokens beside the other 8 of the first.
  assert long_tail.refill(lengths, 2, fractions=()).steps == {2: 10}
  assert sum(long_tail.waves(lengths, 2).values()) == 15


def test_the_end_of_a_step_begins_the_next_ones_replies():
  lengths, following = np.array([[10], [2]]), np.array([[4], [40]])
  # By hand: 2 steps, 4 beside the first reply, and a chunk of 32, in which that reply ends.
  found = long_tail.refill(lengths, 2, following=following, fractions=())
  assert (found.steps, found.prefilled) == ({2: 38}, 4)
  np.testing.assert_array_equal(found.written, [[4], [32]])
  after = long_tail.refill(following, 2, written=found.written)
  assert (after.steps, after.prefilled) == ({1: 8}, 1)


def test_step_seconds_between_two_sizes_are_interpolated():
  cost = long_tail.read_step_seconds("128:4.0,32:1.0")
  assert [cost(32), cost(80), cost(128)] == [1.0, 2.5, 4.0]


def test_the_goal_is_that_of_the_best_arm_that_is_built():
  arms = {"shrink": 1.0, "waves_32": 2.0, "bound_64": 3.0, "refill_32": 1.2}
  assert long_tail.is_met({**arms, "carried_64": 1.5})
  assert not long_tail.is_met({**arms, "carried_64": 1.4})
