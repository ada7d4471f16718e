"""Traces in several wordings, or of several lengths, say the same; older data stay as they are."""

import dataclasses
import hashlib
import json

import numpy as np
import pytest

from vr_jax import errors, records
from vr_jax.rewards import steps as steps_lib
from vr_jax.worlds import claims, consistency, questions, truth, wording, write
from vr_jax.worlds import config as config_lib

SEVERAL = config_lib.WorldConfig(
  wordings=config_lib.MOST_WORDINGS, behaviours_per_object=2, objects_max=4
)
RESTING = tuple(name for name in config_lib.BEHAVIOURS if name != "bounce")
LONGER = config_lib.WorldConfig(tellings=3, behaviours=RESTING, seconds=9.0, shown=6.0, dwell=1.5)


def examples(world, count=40):
  for index in range(count):
    yield from write.sample_video(world, seed=7, index=index, questions=1)[1]


def test_worlds_of_before_give_the_same_data():
  found = hashlib.sha256()
  for index in range(60):
    for example in write.sample_video(config_lib.WorldConfig(), seed=3, index=index, questions=2)[
      1
    ]:
      found.update(json.dumps(write.to_json(example)).encode())
  # Computed before there were more wordings than four, or more tellings than one.
  assert found.hexdigest()[:16] == "e0bf764e29d99bd6"


@pytest.mark.parametrize("family", config_lib.FAMILIES)
def test_a_trace_claims_the_same_in_every_wording(family):
  world = dataclasses.replace(SEVERAL, families=(family,))
  for index in range(12):
    rng = np.random.default_rng(index)
    scene, (question,) = questions.sample(rng, world, 1)
    facts = [truth.make_fact(scene, *pair, 1) for pair in question.plan.asked]
    for future in (False, True):
      told = [wording.step(number, 2.0, facts, future=future) for number in range(8)]
      assert (
        len(set(told[:4])) >= 3 and len(set(told[4:])) == 4 and not set(told[:4]) & set(told[4:])
      )
      read = [set(claims.read_claims([text])) for text in told]
      assert read[0] and all(each == read[0] for each in read), told
      assert steps_lib.split_steps("\n".join(told)) == told


def test_questions_have_as_many_wordings_and_none_has_words_of_others_in_the_first_four():
  texts = {
    number: wording.question("choice", "colour", number, 8.0, "circle", "") for number in range(8)
  }
  assert len(set(texts.values())) == 8
  assert all("circle" in texts[number] and "disc" in texts[number + 4] for number in range(4))


@pytest.mark.parametrize("world", [SEVERAL, LONGER], ids=["wordings", "tellings"])
def test_reference_traces_are_wholly_consistent(world):
  for example in examples(world):
    trace = [step.text for step in example.steps]
    result = consistency.trace_consistency(trace, example.states, reference=trace)
    assert result.score == 1.0, trace


def test_tellings_make_traces_of_several_lengths_in_the_order_of_time():
  lengths = set()
  for example in examples(LONGER):
    starts = [step.start for step in example.steps]
    assert starts == sorted(set(starts))
    for step, after in zip(example.steps, example.steps[1:], strict=False):
      assert step.end == pytest.approx(after.start)
    cells = {start // 1.5 for start in starts}
    assert len(cells) <= len(starts) <= 3 * len(cells)
    lengths.add(len(starts) / len(cells))
  assert len(lengths) > 8


def test_a_change_is_told_once():
  behaviour = wording._STEPS.index(next(step for step in wording._STEPS if step[2]))
  world = dataclasses.replace(LONGER, behaviours=("cycle",), families=("choice",))
  scene, (question,) = questions.sample(np.random.default_rng(0), world, 1)

  class Most(np.random.Generator):
    """Draws the wording that tells changes, then as many tellings as there can be."""

    def integers(self, below, *_):
      return behaviour if below == 8 else below - 1

  steps = truth.reference_steps(
    scene,
    question.plan.asked,
    records.Span(start=0, end=6),
    Most(np.random.PCG64(0)),
    until=6,
    wordings=8,
    tellings=3,
  )
  told = ["turns" in step.text for step in steps]
  assert len(steps) == 12 and told[:3] == [False] * 3
  assert told[3:] == [True, False, False] * 3


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"wordings": 9}, "worlds.wordings: 9 must lie in 1..8"),
    ({"tellings": 5}, "worlds.tellings: 5 must lie in 1..4"),
    ({"tellings": 2}, "worlds.tellings: 'bounce' never rests"),
    ({"tellings": 3, "behaviours": RESTING}, "worlds.tellings: 2.0 s in 3 parts are no whole"),
  ],
)
def test_worlds_that_cannot_be_told_are_refused(changes, says):
  with pytest.raises(errors.InputError, match=says.replace("[", r"\[")):
    config_lib.WorldConfig(**changes)
