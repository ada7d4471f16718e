"""The benchmark of step distances: its traces are as true as their names say, and it runs."""

import numpy as np
import pytest

from benchmarks import step_distances
from vr_jax.rewards import claim_distance, process
from vr_jax.worlds import claims

SCENARIOS = [step_distances.make_scenario(4, index) for index in range(12)]


def test_traces_are_as_true_as_their_names_say():
  for each in SCENARIOS:
    truth = each.truth
    for right in ("copy", "paraphrase", "copy, padded", "copy, each step twice", "copy, reversed"):
      assert truth[right] == 1
    assert 1 > truth["one wrong"] > truth["half wrong"] > truth["all wrong"]
    assert truth["half wrong"] == truth["half wrong, right steps three times"]
    assert truth["all wrong"] == truth["padding alone"] == 0
    hedges = [
      truth[f"every value{how}"] for how in (", all the time", " at each time", " in one step")
    ]
    assert all(0 < value <= 0.5 for value in hedges)
    for name in ("one wrong", "half wrong", "all wrong"):
      assert truth[f"{name}, paraphrased"] == truth[name]
    assert set(each.traces["paraphrase"]).isdisjoint(each.reference)


@pytest.mark.parametrize("alignment", step_distances.ALIGNMENTS)
def test_rewards_stand_beside_the_names_of_their_traces(alignment):
  distance = claim_distance.ClaimDistance(read=claims.read_step_claims, seconds=2.0)
  for each, reward in zip(
    SCENARIOS, step_distances.score(SCENARIOS, distance, alignment), strict=True
  ):
    steps, wrong = len(each.reference), len(each.reference) // 2
    assert reward["copy"] == reward["paraphrase"] == 1
    np.testing.assert_allclose(reward["half wrong"], np.exp(-wrong / steps), rtol=1e-5)
    np.testing.assert_allclose(reward["every value, all the time"], np.exp(-1), rtol=1e-5)
    assert np.exp(-1) < reward["every value at each time"] < 0.7
    # Recall is 1, precision that of one value of many.
    share = each.truth["every value in one step"]
    expected = np.exp(2 * share / (1 + share) - 1)
    np.testing.assert_allclose(reward["every value in one step"], expected, rtol=1e-5)
  table = step_distances.measure(SCENARIOS, {"rouge": process.ROUGE, "claims": distance})
  assert all(len(v) == 12 for values in table.values() for v in values.values())
  assert table["AUC, right or wrong"]["claims, naive"].mean() == 1


def test_ties_count_half():
  reward = {"a": 1.0, "b": 0.5, "c": 0.5}
  assert step_distances._auc(reward, ("a", "b"), ("c",)) == 0.75


def test_options_that_it_does_not_have_are_refused(capsys):
  assert step_distances.main(["--scene=3"]) == 2
  assert "usage" in capsys.readouterr().err
