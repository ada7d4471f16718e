"""Replies read as actions, and frames chosen from a pool."""

import time

import numpy as np
import pytest

from vr_jax import records
from vr_jax.envs import retrieval_actions
from vr_jax.rewards import accuracy

OPTIONS = ("A. red", "B. green")
POOL = 64


def _parse(reply, problem_type="multiple choice", pool=POOL):
  return retrieval_actions.parse(
    reply, pool, problem_type, OPTIONS if problem_type == "multiple choice" else ()
  )


def _example(**fields):
  values = {
    "id": "q",
    "video": "v.mp4",
    "question": "What?",
    "answer": "B",
    "problem_type": "multiple choice",
    "options": OPTIONS,
    "shown": records.Span(start=0.0, end=10.0),
  }
  return records.Example(**{**values, **fields})


@pytest.mark.parametrize(
  ("reply", "expected"),
  [
    ("<think>a</think><answer>B</answer>", "B"),
    (" \n<think></think> \n<answer> b </answer>\n", "b"),
    ("<think>say <answer>A</answer>?</think><answer>B</answer>", "B"),
    ("<think>a</think>b</think>\n<answer>A</answer>", "A"),
    ("<think>see <retrieve>1,2</retrieve></think><answer>B</answer>", "B"),
  ],
)
def test_thoughts_and_then_an_answer_are_an_answer(reply, expected):
  assert _parse(reply) == retrieval_actions.Action(kind="answer", answer=expected)


@pytest.mark.parametrize(
  ("body", "start", "end"),
  [("3,9", 3, 9), (" 3 ,\n9 ", 3, 9), ("0,63", 0, 63), ("5,5", 5, 5), ("007,09", 7, 9)],
)
def test_thoughts_and_then_two_numbers_in_order_are_a_retrieval(body, start, end):
  action = _parse(f"<think>x</think>\n<retrieve>{body}</retrieve>")
  assert action == retrieval_actions.Action(kind="retrieve", start=start, end=end)


FORMATS = [
  "",
  "B",
  "<think>a</think>",
  "<answer>B</answer>",
  "<think>a<answer>B</answer>",
  "a <think>a</think><answer>B</answer>",
  "<think>a</think><answer>B</answer> b",
  "<think>a</think> so <answer>B</answer>",
  "<think>a</think><answer>B",
  "<think>a</think><retrive>1,2</retrive>",
  "<think>a</think><answer>B</retrieve>",
  "<THINK>a</THINK><answer>B</answer>",
  "<think><answer>B</answer>",
  "</think><answer>B</answer>",
  "<think>a</think><answer>A</answer><answer>B</answer>",
  "<think>a</think><answer>A</answer></think><answer>B</answer>",
  "<think>a</think><answer>A<answer>B</answer>",
  "<think>a</think><answer>A</think></answer>",
  "<think>a</think><answer><think>B</answer>",
  "<think>a</think><answer><retrieve>1,2</retrieve></answer>",
  "<think>a</think><answer>A</answer><retrieve>1,2</retrieve><answer>B</answer>",
]


@pytest.mark.parametrize("problem_type", records.PROBLEM_TYPES)
@pytest.mark.parametrize("reply", FORMATS)
def test_anything_else_has_no_format(reply, problem_type):
  assert _parse(reply, problem_type) == retrieval_actions.Action(kind="invalid", problem="format")


@pytest.mark.parametrize(
  "body",
  ["", "3", "3,", "3 9", "9,3", "3,9,12", "-1,3", "1.5,3", "a,b", "٣,٩", "3,9</retrieve>", "²,³"],
)
def test_a_retrieval_that_is_not_two_numbers_in_order_is_no_interval(body):
  action = _parse(f"<think>x</think><retrieve>{body}</retrieve>")
  assert action == retrieval_actions.Action(kind="invalid", problem="interval")


@pytest.mark.parametrize("body", ["0,64", "64,70", f"0,{'9' * 5000}", f"{'9' * 40},{'9' * 41}"])
def test_a_retrieval_outside_the_pool_is_out_of_range(body):
  action = _parse(f"<think>x</think><retrieve>{body}</retrieve>")
  assert action == retrieval_actions.Action(kind="invalid", problem="range")


