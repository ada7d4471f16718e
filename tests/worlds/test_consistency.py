import dataclasses
import time

import hypothesis
from hypothesis import strategies
import pytest

from vr_jax import records
from vr_jax.worlds import claims as claims_lib
from vr_jax.worlds import config as config_lib
from vr_jax.worlds import consistency, write

FULL = config_lib.WorldConfig(behaviours_per_object=2, objects_max=4)
LONG = config_lib.WorldConfig(seconds=18, shown=12, periods=(2, 3, 4), dwell=1.5)
STATES = tuple(
  records.State(object="circle", time=2.0 * cell, attribute="colour", value=value)
  for cell, value in enumerate(["red", "green", "green", "red", "green"])
)
TRACE = (
  "At 0s, the circle is red.",
  "At 2s, the circle turns green.",
  "At 4s, the circle is green.",
  "At 6s, the circle turns red.",
  "So at 8s, the circle will be green.",
)


def examples(config, count, **fields):
  config = dataclasses.replace(config, **fields)
  for index in range(count):
    yield from write.sample_video(config, seed=5, index=index, questions=1)[1]


def texts(example):
  return [step.text for step in example.steps]


def parse(text):
  """The claims of a text as (object, value, start), with "not" before a denied value."""
  return [
    (c.object, f"not {c.value}" if c.denied else c.value, c.start)
    for c in claims_lib.read_claims([text])
  ]


@pytest.mark.parametrize("config", [FULL, LONG], ids=["full", "long"])
@pytest.mark.parametrize("family", config_lib.FAMILIES)
def test_reference_traces_are_wholly_consistent(family, config):
  for example in examples(config, 40, families=(family,)):
    result = consistency.trace_consistency(texts(example), example.states, reference=texts(example))
    assert result.score == 1.0, example.steps
    assert result.claims >= len(example.steps) and result.contradicted == result.uncovered == 0


@pytest.mark.parametrize(
  "behaviour", [behaviour for behaviour in config_lib.BEHAVIOURS if behaviour != "still"]
)
def test_reference_traces_of_each_life_are_wholly_consistent(behaviour):
  for example in examples(FULL, 20, behaviours=(behaviour,), families=("choice",), objects_max=2):
    assert consistency.trace_consistency(texts(example), example.states).score == 1.0


def test_a_trace_is_less_consistent_where_one_state_is_altered():
  for example in examples(FULL, 60):
    claims = claims_lib.read_claims(texts(example))
    wrong = [
      dataclasses.replace(state, value="cyan")
      if (state.object, state.attribute, state.time) == _key(claims[1])
      else state
      for state in example.states
    ]
    result = consistency.trace_consistency(texts(example), wrong, reference=texts(example))
    assert result.score < 1.0 and result.contradicted == 1


def _key(claim):
  return (claim.object, claim.attribute, claim.start)


def test_a_wrong_word_in_the_trace_lowers_its_score():
  wrong = [step.replace("turns green", "turns blue") for step in TRACE]
  assert consistency.trace_consistency(TRACE, STATES).score == 1.0
  assert consistency.trace_consistency(wrong, STATES).score == 4 / 5


@pytest.mark.parametrize(
  "paraphrase",
  [
    [
      "The circle is red at 0s and green at 2s, still green at 4s.",
      "Red at 6s, the circle is green at 8s.",
    ],
    ["0s: red circle", "2s: green circle", "4s: green disc", "6s: red ball", "8s: green circle"],
    [
      "At 0 seconds we see a red circle.",
      "It is green at 2 s.",
      "It stays green at 4 sec.",
      "At 6s it's red.",
      "I think at 8s it would be green again.",
    ],
    [
      "From 0s to 2s the circle is red.",
      "Between 2s and 6s the circle is green; at 6s it is red.",
      "It'll be green at t=8.",
    ],
    [
      "AT 0S THE CIRCLE IS RED! AT 2S THE CIRCLE TURNS GREEN! By 4 it is green. 6s: it is red. "
      "8s: green."
    ],
  ],
)
def test_a_paraphrase_scores_as_high_as_the_reference(paraphrase):
  assert consistency.trace_consistency(paraphrase, STATES, reference=TRACE).score == 1.0


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    (
      "At 2s, the large red star is at the upper left.",
      [("star", "large", 2), ("star", "red", 2), ("star", "top left", 2)],
    ),
    (
      "At 2s the circle and the star are inside the box.",
      [("circle", "inside", 2), ("star", "inside", 2)],
    ),
    (
      "At 2s the circle is inside and the star is outside.",
      [("circle", "inside", 2), ("star", "outside", 2)],
    ),
    ("The square isn't red at 4s.", [("square", "not red", 4)]),
    ("At 4s the square is not in the box.", [("square", "outside", 4)]),
    ("At 4s the square is no longer visible.", [("square", "hidden", 4)]),
    ("The square cannot be seen at 4s.", [("square", "hidden", 4)]),
    ("The cross leaves the box at 2.5s.", [("cross", "outside", 2.5)]),
    ("At 0s, the cross is at the middle right.", [("cross", "middle right", 0)]),
    (
      "At 0s, the cross is in the middle, at 2s at the bottom center.",
      [("cross", "centre", 0), ("cross", "bottom centre", 2)],
    ),
    (
      "At 6s, big and violet, the diamond is covered.",
      [("diamond", "large", 6), ("diamond", "purple", 6), ("diamond", "hidden", 6)],
    ),
    ("The circle is red.", []),
    ("At 2s something is afoot.", []),
    ("At 2s it is green.", []),
    ("", []),
  ],
)
def test_sentences_are_read_as_they_are_meant(text, expected):
  assert parse(text) == expected


