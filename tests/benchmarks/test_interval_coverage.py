import pytest

from benchmarks import interval_coverage

LVBENCH = next(case for case in interval_coverage.CASES if case.name.startswith("LVBench"))
FEW = interval_coverage.CoverageCase(name="12 videos", videos=12, questions=5)
TASKS = interval_coverage.CoverageCase(name="tasks", videos=80, questions=2, tasks=4)


@pytest.mark.parametrize("correlation", [0, 0.3])
def test_intervals_hold_the_true_value_in_about_95_percent(correlation):
  for case in (LVBENCH, TASKS):
    found = interval_coverage.coverage(case, correlation, repeats=600, draws=500)
    assert 0.925 < found["ours"] < 0.975  # the share of 600 has a standard error of .009


def test_intervals_of_few_videos_are_better_than_percentiles_of_the_draws():
  found = interval_coverage.coverage(FEW, 0.1, repeats=600, draws=500)
  assert found["percentile"] < 0.92 < found["ours"] < 0.975


def test_questions_are_not_independent():
  found = interval_coverage.coverage(LVBENCH, 0.3, repeats=300, draws=300)
  assert found["independent"] < 0.7


def test_p_values_are_small_as_rarely_as_they_say():
  found = interval_coverage.false_changes(FEW, 0.1, repeats=200, draws=300)
  assert found["p < .05"] <= 0.08
  assert found["ours"] > 0.9
