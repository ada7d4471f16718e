"""The measure of a judge's reliability: what it is held against, and what it makes of good and bad judges."""

import pytest

from benchmarks import judge_agreement
from vr_jax.rewards import judge
from vr_jax.worlds import config as world_config
from vr_jax.worlds import sufficiency


@pytest.fixture(scope="module")
def cases():
  return judge_agreement.labelled(world_config.WorldConfig(), 30)


def test_cases_of_every_kind_are_what_they_are_called(cases):
  truths = {}
  for one in cases:
    truths.setdefault(one.kind, []).append(one.truth)
  assert set(truths) == {"whole", "mixed", "changed", "dropped", "stated"}
  assert all(truths["whole"])
  assert not any(truths["dropped"])
  assert not any(truths["stated"])
  assert sum(truths["changed"]) < len(truths["changed"]) / 4
  assert 0.25 < sum(one.truth for one in cases) / len(cases) < 0.75


def test_the_same_seed_gives_the_same_cases(cases):
  again = judge_agreement.labelled(world_config.WorldConfig(), 30)
  assert again == cases


def test_a_perfect_judge_agrees_in_all_and_a_parrot_beyond_chance_in_nothing(cases):
  perfect = judge_agreement.measure(judge.Rule(sufficiency.sufficient), cases)
  assert (perfect["accuracy"], perfect["kappa"], perfect["without_verdict"]) == (1, 1, 0)
  parrot = judge_agreement.measure(judge.Rule(lambda example, observation: True), cases)
  assert parrot["kappa"] == 0
  assert parrot["accuracy"] == pytest.approx(parrot["sufficient"] / parrot["cases"], abs=1e-3)


def test_cases_without_a_verdict_are_counted_and_left_out(cases):
  class Silent(judge.Rule):
    def verdicts(self, cases):
      return [None, *super().verdicts(cases[1:])]

  found = judge_agreement.measure(Silent(sufficiency.sufficient), cases)
  assert (found["without_verdict"], found["accuracy"]) == (1, 1)


@pytest.mark.parametrize(
  ("truth", "verdicts", "accuracy", "kappa"),
  [
    ([True] * 25 + [False] * 25, [True] * 20 + [False] * 20 + [True] * 10, 0.7, 0.4),
    ([True, False], [False, True], 0.0, -1.0),
    ([True, True], [True, True], 1.0, None),
    ([], [], None, None),
  ],
)
def test_kappa_by_hand(truth, verdicts, accuracy, kappa):
  assert judge_agreement.agreement(truth, verdicts) == {"accuracy": accuracy, "kappa": kappa}
