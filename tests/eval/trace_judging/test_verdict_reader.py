"""Grades in replies are read whatever surrounds them; nothing is guessed or rounded."""

import json
import time

from hypothesis import given
from hypothesis import strategies as st
import pytest

from vr_jax.eval.trace_judging import grade, rubric, verdict_reader

ONE = '{"consistency": 4, "stability": 2, "reason": "The end is missing."}'
TWO = '{"first": {"consistency": 4, "stability": 2}, "second": {"consistency": 1, "stability": 5}}'


def alone(reply):
  found = verdict_reader.read(reply, rubric.ALONE)
  return None if found is None else found[0].scores


def pair(reply):
  found = verdict_reader.read(reply, rubric.PLACES)
  return None if found is None else tuple(each.scores for each in found)


@pytest.mark.parametrize(
  "reply",
  [
    ONE,
    f"Here it is:\n```json\n{ONE}\n```\nThanks.",
    f"<think>First I thought {TWO}.</think>{ONE}",
    f"{ONE} To repeat: {ONE}",
    f'{{"result": {ONE}}}',
    f'{{"trace": {ONE}}}',
    '{"Consistency": "4/5", "STABILITY": 2.0}',
    '{"consistency": "4", "stability": " 2 / 5 ", "reason": null, "confidence": 0.5}',
    '{"consistency": 4, "stability": 2, "reason": "It says {\\"consistency\\": 5} itself."}',
    f"{{ I start over: {ONE}",
  ],
)
def test_a_verdict_is_read_whatever_surrounds_it(reply):
  assert alone(reply) == (4, 2)


@pytest.mark.parametrize(
  "reply",
  [
    TWO,
    TWO.replace("first", "First trace").replace("second", "second_trace"),
    f"```\n{TWO}\n```",
    f'{{"grades": {TWO}}}',
    '{"second": {"consistency": 1, "stability": 5}, "first": {"stability": 2, "consistency": 4}}',
  ],
)
def test_two_traces_are_told_apart_by_name(reply):
  assert pair(reply) == ((4, 2), (1, 5))


@pytest.mark.parametrize(
  "reply",
  [
    "",
    "Consistency: 4, stability: 2",
    "<think>" + ONE,
    '{"consistency": 4}',
    '{"consistency": 3.5, "stability": 2}',
    '{"consistency": 0, "stability": 2}',
    '{"consistency": 6, "stability": 2}',
    '{"consistency": -4, "stability": 2}',
    '{"consistency": true, "stability": 2}',
    '{"consistency": null, "stability": 2}',
    '{"consistency": [4], "stability": 2}',
    '{"consistency": "4 or 5", "stability": 2}',
    '{"consistency": NaN, "stability": 2}',
    '{"consistency": 4, "stability": 2, "Stability": 3}',
    ONE[:-1],
    f'{ONE} or rather {{"consistency": 5, "stability": 5}}',
    TWO,
    '{"a": ' * 3000,
    "x" * 20_001 + ONE,
  ],
)
def test_what_is_no_clear_verdict_is_none(reply):
  assert alone(reply) is None


@pytest.mark.parametrize(
  "reply", [ONE, '{"first": {"consistency": 4, "stability": 2}}', TWO + TWO.replace("1", "3")]
)
def test_a_verdict_that_lacks_a_trace_or_has_two_values_for_it_is_none(reply):
  assert pair(reply) is None


def test_hostile_nesting_takes_no_time():
  begin = time.process_time()
  assert pair('{"first": ' * 1999) is None
  assert pair("{" * 20_000) is None
  assert time.process_time() - begin < 2


@given(
  st.text()
  | st.recursive(
    st.integers() | st.text(),
    lambda inner: st.dictionaries(
      st.sampled_from(["first", "second", "consistency", "stability", "x"]), inner
    ),
  ).map(json.dumps)
)
def test_any_reply_gives_grades_within_bounds_or_none(reply):
  for places in (rubric.ALONE, rubric.PLACES):
    found = verdict_reader.read(reply, places)
    assert found is None or (
      len(found) == len(places)
      and all(score in range(1, 6) for each in found for score in each.scores)
    )


def test_a_grade_outside_of_the_scale_can_not_be_made():
  for wrong in (0, 6, True):
    with pytest.raises(ValueError, match="stability should be a whole number from 1 to 5"):
      grade.TraceGrade(consistency=3, stability=wrong)