@pytest.mark.parametrize(
  ("problem_type", "good", "bad"),
  [
    ("multiple choice", ["A", "b"], ["", "C", "A.", "red", "AB"]),
    (
      "numerical",
      ["3", "-2.50", "1e3", "1,000", "3.", "three", "50%", "٣", "5 km/h"],
      ["", "none", "nan", "inf", "1e999", "1_0", "3 or 4", "1,00", "9" * 51],
    ),
    ("regression", ["3.5"], ["about 3", "1_0", "3,5"]),
    ("free-form", ["a red ball", "x" * 50], ["", "x" * 51]),
    ("OCR", ["x" * 51], [""]),
  ],
)
def test_an_answer_is_of_the_kind_that_is_asked_for(problem_type, good, bad):
  def action(text):
    return _parse(f"<think>x</think><answer>{text}</answer>", problem_type)

  assert all(action(text) == retrieval_actions.Action(kind="answer", answer=text) for text in good)
  invalid = retrieval_actions.Action(kind="invalid", problem="answer")
  assert [action(text) for text in bad] == [invalid] * len(bad)


@pytest.mark.parametrize("problem_type", ["numerical", "regression"])
@pytest.mark.parametrize("text", ["3", "-2.50", "1e3", "1,000", "3.", ".5", "1_0", "٣", "nan", "x"])
def test_a_number_is_an_answer_where_the_metric_can_read_it(problem_type, text):
  reply = f"<think>x</think><answer>{text}</answer>"
  action = _parse(reply, problem_type)
  assert (action.kind == "answer") == (accuracy.accuracy(reply, text, problem_type) == 1)


LONG = {
  "thoughts": "<think>" * 100_000,
  "closings": "<think>" + "</think>" * 100_000 + "</answer>",
  "turns": "<think>" + "</think><answer>" * 50_000 + "</answer>" * 50_000,
  "spaces": "<think>" + "</think>" + " " * 500_000 + "</answer>",
  "gaps": "<think>" + ("</think>" + " " * 50) * 10_000 + "</retrieve>",
  "digits": "<think></think><retrieve>" + "9" * 500_000 + ",1</retrieve>",
  "zeros": "<think></think><retrieve>" + "0" * 500_000 + "1 , 2</retrieve>",
  "blank interval": "<think></think><retrieve>1" + " " * 500_000 + "</retrieve>",
  "number": "<think></think><answer>" + "9" * 500_000 + "</answer>",
}


@pytest.mark.parametrize("name", LONG)
def test_a_reply_of_half_a_million_letters_is_read_in_a_moment(name):
  begun = time.process_time()
  for problem_type in records.PROBLEM_TYPES:
    assert _parse(LONG[name], problem_type).kind in ("answer", "retrieve", "invalid")
  assert time.process_time() - begun < 1


def test_what_is_said_after_an_answer_is_not_read():
  answer, look = "<think></think><answer>A</answer>", "<think></think><retrieve>1,2</retrieve>"
  kinds = [
    action.kind for action in retrieval_actions.actions(_example(), POOL, [look, "?", answer, look])
  ]
  assert kinds == ["retrieve", "invalid", "answer"]


def test_frames_are_spread_evenly_and_rounded_down_as_the_paper_shows():
  uniform = (0, 4, 8, 12, 16, 21, 25, 29, 33, 37, 42, 46, 50, 54, 58, 63)
  assert retrieval_actions.spread(0, 63, 16) == uniform
  assert retrieval_actions.spread(10, 12, 8) == (10, 11, 12)
  assert retrieval_actions.spread(10, 30, 1) == retrieval_actions.spread(10, 30, 0) == (10,)
  assert retrieval_actions.spread(0, 0, 16) == (0,)


def test_a_tick_that_came_a_little_early_is_still_that_tick():
  early = _example(relevant=(records.Span(start=1.0, end=2.0),))
  assert retrieval_actions.relevant_frames(early, np.array([0.0, 0.99995, 1.99995])) == (1,)


def test_relevant_frames_are_those_within_a_span():
  times = np.arange(10.0)
  spans = (records.Span(start=2.0, end=4.0), records.Span(start=3.0, end=5.5))
  assert retrieval_actions.relevant_frames(_example(relevant=spans), times) == (2, 3, 4, 5)
  assert retrieval_actions.relevant_frames(_example(), times) == ()
  beyond = (records.Span(start=8.0, end=20.0), records.Span(start=30.0, end=40.0))
  assert retrieval_actions.relevant_frames(_example(relevant=beyond), times) == (8, 9)
  between = (records.Span(start=2.2, end=2.8),)
  assert retrieval_actions.relevant_frames(_example(relevant=between), times) == ()


def test_a_number_with_more_digits_than_any_pool_has_is_no_frame_of_a_large_one():
  reply = f"<think>t</think><retrieve>0,{10**12}</retrieve>"
  action = retrieval_actions.parse(reply, pool=100_000, problem_type="free-form")
  assert action == retrieval_actions.Action(kind="invalid", problem="range")
