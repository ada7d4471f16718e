"""Confidence intervals: statsmodels' values, and the effect of questions that share videos."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from scipy import stats

from vr_jax.eval import intervals

# (successes, trials) -> statsmodels 0.15.0: proportion_confint(…, method="wilson").
WILSON = {
  (0, 3): (0.0, 0.5614970317550455),
  (3, 3): (0.43850296824495444, 1.0),
  (1, 10): (0.017876213095072924, 0.40415002679523854),
  (41, 96): (0.3328208311400803, 0.5269568587558305),
  (96, 96): (0.9615244121423242, 1.0),
  (3.625, 7.25): (0.20574506189410513, 0.7942549381058949),
}
scores = st.lists(st.sampled_from([0.0, 1.0]) | st.floats(0, 1), min_size=1, max_size=30)


@pytest.mark.parametrize(("successes", "trials"), WILSON)
def test_wilson_intervals_are_those_of_statsmodels(successes, trials):
  expected = WILSON[successes, trials]
  np.testing.assert_allclose(intervals.wilson(successes / trials, trials), expected, atol=1e-12)


@pytest.mark.parametrize(("right", "wrong"), [(0, 3), (3, 0), (1, 9), (41, 55)])
def test_with_one_question_a_video_the_interval_is_wilsons(right, wrong):
  values = [1.0] * right + [0.0] * wrong
  found = intervals.mean_interval(values, range(len(values)))
  np.testing.assert_allclose((found.low, found.high), WILSON[right, right + wrong], atol=1e-12)
  assert found.effective == found.questions == found.videos == right + wrong


def test_all_wrong_in_few_videos_says_little():
  found = intervals.mean_interval([0.0] * 6, "aabbcc")
  np.testing.assert_allclose((found.low, found.high), WILSON[0, 3], atol=1e-12)
  assert (found.questions, found.videos, found.effective) == (6, 3, 3)
  assert intervals.mean_interval([0.0] * 6, "aaaaaa").high > 0.79  # one video: one trial


def test_the_design_effect_is_kishs_with_the_correlation_of_an_analysis_of_variance():
  rng = np.random.default_rng(5)
  videos = np.repeat(np.arange(12), rng.integers(1, 6, 12))
  values = (rng.random(len(videos)) < rng.random(12)[videos]).astype(float)
  sizes = np.bincount(videos)
  ratio = stats.f_oneway(*(values[videos == each] for each in range(12))).statistic
  average = (len(values) - (sizes**2).sum() / len(values)) / 11
  correlation = (ratio - 1) / (ratio + average - 1)
  assert 0.1 < correlation < 0.9
  expected = len(values) / (1 + ((sizes**2).sum() / len(values) - 1) * correlation)
  found = intervals.mean_interval(values.tolist(), videos.tolist())
  assert found.effective == pytest.approx(expected)
  assert (found.low, found.high) == pytest.approx(intervals.wilson(values.mean(), expected))


@settings(deadline=None)
@given(scores, st.data())
def test_an_interval_holds_its_mean_lies_within_bounds_and_is_wider_where_questions_share_videos(
  values, data
):
  videos = data.draw(st.lists(st.integers(0, 5), min_size=len(values), max_size=len(values)))
  shared = intervals.mean_interval(values, videos)
  alone = intervals.mean_interval(values, range(len(values)))
  assert 0 <= shared.low <= shared.mean <= shared.high <= 1
  assert shared.low < shared.high
  assert shared.low <= alone.low + 1e-12 and alone.high <= shared.high + 1e-12
  assert 1 - 1e-9 <= shared.effective <= len(values) + 1e-9
  after = data.draw(st.permutations(values))
  change = intervals.change_interval(values, after, videos)
  assert -1 <= change.low <= change.mean + 1e-12 and change.mean - 1e-12 <= change.high <= 1
  back = intervals.change_interval(after, values, videos)
  np.testing.assert_allclose((back.low, back.high), (-change.high, -change.low), atol=1e-12)


@pytest.mark.parametrize(("better", "worse", "same"), [(0, 0, 3), (9, 2, 21), (4, 0, 0)])
def test_with_one_question_a_video_a_change_has_bonett_and_prices_interval(better, worse, same):
  """The formula of the paper, from counts: p̃ = (count + 1) / (n + 2)."""
  count = better + worse + same
  up, down = (better + 1) / (count + 2), (worse + 1) / (count + 2)
  half = 1.959963984540054 * math.sqrt((up + down - (up - down) ** 2) / (count + 2))
  before = [0.0] * better + [1.0] * worse + [1.0] * same
  after = [1.0] * better + [0.0] * worse + [1.0] * same
  found = intervals.change_interval(before, after, range(count))
  assert found.mean == pytest.approx((better - worse) / count)
  assert found.low == pytest.approx(max(-1, up - down - half))
  assert found.high == pytest.approx(min(1, up - down + half))


def test_a_change_of_few_videos_is_less_certain_than_one_of_as_many_questions():
  before, after = [0.0] * 12, [1.0] * 8 + [0.0] * 4
  one_each = intervals.change_interval(before, after, range(12))
  shared = intervals.change_interval(before, after, "aaaabbbbcccc")
  assert shared.effective == pytest.approx(3)
  assert one_each.low > 0 > shared.low


def test_intervals_of_clustered_scores_hold_the_true_value_about_as_often_as_they_say():
  """20 videos of 1 to 5 questions whose scores correlate by 0.2: plain Wilson holds it in 88 %."""
  rng = np.random.default_rng(0)
  held = plain = 0
  for _ in range(400):
    videos = np.repeat(np.arange(20), rng.integers(1, 6, 20))
    values = (rng.random(len(videos)) < rng.beta(2, 2, 20)[videos]).astype(float)
    found = intervals.mean_interval(values.tolist(), videos.tolist())
    held += found.low <= 0.5 <= found.high
    low, high = intervals.wilson(float(values.mean()), len(values))
    plain += low <= 0.5 <= high
  assert held / 400 > 0.925 > 0.905 > plain / 400


@pytest.mark.parametrize("values", [[1.2], [-0.4, 0.5], [math.nan]])
def test_scores_that_have_no_such_interval_are_refused(values):
  with pytest.raises(ValueError, match="within"):
    intervals.mean_interval(values, range(len(values)))
  with pytest.raises(ValueError, match="of at most 1"):
    intervals.change_interval(
      [0.0] * len(values), [3 * value for value in values], [0] * len(values)
    )


@pytest.mark.parametrize(
  ("before", "after", "videos"), [(0, 0, 0), (1, 3, 3), (3, 1, 3), (3, 3, 1)]
)
def test_each_question_has_a_score_and_a_video(before, after, videos):
  with pytest.raises(ValueError, match="needs as many scores as videos"):
    intervals.change_interval([0.5] * before, [0.5] * after, ["a"] * videos)
  if after != videos or not after:
    with pytest.raises(ValueError, match="needs as many scores as videos"):
      intervals.mean_interval([0.5] * after, ["a"] * videos)