def test_what_the_trace_leaves_out_counts_against_it():
  result = consistency.trace_consistency(TRACE[:2], STATES, reference=TRACE)
  # The change back to red at 6 s and to green at 8 s are left out; green at 4 s is no change.
  assert (result.supported, result.uncovered, result.score) == (2, 2, 0.5)
  assert consistency.trace_consistency(TRACE[:2], STATES).score == 0.5


def test_an_empty_or_silent_trace_scores_0():
  for steps in ([], [""], ["The answer is B."], ["red red red"]):
    result = consistency.trace_consistency(steps, STATES, reference=TRACE)
    assert result.score == 0.0 and result.claims == 0 and result.uncovered == 4


def test_repeating_a_claim_or_denying_the_false_earns_nothing():
  padded = [*TRACE[:2], *TRACE[:1] * 50, "At 0s the circle is not blue.", "At 2s it is not red."]
  assert consistency.trace_consistency(padded, STATES) == consistency.trace_consistency(
    TRACE[:2], STATES
  )
  denied = consistency.trace_consistency([*TRACE, "At 0s the circle is not red."], STATES)
  assert denied.contradicted == 1 and denied.score == 5 / 6


@pytest.mark.parametrize(
  "step", ["At 2s, the star is red.", "At 90s, the circle is red.", "At 0s, the circle is large."]
)
def test_what_is_not_in_the_video_is_contradicted(step):
  result = consistency.trace_consistency([*TRACE, step], STATES, reference=TRACE)
  assert result.contradicted == 1 and result.score == 5 / 6


def test_a_claim_about_a_stretch_must_hold_all_along():
  result = consistency.trace_consistency(["From 0s to 4s the circle is red."], STATES)
  assert (result.supported, result.contradicted) == (1, 1)


def test_the_conclusion_is_the_value_claimed_for_the_latest_time():
  assert consistency.concluded_value(TRACE, STATES) == "green"
  assert consistency.concluded_value(TRACE[::-1], STATES) == "green"
  assert consistency.concluded_value([*TRACE, "At 8s, the circle is blue."], STATES) == "blue"
  assert consistency.concluded_value(["Who knows?"], STATES) is None
  aside = [*TRACE, "At 9s, the star is blue."]
  assert consistency.concluded_value(aside, STATES) == "blue"
  assert consistency.concluded_value(aside, STATES, reference=TRACE) == "green"


def test_a_reference_trace_implies_the_answer():
  for example in examples(FULL, 150):
    implied = consistency.implied_answer(texts(example), example)
    assert implied == (None if example.problem_type == "numerical" else example.answer)


def test_a_conclusion_that_is_no_option_implies_no_answer():
  example = next(e for e in examples(FULL, 50, families=("choice",), behaviours=("cycle",)))
  wrong = [*texts(example)[:-1], f"At 8s, the {example.states[0].object} will be cyan."]
  assert consistency.implied_answer(wrong, example) is None


@hypothesis.given(strategies.lists(strategies.text(), max_size=6))
def test_any_text_gives_a_number(steps):
  result = consistency.trace_consistency(steps, STATES, reference=steps)
  assert 0.0 <= result.score <= 1.0
  consistency.concluded_value(steps, STATES)


_WORDS = strategies.sampled_from(
  [
    "circle",
    "star",
    "red",
    "green",
    "not",
    "2s",
    "4s",
    "at",
    "from",
    "to",
    "0s",
    "the",
    "and",
    ",",
    ".",
    "inside",
    "box",
    "top",
    "left",
    "hidden",
    "n't",
    "9",
    "–",
    "large",
  ]
)


@hypothesis.given(strategies.lists(_WORDS, max_size=40).map(" ".join))
def test_any_jumble_of_the_simulators_words_gives_a_number(text):
  result = consistency.trace_consistency([text], STATES, reference=TRACE)
  assert 0.0 <= result.score <= 1.0
  assert result.claims == result.supported + result.contradicted


@pytest.mark.parametrize(
  "piece",
  ["the circle ", "9", "1s ", "1s red ", "1s red circle ", "a\n", "from ", " ", "circle and "],
)
def test_a_hundred_kilobytes_are_read_in_linear_time(piece):
  text = piece * (100_000 // len(piece))
  start = time.perf_counter()
  consistency.trace_consistency([text], STATES, reference=TRACE)
  # A quadratic parser would take minutes. The type checks of the tests alone take a second.
  assert time.perf_counter() - start < 10
