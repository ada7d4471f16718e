"""Reward functions of a user: what they return, and what is said where they fail."""

import numpy as np
import pytest

from vr_jax import errors, records
from vr_jax.rewards import reward_function

EXAMPLES = [
  records.Example(
    id=f"q{number}",
    video="v.mp4",
    question="What?",
    answer="x",
    problem_type="free-form",
    shown=records.Span(start=0.0, end=1.0),
    extra={"wanted": number},
  )
  for number in range(3)
]
REPLIES = ["a", "bb", "ccc"]


def reward(function):
  return reward_function.Reward(name="mine", weight=1.0, function=function, title="f.py:mine")


def _divides(replies, examples):
  return [1 / (2 - example.extra["wanted"]) for example in examples]


def _needs_all(replies, examples):
  if len(replies) > 1:
    raise RuntimeError("two\nlines")
  return [0.0]


WRONG = {
  "raises on one": (_divides, "example q2: ZeroDivisionError"),
  "raises on all together": (_needs_all, "example q0: RuntimeError: two lines (test_reward"),
  "is not finite": (lambda r, e: [0.0, float("nan"), 1.0], "example q1: returned nan"),
  "is infinite": (lambda r, e: [0.0, 1.0, -float("inf")], "example q2: returned -inf"),
  "is nothing": (lambda r, e: [0.0, None, 1.0], "example q1: returned nan"),
  "is a text": (lambda r, e: [0.0, "good", 1.0], "example q1: returned [0.0, 'good', 1.0]"),
  "is too short": (lambda r, e: [0.0], "shape (1,) for 3 replies"),
  "is a number": (lambda r, e: 1.0, "shape () for 3 replies"),
  "is a table": (lambda r, e: np.zeros((3, 1)), "shape (3, 1) for 3 replies"),
  "is ragged": (lambda r, e: [[0.0], [1.0, 2.0], 3.0], "example q0: returned [[0.0]"),
}


@pytest.mark.parametrize(("function", "says"), WRONG.values(), ids=WRONG)
def test_what_is_no_number_for_each_reply_is_one_line_that_names_function_and_example(
  function, says
):
  with pytest.raises(errors.InputError) as error:
    reward(function)(REPLIES, EXAMPLES)
  assert str(error.value).startswith("f.py:mine: example q")
  assert says in str(error.value) and "\n" not in str(error.value)


def test_a_function_gets_replies_and_their_examples():
  scores = reward(lambda r, e: [len(a) + b.extra["wanted"] for a, b in zip(r, e, strict=True)])
  np.testing.assert_array_equal(scores(REPLIES, EXAMPLES), np.float32([1, 3, 5]))
  assert scores(REPLIES, EXAMPLES).dtype == np.float32


def test_weights_stand_behind_names_or_in_the_config(tmp_path):
  path = tmp_path / "mine.py"
  path.write_text(
    "import beside\ndef f(replies, examples):\n  return [beside.ONE for _ in replies]\n"
  )
  (tmp_path / "beside.py").write_text("ONE = 1.0\n")
  own = {"accuracy": lambda r, e: [0.0] * len(r)}
  found = reward_function.resolve((f"{path}:f*0.25", "accuracy"), own, {"accuracy": 2.0, "f": 9.0})
  assert [(each.name, each.weight) for each in found] == [("f", 0.25), ("accuracy", 2.0)]
  assert found[0](REPLIES, EXAMPLES).tolist() == [1.0, 1.0, 1.0]
