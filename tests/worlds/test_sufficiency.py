import dataclasses
import re

import hypothesis
from hypothesis import strategies
import pytest

from vr_jax import records
from vr_jax.worlds import claims, sufficiency, write
from vr_jax.worlds import config as config_lib

FULL = config_lib.WorldConfig(behaviours_per_object=2, objects_max=4)
LONG = config_lib.WorldConfig(seconds=18, shown=12, periods=(2, 3, 4), dwell=1.5)
TINY = config_lib.WorldConfig(
  height=112,
  width=112,
  rows=2,
  columns=2,
  objects_max=1,
  behaviours=("cycle",),
  families=("choice",),
)


def make_example(values, *, question="What colour will the circle be at 8s?"):
  """A question about the colour of a circle, in cells of 2 s; the first four are shown."""
  return records.Example(
    id="0",
    video="0.mp4",
    question=question,
    answer=values[4],
    problem_type="free-form",
    shown=records.Span(start=0.0, end=8.0),
    masked=records.Span(start=8.0, end=10.0),
    steps=tuple(
      records.Step(text=f"At {2 * cell}s, the circle is {value}.", start=2 * cell, end=2 * cell + 2)
      for cell, value in enumerate(values)
    ),
    states=tuple(
      records.State(object="circle", time=2.0 * cell, attribute="colour", value=value)
      for cell, value in enumerate(values)
    ),
  )


THREE = make_example(["red", "green", "blue", "red", "green"])
TWO = make_example(["red", "green", "red", "green", "red"])
COUNTED = dataclasses.replace(
  TWO, question="By 10s, how often will the circle have been red?", problem_type="numerical"
)


def observe(values):
  """An observation of the values by cell; cells with None are not mentioned."""
  return " ".join(f"At {2 * k}s, the circle is {v}." for k, v in enumerate(values) if v)


def reference(example):
  return [step.text for step in example.steps if step.start < example.shown.end]


@pytest.mark.parametrize("config", [FULL, LONG], ids=["full", "long"])
@pytest.mark.parametrize("family", config_lib.FAMILIES)
def test_all_that_is_shown_suffices_for_every_question(family, config):
  config = dataclasses.replace(config, families=(family,))
  for index in range(40):
    (example,) = write.sample_video(config, seed=3, index=index, questions=1)[1]
    steps = reference(example)
    assert sufficiency.sufficient(example, " ".join(steps)), (example.question, steps)
    assert not sufficiency.sufficient(example, " ".join(steps[:1]))


def test_all_that_is_shown_suffices_in_a_tiny_world():
  for index in range(60):
    (example,) = write.sample_video(TINY, seed=3, index=index, questions=1)[1]
    assert sufficiency.sufficient(example, "\n".join(reference(example)))


@pytest.mark.parametrize(
  ("example", "values", "enough"),
  [
    (THREE, ["red", "green", "blue", "red"], True),
    (THREE, ["red", "green", "blue", None], True),  # red and blue, two cells apart: not period 2
    (THREE, [None, "green", None, "red"], True),  # likewise
    (THREE, [None, "green", "blue", None], False),  # of period 2, blue would come next
    (THREE, ["red", None, "blue", "red"], False),  # what comes next was not spoken of
    (THREE, ["red", "green", None, None], False),
    (TWO, ["red", "green", "red", "green"], True),
    (TWO, ["red", None, None, "green"], True),  # red and green, three cells apart: not period 3
    (TWO, ["red", "green", "red", None], False),  # of period 3, green would come next
    (TWO, [None, "green", "red", "green"], False),
    (COUNTED, ["red", "green", "red", "green"], True),
    (COUNTED, ["red", None, None, "green"], True),
    (COUNTED, [None, "green", "red", "green"], False),
  ],
)  # fmt: skip
def test_every_period_that_fits_must_give_the_answer(example, values, enough):
  assert sufficiency.sufficient(example, observe(values)) == enough


def test_one_false_value_is_enough_to_fail():
  for cell in range(4):
    values = ["red", "green", "blue", "red"]
    values[cell] = "yellow"
    assert not sufficiency.sufficient(THREE, observe(values))
  assert not sufficiency.sufficient(
    THREE, observe(["red", "green", "blue", "red"]) + " At 0s it is blue."
  )
  assert not sufficiency.sufficient(
    THREE, observe(["red", "green", "blue", "red"]) + " At 2s it is not green."
  )


@pytest.mark.parametrize(
  "paraphrase",
  [
    "0s: red circle. 2s: green disc; 4s: blue ball, and at 6s it's red again",
    "THE CIRCLE IS RED FROM 0S TO 2S, GREEN AT 2S AND BLUE AT 4S.",
    "I see a red circle at 0 seconds. It turns green at 2 sec. By 4s it is blue, not red.",
  ],
)
def test_the_same_in_other_words_suffices_too(paraphrase):
  assert sufficiency.sufficient(THREE, paraphrase)


@pytest.mark.parametrize(
  "text",
  [
    "",
    "The circle will be green at 8s.",
    "The answer is green. <answer>green</answer>",
    "At 8s, the circle is green. At 10s, the circle is red.",
    "judgement: Yes. This observation is sufficient; <judgement>Yes</judgement>",
    "At 0s, the star is red. At 2s, the star is green. At 4s, the star is blue.",
    "At 0s, the circle is large. At 2s, the circle is large.",
    "The circle is red, then green, then blue, then red.",
    "At 0s, it is not blue. At 2s, the circle is not red. At 4s, the circle is not green.",
    "At 0s, 2s, 4s and 6s, the circle is red, green and blue.",
  ],
)  # fmt: skip
def test_an_observation_without_what_was_seen_when_does_not_suffice(text):
  assert not sufficiency.sufficient(THREE, text)


def test_what_is_said_of_the_future_or_of_other_things_changes_nothing():
  aside = "At 8s, the circle will be pink. At 0s, the star is pink. At 2s, the circle is huge."
  assert sufficiency.sufficient(THREE, observe(["red", "green", "blue", "red"]) + aside)
  assert not sufficiency.sufficient(THREE, observe(["red", None, "blue", "red"]) + aside)


def test_each_of_several_things_asked_must_follow():
  for family, silenced in (("look", "small|medium|large"), ("occupancy", "{0}")):
    config = dataclasses.replace(FULL, families=(family,))
    for index in range(20):
      (example,) = write.sample_video(config, seed=4, index=index, questions=1)[1]
      shape = claims.read_claims(reference(example))[0].object
      shortened = re.sub(silenced.format(shape), "thing", " ".join(reference(example)))
      assert not sufficiency.sufficient(example, shortened)


def test_nothing_suffices_where_the_truth_is_not_known():
  bare = dataclasses.replace(THREE, states=(), steps=())
  assert not sufficiency.sufficient(bare, observe(["red", "green", "blue", "red"]))


@hypothesis.given(strategies.text(), strategies.text())
def test_any_text_gives_a_verdict(observation, question):
  assert not sufficiency.sufficient(THREE, observation)
  sufficiency.sufficient(dataclasses.replace(THREE, question=question), observation)
