"""Judges: the rule, and what is insufficient without asking."""

import pytest

from vr_jax import records
from vr_jax.rewards import judge, judge_leak


def example(answer="B", problem_type="multiple choice", options=("A. green", "B. red")):
  return records.Example(
    id="one",
    video="one.mp4",
    question="What colour will the circle be at 8s?",
    answer=answer,
    problem_type=problem_type,
    shown=records.Span(start=0.0, end=6.0),
    options=options if problem_type == "multiple choice" else (),
  )


def case(observation, **changes):
  return judge.JudgeCase(example=example(**changes), observation=observation)


def test_the_rule_says_what_its_function_says_of_each_case_in_order():
  rule = judge.RuleJudge(lambda example, observation: example.answer in observation)
  cases = [case("B"), case("nothing"), case("C", answer="C"), case("B", answer="C")]
  assert rule.verdicts(cases) == [True, False, True, False]
  assert rule.counts() == {"asked": 4}
  assert rule.counts() == {"asked": 0}


def test_a_leak_filter_spares_the_judge_what_states_the_answer_and_keeps_the_order():
  asked = []

  def sufficient(example, observation):
    asked.append(observation)
    return "seen" in observation

  filtered = judge.LeakFilter(judge.RuleJudge(sufficient))
  cases = [case("red seen"), case("The answer is B, seen."), case("none"), case("all seen")]
  assert filtered.verdicts(cases) == [True, False, False, True]
  assert asked == ["red seen", "none", "all seen"]
  assert filtered.counts() == {"asked": 3, "leaked": 1}
  assert filtered.counts() == {"asked": 0, "leaked": 0}


STATED = {
  "choice": (
    "B",
    "(B)",
    "b.",
    "Option B.",
    "red",
    "B. red",
    "The answer is B.",
    "the correct answer to this question is (b), clearly",
    "Answer: red",
    "At 2s, the circle is green. So the final answer must be red.",
    "<answer>B</answer>",
    "ANSWER:\n  **B**",
    "B is correct.",
    "Red is the right answer here.",
    "The correct option is B because it repeats.",
    "The right choice: B red.",
  ),
  "first letter": ("The answer is A.", "the answer is a, as the circle repeats", "Answer: a"),
  "number": ("3", "The answer is 3.", "Solution: 3", "3 is the answer", "The answer: 3, I think"),
  "name": ("green and large", "The answer is: green, and large!", "Green and large is correct."),
  "decimals": ("The answer is 1,234.5.", "answer 1,234.5"),
}
SEEN = {
  "choice": (
    "",
    "At 0s, the circle is red. At 2s, the circle is green.",
    "The circle turns red at 4s",
    "The answer depends on the red circle.",
    "Look for the answer. Red circle at 2s.",
    "The answer is not red.",
    "Red is right of the box.",
    "The circle is red and the box is to the right.",
    "The answer is A.",
    "The answer is reddish",
    "There is a choice between colours; the circle is red at 0s.",
  ),
  "first letter": (
    "The answer is a matter of time.",
    "The correct option a viewer would expect is unclear.",
  ),
  "number": (
    "The answer is 3.5.",
    "At 3s, the circle is red.",
    "The answer is 13",
    "It turns 3 times",
  ),
  "name": ("At 2s, the circle is green and large.", "the answer is green"),
  "decimals": ("The answer is 1,234.56", "The answer is 1"),
}
EXAMPLES = {
  "choice": example(),
  "first letter": example("A"),
  "number": example("3", "numerical"),
  "name": example("green and large", "free-form"),
  "decimals": example("1,234.5", "regression"),
}


def pairs(texts):
  return [(kind, text) for kind, several in texts.items() for text in several]


@pytest.mark.parametrize(("kind", "text"), pairs(STATED))
def test_an_answer_that_is_stated_as_an_answer_is_a_leak(kind, text):
  assert judge_leak.states_answer(EXAMPLES[kind], text)


@pytest.mark.parametrize(("kind", "text"), pairs(SEEN))
def test_what_was_seen_is_no_leak(kind, text):
  assert not judge_leak.states_answer(EXAMPLES[kind], text)


@pytest.mark.parametrize("answer", ["", "?", "(.*)", "a\\", "\ud800"])
def test_any_answer_and_any_observation_give_a_verdict(answer):
  for text in ("", answer, "the answer is " * 2000, "(" * 5000, "\ud800 is the answer"):
    assert judge_leak.states_answer(example(answer, "free-form"), text) in (True, False)


def test_an_example_without_an_answer_has_none_to_state():
  assert not judge_leak.states_answer(example("", "free-form"), "the answer is")
