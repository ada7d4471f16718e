"""The simulation of decoding on lengths whose steps can be counted by hand."""

import numpy as np

from benchmarks import long_tail


def test_equal_replies_take_turns_in_the_slots():
  lengths = np.full((4, 2), 5)
  assert long_tail.refill(lengths, 4) == {4: 10}
  assert long_tail.waves(lengths, 4) == {4: 10}
  assert long_tail.shrink(lengths) == {8: 5}


def test_a_freed_slot_gets_the_next_prompts_reply():
  lengths = np.array([[10, 2], [3, 5]])
  # By hand: 2 steps, then replies of 3 and 5 tokens beside the other 8 of the first.
  assert long_tail.refill(lengths, 2) == {2: 10}
  assert sum(long_tail.waves(lengths, 2).values()) == 15


def test_the_goal_is_that_of_the_better_number_of_refilled_slots():
  arms = {"shrink": 1.0, "waves_32": 2.0, "carried_64": 3.0}
  assert long_tail.is_met({**arms, "refill_32": 1.2, "refill_64": 1.5})
  assert not long_tail.is_met({**arms, "refill_32": 1.4, "refill_64": 1.2})
