"""Two processes play, score and learn as one process with two devices, in recipes of every kind.

tests/test_launch.py has MOSS-ChatV and Video-MTR, test_several.py the warm start.
"""

import pytest

from tests.faults import equal


@pytest.mark.parametrize("recipe", ["videop2r", "revseg"])
def test_a_step_of_two_processes_is_that_of_one_with_two_devices(tmp_path, recipe):
  found = equal.measure(recipe, tmp_path, processes=2)
  assert found["replies_that_differ"] == 0 < found["replies"]
  assert found["largest_difference"]["of_what_is_allowed"] <= 1, found
  assert found["grad_norm"] > 0 and found["metrics"] > 20
  assert equal.is_right(found)
  assert not equal.is_right({**found, "replies_that_differ": 1})
