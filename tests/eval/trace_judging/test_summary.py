"""Numbers from verdicts made by hand: means, position bias, agreement, truth, what is missing."""

from typing import Any

import pytest

from vr_jax.eval import report_data
from vr_jax.eval.trace_judging import grade, judged_questions, position, summary

NAMES = ("old", "new")


def question(identity, truth=(0.0, 1.0), video=""):
  return judged_questions.JudgedQuestion(
    id=identity,
    video=video or f"{identity}.mp4",
    question="?",
    options=(),
    reference=(report_data.ReferenceStep(text="It is red.", start=0.0, end=1.0),),
    traces=dict.fromkeys(NAMES, ("It is red.",)),
    truth=dict(zip(NAMES, truth, strict=True)),
  )


def judged(*questions):
  return judged_questions.JudgedSet(
    evaluations={"old": "Old", "new": "New"},
    questions=questions,
    without_reference=0,
    asked_once=0,
  )


def verdict(identity, run, order, *values, problem="", judge="j"):
  """values: consistency of each trace in the order shown; stability is always 3."""
  grades = {
    name: grade.TraceGrade(consistency=value, stability=3)
    for name, value in zip(order, values, strict=True)
  }
  return grade.TraceVerdict(
    judge=judge,
    id=identity,
    video=f"{identity}.mp4",
    run=run,
    order=order,
    grades=None if problem else grades,
    problem=problem,
  )


def both(identity, run, there, back, judge="j"):
  """Both orders; `there` and `back` are grades in the order of the prompt."""
  orders = (NAMES, NAMES[::-1])
  return [
    verdict(identity, run, o, *v, judge=judge) for o, v in zip(orders, (there, back), strict=True)
  ]


def bias(verdicts) -> dict[str, Any]:
  found = position.bias(verdicts, "consistency")
  assert found is not None
  return found


def consistency(verdicts, *questions):
  content = summary.summarize(judged(*questions), {"j": verdicts})
  return content["judges"][0]["scales"]["consistency"]


def test_a_trace_scores_the_mean_of_its_places():
  verdicts = both("a", 0, (5, 2), (2, 3))  # old: 5 first, 3 second; new: 2 second, 2 first
  verdicts += [verdict("a", 1, NAMES, 3, 2)]  # old: 3 first; its other order is missing
  assert summary.scores(verdicts, "consistency") == {("a", "old"): 3.5, ("a", "new"): 2.0}


def test_means_and_changes_are_on_the_scale_from_1_to_5():
  verdicts = [v for i in "abcd" for v in both(i, 0, (2, 4), (4, 2))]
  found = consistency(verdicts, *map(question, "abcd"))
  assert (found["scores"]["old"]["mean"], found["scores"]["new"]["mean"]) == (2, 4)
  assert 1 <= found["scores"]["old"]["low"] < 2 < found["scores"]["old"]["high"] < 5
  assert found["change"]["mean"] == 2
  assert (found["better"], found["equal"], found["worse"]) == (4, 0, 0)


def test_what_is_missing_is_counted_and_takes_part_in_nothing():
  verdicts = both("a", 0, (2, 4), (4, 2)) + [
    verdict("b", 0, order, 1, 1, problem="no readable verdict") for order in (NAMES, NAMES[::-1])
  ]
  content = summary.summarize(judged(question("a"), question("b")), {"j": verdicts})
  [found] = content["judges"]
  assert (found["verdicts"], found["missing"]) == (4, 2)
  assert found["problems"] == {"no readable verdict": 2}
  scores = found["scales"]["consistency"]["scores"]["old"]
  assert (scores["mean"], scores["questions"]) == (2, 1)
  nothing = consistency(verdicts[2:], question("a"), question("b"))
  assert nothing["scores"] == {"old": None, "new": None}
  assert nothing["change"] is None
  assert nothing["truth"] is None


def test_a_judge_that_prefers_what_it_sees_first_is_found_out():
  verdicts = [v for i in "abc" for run in (0, 1) for v in both(i, run, (5, 3), (5, 3))]
  found = bias(verdicts)
  assert found["compared"] == 6
  assert found["order_decides"]["value"] == found["first_favoured"]["value"] == 1
  assert found["second_favoured"]["value"] == found["runs_decide"]["value"] == 0
  assert found["first_gains"]["value"] == 2
  # Its bias cancels out of the scores.
  assert summary.scores(verdicts, "consistency")["a", "old"] == 4
  assert consistency(verdicts, *map(question, "abc"))["change"]["mean"] == 0


