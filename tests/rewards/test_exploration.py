"""The exploration bonus: when it is given, to which turns, and when it ends."""

import numpy as np
import pytest

from vr_jax import errors
from vr_jax.rewards import exploration

RULE = exploration.ExplorationRule()
CODE = exploration.ExplorationRule(variant="code")


def _batch(rate, turns=20):
  """One prompt whose turns retrieve at a rate, one turn an episode."""
  retrieved = (np.arange(turns) < round(rate * turns)).reshape(1, turns, 1)
  return {
    "retrieved": retrieved,
    "taken": np.ones_like(retrieved),
    "total": np.zeros(retrieved.shape, np.float32),
  }


@pytest.mark.parametrize(("rate", "bonus"), [(0.05, 1.0), (0.1, 0.5), (0.45, 0.5), (0.5, 0.0)])
def test_retrievals_get_more_the_rarer_they_are(rate, bonus):
  batch = _batch(rate)
  result = exploration.compute_bonus(RULE, exploration.BonusState(), **batch)
  assert result.rate == pytest.approx(rate)
  np.testing.assert_array_equal(result.bonus, bonus * batch["retrieved"])


def test_turns_that_were_not_taken_count_neither_way():
  batch = _batch(0.25)
  batch["taken"] = batch["retrieved"].copy()
  result = exploration.compute_bonus(RULE, exploration.BonusState(), **batch)
  assert result.rate == 1


def test_enough_batches_in_a_row_above_the_threshold_end_it_for_good():
  latch = exploration.BonusState()
  for rate, above, closed in [
    *[(0.6, 1, False), (0.5, 2, False), (0.4, 0, False), (0.6, 1, False)],
    *[(0.6, 2, False), (0.6, 3, True), (0.05, 3, True)],
  ]:
    result = exploration.compute_bonus(RULE, latch, **_batch(rate))
    latch = result.next_state
    assert latch == exploration.BonusState(above=above, closed=closed)
  assert (result.bonus == 0).all()


def test_an_empty_batch_and_a_rule_without_stages_give_nothing():
  empty = {name: value[:, :0] for name, value in _batch(0.5).items()}
  assert exploration.compute_bonus(RULE, exploration.BonusState(), **empty).bonus.shape == (1, 0, 1)
  none = exploration.ExplorationRule(stages=())
  result = exploration.compute_bonus(none, exploration.BonusState(), **_batch(0.05))
  assert (
    (result.bonus == 0).all()
    and result.next_state == exploration.BonusState()
    and none.highest == 0
  )


def test_in_variant_code_all_rewarded_turns_but_an_episodes_last_get_it_and_it_never_ends():
  total = np.zeros((1, 12, 3), np.float32)
  total[..., 0] = 0.1
  total[0, 0] = [0.1, 0.6, 1.1]
  kind = {"retrieved": np.zeros(total.shape, bool), "taken": np.ones(total.shape, bool)}
  result = exploration.compute_bonus(CODE, exploration.BonusState(), total=total, **kind)
  assert result.rate == pytest.approx(1 / 12)
  np.testing.assert_array_equal(result.bonus[0, 0], [1, 1, 0])
  assert (result.bonus[0, 1:] == 0).all()
  always = exploration.compute_bonus(
    CODE,
    exploration.BonusState(),
    total=total[:, :1],
    **{name: value[:, :1] for name, value in kind.items()},
  )
  assert (
    always.rate == 1 and (always.bonus == 0).all() and always.next_state == exploration.BonusState()
  )


def test_in_variant_code_a_turn_that_cost_something_is_none_that_was_rewarded():
  total = np.array([[[-0.1, 0.2, 0.3], [-0.1, -0.1, 0.3], [0.2, -0.5, -0.1]]], np.float32)
  kind = {"retrieved": np.zeros(total.shape, bool), "taken": np.ones(total.shape, bool)}
  rule = exploration.ExplorationRule(variant="code", stages=((0.5, 1.0),))
  result = exploration.compute_bonus(rule, exploration.BonusState(), total=total, **kind)
  assert result.rate == pytest.approx(1 / 3)
  np.testing.assert_array_equal(result.bonus[0], [[0, 1, 0], [0, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize("wrong", [{"patience": 0}, {"stages": ((0.5, 0.5), (0.1, 1.0))}])
def test_a_rule_that_makes_no_sense_is_refused(wrong):
  with pytest.raises(errors.InputError, match="exploration"):
    exploration.ExplorationRule(**wrong)
