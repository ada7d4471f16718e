import collections
import dataclasses

import numpy as np
import pytest

from tests.worlds import blind
from vr_jax import errors, records
from vr_jax.data import batches, ingest, sampling
from vr_jax.envs import retrieval_actions
from vr_jax.worlds import config as config_lib
from vr_jax.worlds import consistency, render, sufficiency, write
from vr_jax.worlds import questions as questions_lib
from vr_jax.worlds import scene as scene_lib

MOMENT = config_lib.WorldConfig(
  height=32,
  width=32,
  rows=2,
  columns=2,
  seconds=64.0,
  shown=64.0,
  fps=1,
  dwell=4.0,
  objects_max=2,
  behaviours=("flicker",),
  families=("moment",),
)
LAMP = dataclasses.replace(MOMENT, behaviours=("peek",), families=("lamp",))
WORLDS = pytest.mark.parametrize("config", [MOMENT, LAMP], ids=["moment", "lamp"])


def videos(config, count, **fields):
  fields = {"seed": 3, "questions": 1} | fields
  return [write.sample_video(config, index=index, **fields) for index in range(count)]


def asked(config, count):
  rngs = (np.random.default_rng([9, index]) for index in range(count))
  return [questions_lib.sample(rng, config, 1) for rng in rngs]


def images(scene):
  return np.stack([frame.image for frame in render.iterate_frames(scene)])


def with_answer(scene, plan, colour):
  """The same scene with another colour as the answer."""
  ((shape, _),) = plan.asked
  thing = scene.object(shape)
  other = dataclasses.replace(thing, colour=colour)
  if plan.family == "moment":
    values = list(thing.behaviours[0].values)
    values[plan.cell] = colour
    other = dataclasses.replace(
      thing, behaviours=(scene_lib.Behaviour(kind="flicker", values=tuple(values)),)
    )
  objects = tuple(other if each is thing else each for each in scene.objects)
  return dataclasses.replace(scene, objects=objects)


@WORLDS
def test_what_is_asked_shows_in_a_short_span_of_minutes_and_the_record_says_which(config):
  for scene, (example,) in videos(config, 20):
    assert example.problem_type == "multiple choice" and example.masked is None
    assert example.shown == records.Span(start=0.0, end=64.0)
    (span,) = example.relevant
    assert (span.end - span.start, span.start % 4) == (4, 0)
    (step,) = example.steps
    assert (step.start, step.end) == (span.start, span.end)
    cell = round(span.start / 4)
    right = {option[0]: option[3:] for option in example.options}[example.answer]
    (name,) = [thing.shape for thing in scene.objects if f" {thing.shape} " in step.text]
    assert scene.value(scene.object(name), "colour", cell) == right
    assert right in step.text and f"{span.start:g}s" in step.text
    if config is LAMP:
      line = [scene.value(scene.object(name), "visibility", at) for at in range(16)]
      assert [at for at, value in enumerate(line) if value == "visible"] == [cell]
    else:
      assert f"{span.start:g}s" in example.question


@WORLDS
def test_frames_outside_the_span_are_the_same_whatever_the_answer_is(config):
  for fps in (1, 8):
    scene, (question,) = questions_lib.sample(
      np.random.default_rng(fps), dataclasses.replace(config, fps=fps), 1
    )
    now = scene.value(scene.object(question.plan.asked[0][0]), "colour", question.plan.cell)
    other = next(colour for colour in config.colours if colour != now)
    same = images(scene) == images(with_answer(scene, question.plan, other))
    same = same.reshape(16, 4 * fps, -1).all(axis=-1)
    assert not same[question.plan.cell].any()
    assert np.delete(same, question.plan.cell, axis=0).all()


def test_options_that_were_never_seen_elsewhere_are_not_right_more_often():
  hits, questions = [], []
  for scene, (question,) in asked(dataclasses.replace(MOMENT, seconds=16.0, shown=16.0), 1500):
    ((shape, _),) = question.plan.asked
    values = list(scene.object(shape).behaviours[0].values)
    del values[question.plan.cell]
    rarest = min(question.options, key=lambda option: values.count(option[3:]))
    hits.append(rarest[0] == question.answer)
    questions.append(question)
  assert abs(blind.margin(np.array(hits), questions)) < 1.3


@pytest.mark.parametrize("predictor", [blind.majority, blind.naive_bayes, blind.option_scores])
@WORLDS
def test_a_blind_predictor_scores_chance_on_searches(config, predictor):
  questions = [question for _, (question,) in asked(config, 1200)]
  assert blind.margin(predictor(questions[:600], questions[600:]), questions[600:]) < 1
  letters = collections.Counter(question.answer for question in questions)
  assert set(letters) == set("ABCD") and min(letters.values()) > 240


