import math

import numpy as np
import pytest

from tests.eval import benchmark_items
from vr_jax.errors import InputError
from vr_jax.eval.benchmarks import aggregation, group_sums, statistics

reply = benchmark_items.reply
MICRO = aggregation.get("micro")


def random_replies(videos=20, each=3, seed=0, shift=0.0, **strata):
  """Replies about videos of different difficulty; the same questions for each seed."""
  chances = np.random.default_rng(1).uniform(0.2, 0.8, videos) + shift
  rng = np.random.default_rng(seed)
  return [
    reply(float(rng.random() < chance), f"v{number}", question, **strata)
    for number, chance in enumerate(chances)
    for question in range(each)
  ]


def scores_by_video(replies):
  found = {}
  for each in replies:
    found.setdefault(each.cluster, []).append(each.score)
  return list(found.values())


def test_the_bootstrap_draws_whole_videos_and_is_repeatable():
  replies = random_replies()
  found = statistics.estimate(MICRO, replies, draws=4000, seed=3)["accuracy"]
  assert found == statistics.estimate(MICRO, replies, draws=4000, seed=3)["accuracy"]
  rng = np.random.default_rng(9)
  videos = scores_by_video(replies)
  drawn = [
    100 * np.mean(np.concatenate([videos[index] for index in rng.integers(0, 20, 20)]))
    for _ in range(4000)
  ]
  low, high = np.quantile(drawn, statistics.expanded_levels(20))
  assert found.value == pytest.approx(100 * np.mean([each.score for each in replies]))
  assert (found.low, found.high) == pytest.approx((low, high), abs=1.7)
  assert found.standard_error == pytest.approx(np.std(drawn) * math.sqrt(20 / 19), rel=0.06)
  assert found.clusters == 20


def test_each_draw_has_as_many_videos_of_a_stratum_as_there_are():
  nest = np.array([0, 1, 0, 1, 1])
  weights = np.concatenate(list(statistics.resample_clusters(nest, 500, 0)))
  assert weights.shape == (500, 5)
  assert (weights[:, nest == 0].sum(axis=1) == 2).all()
  assert (weights[:, nest == 1].sum(axis=1) == 3).all()
  assert weights.mean(axis=0) == pytest.approx(1, abs=0.15)
  assert weights.var(axis=0)[1] == pytest.approx(2 / 3, abs=0.15)  # binomial: 3 draws of 1 / 3


def test_chunks_of_draws_change_nothing(monkeypatch):
  whole = statistics.estimate(MICRO, random_replies(), draws=301)
  monkeypatch.setattr(statistics, "_ENTRIES", 2000)
  parts = statistics.estimate(MICRO, random_replies(), draws=301)
  assert parts == whole


def test_resampling_is_within_strata_where_videos_nest():
  nested = [reply(1, f"s{n}", duration="short") for n in range(3)]
  nested += [reply(0, f"l{n}", duration="long") for n in range(6)]
  found = statistics.estimate(aggregation.get("video_mme"), nested, draws=200)
  assert found["accuracy"].standard_error == 0  # each draw has three short and six long videos
  together = statistics.estimate(MICRO, nested, draws=200)
  assert together["accuracy"].standard_error > 5


def test_videos_of_several_strata_are_resampled_together():
  replies = [reply(1, f"v{n}", n, task=task) for n in range(4) for task in ("a", "b")]
  assert group_sums.add_up(replies, MICRO.grouping, "task").nest.tolist() == [0] * 4
  replies = [reply(1, f"{task}{n}", n, task=task) for n in range(2) for task in ("a", "b")]
  assert group_sums.add_up(replies, MICRO.grouping, "task").nest.tolist() == [0, 0, 1, 1]


def test_the_whole_metric_is_computed_again_in_each_draw():
  replies = [reply(float(n % 3 > 0), f"v{n}", n, track="adaptation") for n in range(30)] + [
    reply(float(n % 5 == 0), f"v{n}", n, track="question_only") for n in range(30)
  ]
  metric = aggregation.get("video_mmmu")
  found = statistics.estimate(metric, replies, draws=2000)["knowledge_gain"]
  after, before = (
    np.array([each.score for each in replies if each.strata["track"] == (name,)])
    for name in ("adaptation", "question_only")
  )
  rng = np.random.default_rng(4)
  rows = rng.integers(0, 30, (2000, 30))
  a, b = after[rows].mean(axis=1), before[rows].mean(axis=1)
  assert found.value == pytest.approx(100 * (20 / 30 - 6 / 30) / (24 / 30))
  assert found.standard_error == pytest.approx(100 * np.std((a - b) / (1 - b)), rel=0.1)