def test_a_judge_that_goes_by_the_trace_has_no_position_bias():
  verdicts = [v for i in "abc" for v in both(i, 0, (2, 4), (4, 2))]
  found = bias(verdicts)
  assert found["order_decides"]["value"] == found["first_gains"]["value"] == 0
  assert found["runs_decide"] is None


def test_a_judge_that_wavers_between_runs_is_told_from_one_that_goes_by_order():
  verdicts = [v for i in "abc" for v in both(i, 0, (2, 4), (4, 2)) + both(i, 1, (4, 2), (2, 4))]
  found = bias(verdicts)
  assert (found["order_decides"]["value"], found["runs_decide"]["value"]) == (0, 1)


def test_half_of_a_preference_is_a_lean():
  verdicts = both("a", 0, (4, 2), (3, 3)) + both("b", 0, (2, 2), (3, 5))
  found = bias(verdicts)
  assert (found["first_favoured"]["value"], found["second_favoured"]["value"]) == (0.5, 0.5)


def test_traces_shown_alone_have_no_position():
  verdicts = [verdict("a", 0, ("old",), 2), verdict("a", 0, ("new",), 4)]
  found = consistency(verdicts, question("a"))
  assert found["position"] is None
  assert found["change"]["mean"] == 2


def test_runs_that_say_the_same_agree_fully_and_runs_at_random_do_not():
  same = [
    v
    for i, g in zip("abcd", (1, 2, 4, 5), strict=True)
    for r in range(3)
    for v in both(i, r, (g, 3), (3, g))
  ]
  runs = consistency(same, *map(question, "abcd"))["runs"]
  assert runs["kappa"]["value"] == runs["alpha"]["value"] == 1
  turned = [
    v
    for i, g in zip("abcd", (1, 2, 4, 5), strict=True)
    for r in range(2)
    for v in both(i, r, (g, 3) if r else (6 - g, 3), (3, g) if r else (3, 6 - g))
  ]
  runs = consistency(turned, *map(question, "abcd"))["runs"]
  assert runs["kappa"]["value"] == -1
  assert runs["alpha"]["value"] < 0
  assert consistency(both("a", 0, (1, 2), (2, 1)), question("a"))["runs"] is None


def test_truth_is_the_rank_correlation_with_trace_consistency():
  questions = [
    question(i, truth) for i, truth in zip("abc", ((0, 0.5), (0.2, 0.9), (0.1, 1)), strict=True)
  ]
  ranked = {"a": (1, 3), "b": (2, 4), "c": (1, 5)}
  verdicts = [v for i, (o, n) in ranked.items() for v in both(i, 0, (o, n), (n, o))]
  truth = consistency(verdicts, *questions)["truth"]
  assert truth["traces"] == 6
  assert truth["value"] == pytest.approx(0.9856, abs=1e-4)  # ranks 1.5 3 1.5 4 5 6, of 1 3 2 4 5 6


def test_two_judges_are_compared_on_the_traces_that_both_graded():
  one = [v for i in "ab" for v in both(i, 0, (1, 5), (5, 1))]
  rule = [
    verdict(i, 0, (n,), g, judge="rule") for i in "a" for n, g in zip(NAMES, (1, 5), strict=True)
  ]
  content = summary.summarize(judged(question("a"), question("b")), {"j": one, "rule": rule})
  [found] = content["agreement"]
  assert found["judges"] == ["j", "rule"]
  assert found["scales"]["consistency"]["traces"] == 2
  assert found["scales"]["consistency"]["kappa"]["value"] == 1
  assert found["scales"]["stability"]["kappa"]["value"] is None  # both always say 3


def test_judges_without_a_common_trace_have_no_agreement():
  one, rule = both("a", 0, (1, 5), (5, 1)), [verdict("b", 0, ("old",), 4, judge="rule")]
  content = summary.summarize(judged(question("a"), question("b")), {"j": one, "rule": rule})
  assert content["agreement"][0]["scales"]["consistency"]["kappa"]["value"] is None
