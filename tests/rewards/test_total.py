"""Every text gets a reward in its range: no exception, no nan, and no input takes long."""

import time

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from vr_jax import records
from vr_jax.rewards import accuracy, process, steps
from vr_jax.rewards import format as format_lib

# st.characters() includes unpaired surrogates, which st.text() leaves out.
PIECES = st.one_of(
  st.sampled_from(
    [
      "<think>",
      "</think>",
      "<answer>",
      "</answer>",
      "\n",
      ". ",
      "1. ",
      "At 2s, ",
      "B",
      "3.5",
      "1e400",
      "<",
      "nan",
    ]
  ),
  st.text(st.characters(), max_size=12),
)
TEXTS = st.lists(PIECES, max_size=25).map("".join)

LONG = {
  "open": "<think>" * 14_286,
  "closed": "</think>" * 12_500,
  "open and closed": "<think></think>" * 6_667,
  "answers": "<answer>" * 12_500 + "</answer>",
  "stops": "<think>" + "." * 100_000,
  "spaces": "<think>." + " " * 100_000 + "</think>",
  "lines": "<think>" + "\n" * 100_000,
  "numbers": "<think>" + "1. " * 33_333,
  "times": "<think>" + "At 2s " * 16_667,
  "digits": "<answer>" + "9" * 100_000 + "</answer>",
  "commas": "<answer>" + "999," * 25_000 + "</answer>",
  "brackets": "<think>" + "(" * 100_000 + "</think><answer>" + "(" * 50_000 + "</answer>",
  "quotes": "<think>" + '."' * 50_000,
  "y": "<think>" + "y" * 100_000,
}


def all_rewards(reply, reference):
  """Rewards of one reply by every rule."""
  values = [format_lib.format_reward(reply)]
  for problem_type in records.PROBLEM_TYPES:
    values += [
      accuracy.accuracy(reply, answer, problem_type, ("A. x", reference))
      for answer in ("B", "3.5", reference)
    ]
  return values


@settings(max_examples=60)
@given(reply=TEXTS, reference=TEXTS)
def test_every_text_earns_numbers_between_zero_and_one(reply, reference):
  values = all_rewards(reply, reference)
  assert all(0 <= value <= 1 for value in values)


@settings(max_examples=40)
@given(
  replies=st.lists(TEXTS, max_size=4),
  reference=st.lists(TEXTS, max_size=4),
  options=st.sampled_from([{}, {"moves": "strict"}, {"moves": "classic"}, {"alignment": "naive"}]),
)
def test_every_trace_earns_a_process_reward_between_zero_and_one(replies, reference, options):
  replies = [f"<think>{reply}" for reply in replies]
  scored = process.process_reward(replies, [reference] * len(replies), **options)
  assert scored.reward.shape == (len(replies),)
  assert np.all((scored.reward >= 0) & (scored.reward <= 1))
  assert all(np.all((cost >= 0) & (cost <= 1)) for cost in scored.costs)
  for index, reply_steps in enumerate(scored.steps):
    assert all(step.strip() == step != "" for step in reply_steps)
    drawn = scored.alignment(index)
    assert (drawn["distance"] is None) == (drawn["path"] == []) == (scored.reward[index] == 0)


@pytest.mark.parametrize("name", LONG)
def test_a_reply_of_a_hundred_thousand_letters_is_read_in_under_a_second(name):
  reply = LONG[name]
  begun = time.process_time()
  steps.split_steps(steps.think_text(reply))
  assert all(0 <= value <= 1 for value in all_rewards(reply, "short"))
  assert time.process_time() - begun < 1


def test_long_replies_earn_a_process_reward():
  replies = [LONG["open"], LONG["y"], "<think>" + "red ball. " * 3000, "<think>" + "red " * 10_000]
  scored = process.process_reward(replies, [["red ball"] * 2] * 4)
  np.testing.assert_allclose(scored.reward, [0, 0, 1, 0], atol=1e-3)


def test_two_long_texts_are_compared_in_a_moment():
  long = "a b c d " * 12_500
  begun = time.process_time()
  assert accuracy.accuracy(f"<answer>{long} e</answer>", long, "OCR") > 0.99
  assert time.process_time() - begun < 5