def test_where_nothing_varies_the_interval_has_a_width_yet():
  found = statistics.estimate(MICRO, [reply(1, f"v{n}") for n in range(10)], draws=50)["accuracy"]
  assert (found.value, found.high) == (100, 100)
  assert found.low == pytest.approx(72.2, abs=0.1)  # Wilson's of 10 of 10


def test_marks_of_a_rubric_are_no_percentages():
  replies = [reply(0, f"v{n}", scorer="rubric", task=("a", "b")[n % 2]) for n in range(10)]
  found = statistics.estimate(aggregation.get("mlvu"), replies, draws=50)["G-Avg"]
  assert (found.value, found.low, found.high) == (0, 0, 0)


def test_one_video_has_no_interval():
  found = statistics.estimate(MICRO, [reply(1, "v", n) for n in range(9)], draws=50)["accuracy"]
  assert math.isnan(found.low) and math.isnan(found.high) and math.isnan(found.standard_error)


def test_a_group_that_many_draws_lack_has_no_interval():
  replies = [reply(float(n % 2), f"v{n}", task="b" if n < 2 else "a") for n in range(20)]
  found = statistics.estimate(aggregation.get("mvbench"), replies, draws=500)
  assert math.isnan(found["task_mean"].low) and math.isnan(found["task/b"].low)
  assert found["task_mean"].value == 50
  assert found["task/a"].low < 50 < found["task/a"].high


def test_intervals_of_few_videos_reach_further():
  assert statistics.expanded_levels(100_000) == pytest.approx((0.025, 0.975), abs=1e-4)
  low, high = statistics.expanded_levels(10)
  assert low == pytest.approx(0.0086, abs=1e-4)  # Φ(-√(10 / 9) 2.262)
  assert low + high == pytest.approx(1)
  assert statistics.expanded_levels(10, nests=4)[0] < low


def test_policies_are_compared_on_the_same_draws():
  before, after = random_replies(seed=0), random_replies(seed=0)
  changed = [
    benchmark_items.reply(1.0, each.cluster, int(each.id.split("-")[1])) if n % 7 == 0 else each
    for n, each in enumerate(after)
  ]
  found = statistics.compare(MICRO, before, changed, draws=2000)["accuracy"]
  alone = statistics.estimate(MICRO, before, draws=2000)["accuracy"]
  assert found.change > 0
  assert found.standard_error < alone.standard_error
  assert found.low <= found.change <= found.high
  same = statistics.compare(MICRO, before, before, draws=100)["accuracy"]
  assert (same.change, same.low, same.high, same.p_value) == (0, 0, 0, 1)
  opposite = statistics.compare(MICRO, changed, before, draws=2000)["accuracy"]
  assert (opposite.low, opposite.high) == pytest.approx((-found.high, -found.low), abs=1e-9)
  assert opposite.p_value == found.p_value


def test_a_comparison_needs_the_same_questions():
  with pytest.raises(InputError, match="not the same question in both"):
    statistics.compare(MICRO, random_replies(), random_replies()[1:])


def p_value(before, after, metric=MICRO, name="accuracy", **settings):
  sides = [group_sums.add_up(side, metric.grouping) for side in (before, after)]
  return statistics.sign_flip_p_values(metric, *sides, **settings)[name]


def test_few_videos_have_an_exact_p_value():
  # Differences of the videos' sums: +1, +1, +1, -1, 0. |change| is 2 or more in 10 of 16 flips.
  before = [reply(score, f"v{n}") for n, score in enumerate([0, 0, 0, 1, 1])]
  after = [reply(score, f"v{n}") for n, score in enumerate([1, 1, 1, 0, 1])]
  assert p_value(before, after) == 10 / 16
  all_better = [reply(1, f"v{n}") for n in range(5)]
  none = [reply(0, f"v{n}") for n in range(5)]
  assert p_value(none, all_better) == 2 / 32


