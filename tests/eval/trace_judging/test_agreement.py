"""Agreement by worked examples and by the formulas written out; intervals in which videos count."""

import itertools
from typing import Any

import numpy as np
import pytest
from scipy import stats

from benchmarks import noisy_trace_judge
from vr_jax.eval.trace_judging import agreement, video_bootstrap

# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), example C: four observers,
# twelve units, 0 for none. He works out 0.815 with the ordinal metric.
OBSERVERS = (
  (1, 2, 3, 3, 2, 1, 4, 1, 2, 0, 0, 0),
  (1, 2, 3, 3, 2, 2, 4, 1, 2, 5, 0, 3),
  (0, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, 0),
  (1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, 0),
)
UNITS = [[value for value in unit if value] for unit in zip(*OBSERVERS, strict=True)]


def alpha(units):
  tables = [agreement.coincidences(unit, 5) for unit in units]
  return float(agreement.ordinal_alpha(np.sum(tables, axis=0, keepdims=True))[0])


def kappa(pairs):
  tables = [agreement.confusion([one], [other], 5) for one, other in pairs]
  return float(agreement.weighted_kappa(np.sum(tables, axis=0, keepdims=True))[0])


def restated_alpha(units):
  """1 - observed / expected disagreement, by lists of pairs of values."""
  units = [unit for unit in units if len(unit) > 1]
  values = [value for unit in units for value in unit]
  count = {value: values.count(value) for value in range(1, 6)}

  def square(one, other):
    low, high = sorted((one, other))
    between = sum(count[value] for value in range(low, high + 1))
    return (between - (count[low] + count[high]) / 2) ** 2

  observed = sum(
    square(one, other) / (len(unit) - 1)
    for unit in units
    for one, other in itertools.permutations(unit, 2)
  ) / len(values)
  expected = sum(itertools.starmap(square, itertools.permutations(values, 2)))
  return 1 - observed / (expected / (len(values) * (len(values) - 1)))


def restated_kappa(pairs):
  """1 - mean squared difference / that of all combinations of a left and a right value."""
  left, right = np.array(pairs, float).T
  return 1 - ((left - right) ** 2).mean() / ((left[:, None] - right) ** 2).mean()


def test_alpha_is_that_of_krippendorffs_worked_example():
  assert round(alpha(UNITS), 3) == 0.815


def test_kappa_is_that_of_an_example_worked_by_hand():
  # Squared differences: 0 + 1 + 0 + 4 = 5. Of all 16 combinations: 21 + 11 + 29 + 15 = 76, / 4.
  assert kappa([(1, 1), (2, 3), (5, 5), (4, 2)]) == pytest.approx(1 - 5 / 19)


@pytest.mark.parametrize("seed", range(5))
def test_both_are_their_formulas(seed):
  rng = np.random.default_rng(seed)
  units = [list(map(int, rng.integers(1, 6, rng.integers(0, 5)))) for _ in range(30)]
  assert alpha(units) == pytest.approx(restated_alpha(units))
  pairs = [tuple(map(int, rng.integers(1, 6, 2))) for _ in range(30)]
  assert kappa(pairs) == pytest.approx(restated_kappa(pairs))


def test_full_agreement_is_1_and_agreement_on_one_value_is_undefined():
  assert alpha([[1, 1], [4, 4, 4], [2, 2]]) == kappa([(1, 1), (4, 4)]) == 1
  assert np.isnan(alpha([[3, 3], [3, 3]])) and np.isnan(kappa([(3, 3), (3, 3)]))
  assert np.isnan(alpha([[3], []]))


def test_a_rater_with_several_ratings_counts_as_one():
  table = agreement.confusion([1, 3], [5], 5)
  assert table.sum() == 1
  assert table[0, 4] == table[2, 4] == 0.5
  assert not agreement.confusion([1], [], 5).any()


def test_spearman_is_scipys_also_where_a_draw_has_an_item_twice_or_not_at_all():
  rng = np.random.default_rng(0)
  one = rng.integers(1, 6, 40).astype(float)
  other = one + rng.normal(0, 1, 40)
  drawn = rng.integers(0, 3, (6, 40))
  found = agreement.spearman(one, other, drawn.astype(float))
  reference: Any = stats.spearmanr  # whose types the checker can't follow
  wanted = [reference(np.repeat(one, n), np.repeat(other, n)).statistic for n in drawn]
  np.testing.assert_allclose(found, wanted)
  assert np.isnan(agreement.spearman(np.full(40, 0.1), other, np.ones((1, 40))))[0]


def mean_of(values):
  return lambda weights: weights @ np.array(values) / weights.sum(-1)


def width(found):
  assert found.low is not None and found.high is not None
  return found.high - found.low


def test_questions_about_one_video_count_once():
  values = np.random.default_rng(1).normal(size=30)
  apart = video_bootstrap.of_items(mean_of(values), range(30))
  together = video_bootstrap.of_items(mean_of([*values] * 4), [*range(30)] * 4)
  assert (apart.low, apart.high) == pytest.approx((together.low, together.high))
  assert apart.videos == together.videos == 30
  alone = video_bootstrap.of_items(mean_of([*values] * 4), range(120))
  assert width(alone) < 0.7 * width(together)


def test_intervals_of_a_mean_hold_it_as_often_as_they_say():
  rng = np.random.default_rng(2)
  videos, held = [*range(12)] * 3, 0
  for trial in range(300):
    values = np.tile(rng.normal(size=12), 3) + rng.normal(size=36)
    found = video_bootstrap.of_items(mean_of(values), videos, draws=400, seed=trial)
    assert found.low is not None and found.high is not None
    held += found.low <= 0 <= found.high
  assert 0.91 < held / 300 < 0.99


def test_there_is_no_interval_without_two_videos_or_where_draws_are_undefined():
  assert video_bootstrap.of_items(mean_of([1.0, 2.0]), ["a", "a"]).low is None
  nothing = video_bootstrap.of_items(mean_of([]), [])
  assert (nothing.value, nothing.videos) == (None, 0)
  rare = video_bootstrap.of_items(
    lambda weights: np.where(weights[:, 0] > 0, 1.0, np.nan), ["a", "b", "c"]
  )
  assert (rare.value, rare.low, rare.high) == (1.0, None, None)


def test_agreement_falls_with_a_judges_noise_as_it_should():
  """With grades spread evenly, kappa with the truth is 1 - noise, and alpha of runs its square."""
  truth = np.repeat(np.arange(1, 6), 2000)[:, None]
  for noise in (0.0, 0.2, 0.5):
    runs = noisy_trace_judge.add_noise(truth, noise, seed=1)
    kappa, alpha, _ = noisy_trace_judge.measure(truth[:, 0], runs[:, :, 0])
    assert kappa == pytest.approx(1 - noise, abs=0.02)
    assert alpha == pytest.approx((1 - noise) ** 2, abs=0.02)