@WORLDS
def test_a_trace_is_true_and_suffices_where_it_tells_what_was_seen_then(config):
  for _, (example,) in videos(config, 20):
    (right,) = (step.text for step in example.steps)
    earlier = right.replace(f"{example.relevant[0].start:g}s", "0s")
    whole = consistency.trace_consistency([right], example.states, reference=[right])
    assert (whole.score, whole.claims) == (1.0, 1)
    assert consistency.implied_answer([right], example) == example.answer
    assert sufficiency.sufficient(example, right)
    if example.relevant[0].start:
      assert consistency.trace_consistency([earlier], example.states, reference=[right]).score < 1
      assert consistency.implied_answer([earlier], example) is None
      assert not sufficiency.sufficient(example, earlier)


def test_what_a_trace_says_of_other_times_is_no_conclusion_and_no_period():
  values = ("red", "green", "red", "green", "red", "green", "red", "blue")
  for _, (example,) in videos(MOMENT, 5):
    shape = example.states[0].object
    example = dataclasses.replace(
      example,
      relevant=(records.Span(start=16.0, end=20.0),),
      options=("A. red", "B. green"),
      steps=(records.Step(text=f"At 16s, the {shape} is red.", start=16.0, end=20.0),),
      states=tuple(
        records.State(object=shape, time=4.0 * cell, attribute="colour", value=value)
        for cell, value in enumerate(values)
      ),
    )
    steps = [f"At {4 * cell}s, the {shape} is {value}." for cell, value in enumerate(values)]
    assert consistency.implied_answer(steps, example) == "A"
    assert sufficiency.sufficient(example, " ".join(steps))
    assert not sufficiency.sufficient(example, " ".join(steps[:4]))


def test_a_lamp_is_seen_among_eight_frames_and_what_it_lights_seldom():
  lamps = peeks = 0
  for scene, _ in videos(dataclasses.replace(LAMP, objects_max=1), 60):
    poses = [scene_lib.pose(scene, scene.objects[0], t) for t in retrieval_actions.spread(0, 63, 8)]
    lamps += any(pose.lit for pose in poses)
    peeks += any(pose.covered == 0 for pose in poses)
    assert all(pose.lit for pose in poses if pose.covered == 0)
  assert lamps == 60 and peeks < 40


def test_questions_about_one_video_ask_for_different_times():
  for _, examples in videos(dataclasses.replace(MOMENT, objects_max=1), 10, questions=3):
    assert len({example.relevant for example in examples}) == 3


@WORLDS
def test_from_the_file_to_the_pool_the_relevant_frames_are_those_of_the_span(config, tmp_path):
  write.write_dataset(tmp_path / "raw", config, videos=3, seed=0, questions_per_video=1)
  rule = sampling.PoolRule(frames=64)
  ingest.ingest(
    tmp_path / "raw" / "videos",
    tmp_path / "raw" / "annotations.jsonl",
    tmp_path / "out",
    ingest.IngestConfig(fps=1.0, rule=rule, test_fraction=0.0, validation_fraction=0.0),
  )
  source, store = ingest.open_split(tmp_path / "out", "train")
  for index in range(3):
    clip = batches.select_clip(source[index], store, rule)
    assert len(clip.timestamps) == 64
    first = round(clip.example.relevant[0].start)
    assert retrieval_actions.relevant_frames(clip.example, clip.timestamps) == tuple(
      range(first, first + 4)
    )


@pytest.mark.parametrize(
  ("fields", "named"),
  [
    ({"shown": 60.0}, r"worlds\.shown: 60\.0 s must equal seconds"),
    (
      {"behaviours": ("flicker", "cycle")},
      r"worlds\.behaviours: flicker and peek can't be mixed with behaviours",
    ),
    ({"families": ("choice",)}, r"worlds\.families: 'choice' needs one of the behaviours move"),
    ({"families": ("lamp",)}, r"worlds\.families: 'lamp' needs one of the behaviours peek"),
    ({"seconds": 8.0, "shown": 8.0}, r"worlds\.seconds: 8\.0 s are fewer than the 3 cells"),
  ],
)
def test_a_search_that_cannot_be_is_refused(fields, named):
  with pytest.raises(errors.InputError, match=named):
    dataclasses.replace(MOMENT, **fields)
