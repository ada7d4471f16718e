import dataclasses
import math
from typing import Any

import pytest

from tests.eval import benchmark_items
from vr_jax.errors import InputError
from vr_jax.eval.benchmarks import aggregation, group_sums, scored_answer, scored_reply

reply = benchmark_items.reply


def compute(metric, replies):
  return aggregation.compute(aggregation.get(metric), replies)


def replies(scores, start=0, **fields):
  return [reply(score, f"v{start + n}", n, **fields) for n, score in enumerate(scores)]


def test_accuracy_is_over_questions_and_of_each_stratum():
  found = compute(
    "video_mme", [*replies([1, 1, 0], duration="short"), *replies([0], 9, duration="long")]
  )
  assert found["accuracy"] == 50
  assert found["duration/short"] == pytest.approx(200 / 3)
  assert found["duration/long"] == 0


def test_an_ability_counts_every_question_that_has_it():
  found = compute(
    "lvbench", [reply(1, "a", task=("reasoning", "summarization")), reply(0, "b", task="reasoning")]
  )
  assert (found["accuracy"], found["task/reasoning"], found["task/summarization"]) == (50, 50, 100)


def test_mlvus_m_avg_is_over_tasks_and_its_g_avg_over_two_of_open_questions():
  choice = [*replies([1, 1, 1, 0], task="ego"), *replies([0], 9, task="count")]
  # Marks: accuracy and relevance 4 + 5 and 2 + 1; completeness and reliability 3 + 4.
  generated = [
    *replies([9, 3], 20, scorer="rubric", task="sub_scene"),
    *replies([7], 30, scorer="rubric", task="summary"),
  ]
  found = compute("mlvu", [*choice, *generated])
  assert found["M-Avg"] == (75 + 0) / 2
  assert found["accuracy"] == 60
  assert found["G-Avg"] == (6 + 7) / 2
  assert "G-Avg" not in compute("mlvu", choice)
  assert "M-Avg" not in compute("mlvu", generated)


def test_tempcompass_is_reported_by_format_and_aspect():
  found = compute(
    "tempcompass",
    [
      *replies([1, 0], format="yes_no", aspect="speed"),
      *replies([1], 5, format="yes_no", aspect="order"),
      *replies([0], 9, format="multi-choice", aspect="speed"),
    ],
  )
  assert found["accuracy"] == 50
  assert found["format/yes_no"] == pytest.approx(200 / 3)
  assert found["format/yes_no/speed"] == 50
  assert found["aspect/speed"] == pytest.approx(100 / 3)


def vsi(kind, scores, start=0, scorer="choice"):
  task = "object_rel_direction" if "direction" in kind else kind
  return replies(scores, start, scorer=scorer, task=task, category=kind)


VSI = [
  *vsi("object_rel_direction_easy", [1]),
  *vsi("object_rel_direction_medium", [1, 0], 5),
  *vsi("object_rel_direction_hard", [0, 0, 0], 10),
  *vsi("room_size_estimation", [0.6, 0.2], 20, "mra"),
]


def test_vsis_relative_direction_is_averaged_before_the_tasks():
  found = compute("vsi_bench", VSI)
  assert found["task/object_rel_direction"] == pytest.approx(100 * (1 + 0.5 + 0) / 3)
  assert found["overall"] == pytest.approx((50 + 40) / 2)
  missing = aggregation.missing_groups(
    aggregation.get("vsi_bench"),
    group_sums.add_up(VSI, aggregation.get("vsi_bench").grouping),
  )
  assert "category/object_counting" in missing and len(missing) == 6


def test_video_r1_averages_accuracy_and_relative_accuracy():
  found = compute("vsi_bench_video_r1", VSI)
  assert found["accuracy"] == pytest.approx(100 * 2 / 6)
  assert found["mean_relative_accuracy"] == pytest.approx(40)
  assert found["overall"] == pytest.approx((100 * 2 / 6 + 40) / 2)


def track(name, scores):
  return replies(scores, track=name)


def test_videommmus_gain_is_the_part_of_what_the_question_alone_leaves_open():
  tracks = [
    *track("perception", [1, 1, 1, 0, 1]),
    *track("comprehension", [1, 0, 1, 0, 1]),
    *track("adaptation", [1, 0, 1, 0, 0]),
    *track("question_only", [1, 0, 0, 0, 0]),
  ]
  found = compute("video_mmmu", tracks)
  assert found["overall"] == pytest.approx((80 + 60 + 40) / 3)
  assert found["knowledge_gain"] == pytest.approx(100 * (40 - 20) / (100 - 20))
  assert found["accuracy"] == pytest.approx(60)  # the questions alone are in no other number
  assert found["accuracy"] == compute("video_mmmu", tracks[:15])["accuracy"]
  assert found["accuracy"] == compute("video_mmmu_video_r1", tracks)["accuracy"]
  assert "knowledge_gain" not in compute("video_mmmu", track("perception", [1]))
  failed = dataclasses.replace(tracks[-1], status="failed")
  found = compute("video_mmmu", [*tracks[:-1], failed])
  assert math.isnan(found["knowledge_gain"])  # as a wrong answer it would raise the gain
  assert (found["track/question_only"], found["accuracy"]) == (20, pytest.approx(60))
  assert {*compute("video_mmmu_video_r1", [*tracks[:-1], failed])} == {*found} - {
    *("overall", "knowledge_gain")
  }