def test_many_videos_have_a_p_value_of_random_flips():
  before = [reply(0, f"v{n}") for n in range(40)]
  after = [reply(float(n < 30), f"v{n}") for n in range(40)]
  assert p_value(before, after, flips=999) == 1 / 1000
  mixed = [reply(float(n % 2), f"v{n}") for n in range(40)]
  other = [reply(float(n % 2 == 0), f"v{n}") for n in range(40)]
  assert p_value(mixed, other, flips=999) == 1
  # Of 16 that differ, 12 became better: two-sided, the binomial's tail is .0768.
  old = [reply(float(n >= 12), f"v{n}") for n in range(16)]
  new = [reply(float(n < 12), f"v{n}") for n in range(16)]
  assert p_value(old, new, flips=9999) == pytest.approx(0.0768, abs=0.01)


def test_a_metric_that_is_not_linear_is_flipped_as_a_whole():
  def side(adaptation, alone):
    return [
      *[reply(score, f"v{n}", track="adaptation") for n, score in enumerate(adaptation)],
      *[reply(score, f"v{n}", track="question_only") for n, score in enumerate(alone)],
    ]

  metric = aggregation.get("video_mmmu")
  before, after = side([0, 0, 1], [0, 1, 0]), side([1, 1, 1], [0, 0, 0])

  def gain(adaptation, alone):
    return (np.mean(adaptation) - np.mean(alone)) / (1 - np.mean(alone))

  changes = []
  for flip in range(8):
    swapped = [bool(flip >> n & 1) for n in range(3)]
    pairs = [
      [(old, new)[swap] for old, new, swap in zip(*values, swapped, strict=True)]
      for values in (
        *(((0, 0, 1), (1, 1, 1)), ((0, 1, 0), (0, 0, 0))),
        *(((1, 1, 1), (0, 0, 1)), ((0, 0, 0), (0, 1, 0))),
      )
    ]
    changes.append(gain(*pairs[2:]) - gain(*pairs[:2]))
  expected = np.mean(np.abs(changes) >= abs(changes[0]) - 1e-9)
  assert 0 < expected < 1
  assert p_value(before, after, metric, "knowledge_gain") == expected


def test_a_measure_that_one_side_lacks_is_compared_with_nothing():
  before = [reply(1, f"v{n}", measures={}) for n in range(4)]
  after = [reply(1, f"v{n}", measures={"steps/logic_recall": 0.5}) for n in range(4)]
  found = statistics.compare(aggregation.get("vcr_bench"), before, after, draws=50)
  assert math.isnan(found["steps/logic_recall"].change)
  assert found["accuracy"].change == 0


def test_holm_adjusts_the_smallest_by_the_number_of_tests():
  found = statistics.holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.9})
  assert found == pytest.approx({"a": 0.04, "b": 0.09, "c": 0.09, "d": 0.9})
  assert statistics.holm({"a": 0.6, "b": 0.7}) == {"a": 1, "b": 1}
  with pytest.raises(InputError, match="b: a p-value of nan"):
    statistics.holm({"a": 0.1, "b": math.nan})


def test_errors_of_benchmarks_add_up_in_squares():
  values = [
    statistics.MetricInterval(value=value, low=0, high=0, standard_error=error, clusters=9)
    for value, error in ((60, 3), (50, 4))
  ]
  assert statistics.mean_over_benchmarks(values) == (55, 2.5)
  with pytest.raises(InputError, match="no benchmark"):
    statistics.mean_over_benchmarks([])


def test_the_spread_over_training_seeds_stands_alone():
  assert statistics.seed_spread([60, 62, 64]) == (62, 2)
  with pytest.raises(InputError, match="at least two"):
    statistics.seed_spread([60])


def test_ten_thousand_draws_of_a_large_benchmark_are_two_matrix_products():
  replies = [
    reply(float(n % 3 > 0), f"v{n // 3}", n, task=f"t{n % 20}", duration=("short", "long")[n % 2])
    for n in range(2700)
  ]
  found = statistics.estimate(MICRO, replies)
  assert found["accuracy"].standard_error < 2
  assert len(found) == 23
