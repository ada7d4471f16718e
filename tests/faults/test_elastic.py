"""RL goes on from a checkpoint of eight devices with sixteen: the same replies, the same learning.

The short form of `python -m tests.faults.elastic`.
"""

import pytest

from tests.faults import elastic


@pytest.fixture(scope="module")
def found(tmp_path_factory):
  """What a run on sixteen devices has to do with one that stayed on eight."""
  (result,) = elastic.measure(tmp_path_factory.mktemp("elastic"), ["rl"], ["16"])
  return result


def test_the_same_examples_and_the_same_tokens(found):
  assert found["steps"] == [1, 2, 3, 4]
  assert found["same_examples"]
  assert found["replies"] == 2 * 16 * 4 and found["replies_that_differ"] == 0


def test_what_it_learns_agrees_to_rounding(found):
  assert found["grad_norm"] > 0.1
  assert found["loss"][1] == pytest.approx(found["loss"][0], abs=1e-5)
  assert found["largest_difference"]["of_what_is_allowed"] <= 1, found
  assert found["largest_difference_of_parameters"]["relative"] < 1e-3
  assert elastic.is_right(found)


def test_a_difference_is_noticed(found):
  for name, value in (
    ("same_examples", False),
    ("replies_that_differ", 1),
    ("largest_difference", {"name": "loss", "of_what_is_allowed": 1.1}),
    ("largest_rounding", 1e-3),
    ("steps", [1, 2, 3]),
    ("grad_norm", 0.0),
  ):
    assert not elastic.is_right({**found, name: value}), name