@pytest.mark.parametrize("metric", ["video_mmmu", "video_mmmu_video_r1"])
def test_of_questions_alone_their_own_mean_is_the_value(metric):
  alone = track("question_only", [1, 0, 0, 0])
  assert compute(metric, alone) == {"track/question_only": 25}
  assert "track/question_only" in aggregation.get(metric).further
  assert not aggregation.beside_headline(aggregation.get(metric), alone)


def test_vcrs_f1_is_of_mean_recall_and_mean_precision():
  names = [
    f"{steps}/overall_{each}"
    for steps in ("steps", "official_steps")
    for each in ("recall", "precision")
  ]
  found = compute(
    "vcr_bench",
    [
      reply(1, "a", measures=dict(zip(names, (1.0, 0.5, 1.0, 0.5), strict=True))),
      reply(0, "b", measures=dict(zip(names, (0.5, 0.7, 0.5, 0.7), strict=True))),
      reply(0, "c", measures=dict(zip(names[:2], (0.0, 0.0), strict=True))),  # failed
    ],
  )
  assert found["accuracy"] == pytest.approx(100 / 3)
  for steps, recall, precision in (("steps", 50, 40), ("official_steps", 75, 60)):
    assert found[f"{steps}/overall_recall"] == pytest.approx(recall)
    assert found[f"{steps}/overall_precision"] == pytest.approx(precision)
    f1 = 2 * recall * precision / (recall + precision)
    assert found[f"{steps}/overall_f1"] == pytest.approx(f1)


def test_mvbench_is_over_questions_and_tells_the_mean_over_tasks():
  found = compute("mvbench", [*replies([1, 1, 1], task="A"), *replies([0], 9, task="B")])
  assert (found["accuracy"], found["task_mean"]) == (75, 50)


@pytest.mark.parametrize("metric", list(aggregation.METRICS))
def test_a_metric_has_its_headline_between_the_worst_and_the_best_reply(metric):
  kinds: dict[str, Any] = {
    "task": "x",
    "category": "object_rel_direction_easy",
    "track": "perception",
    "type": "referring",
  }
  found = compute(metric, [reply(1, "a", **kinds), reply(0, "b", **kinds)])
  assert found[aggregation.get(metric).headline] == 50


def test_a_metric_without_its_groups_is_refused():
  with pytest.raises(InputError, match="no question of the groups"):
    compute("vsi_bench", replies([1, 0]))
  with pytest.raises(InputError, match="no replies"):
    compute("micro", [])
  with pytest.raises(InputError, match="v0-0-rubric-: belongs to no group"):
    compute("mlvu", replies([9], scorer="rubric"))
  with pytest.raises(InputError, match="did you mean vsi_bench"):
    aggregation.get("vsi_benhc")


def scored(parsed, score=1.0, **fields):
  answer = scored_answer.ScoredAnswer(parsed=parsed, score=score)
  return scored_reply.make(benchmark_items.question(), answer, **fields)


def test_what_failed_was_cut_off_or_can_not_be_read_is_wrong_and_counted():
  found = [
    scored("B"),
    scored(None, 0.25),
    scored("B", truncated=True),
    scored_reply.make(benchmark_items.question(), None),
  ]
  assert [each.score for each in found] == [1, 0, 0, 0]
  assert scored_reply.count_statuses(found) == {
    "questions": 4,
    "failed": 1,
    "truncated": 1,
    "unparsed": 1,
  }
  assert compute("micro", found)["accuracy"] == 25


def test_a_protocol_may_count_what_was_cut_off_or_guessed():
  assert scored("B", truncated=True, counted=("answered", "truncated")).score == 1
  assert scored(None, truncated=True, counted=("answered", "truncated")).score == 0
  assert scored(None, 0.25, counted=("answered", "unparsed")).score == 0.25
  assert scored_reply.make(benchmark_items.question(), None, counted=("failed",)).score == 0


def test_a_question_without_a_reply_is_noticed():
  items = [benchmark_items.question()]
  scored_reply.check_complete([scored("B")], items)
  with pytest.raises(InputError, match="q1: has no reply"):
    scored_reply.check_complete([], items)
  with pytest.raises(InputError, match="q1: has two replies"):
    scored_reply.check_complete([scored("B")] * 2, items)
  with pytest.raises(InputError, match="to no question"):
    scored_reply.check_complete([scored("B"), reply(1)], items)


def test_a_question_of_an_unknown_source_is_a_cluster_by_its_video():
  assert scored("B").cluster == "v.mp4"
  item = benchmark_items.question(cluster="source")
  assert scored_reply.make(item, None).cluster == "source"
