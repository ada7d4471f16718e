import numpy as np

from vr_jax import records
from vr_jax.worlds import config as config_lib
from vr_jax.worlds import scene as scene_lib
from vr_jax.worlds import truth

SHOWN = records.Span(start=0.0, end=8.0)
CYCLE = scene_lib.Behaviour(kind="cycle", values=("red", "green", "blue"))
BOX = scene_lib.Behaviour(kind="box", values=("outside", "inside"))
CIRCLE = scene_lib.Object(
  shape="circle", colour="red", place="top left", size="small", behaviours=(CYCLE, BOX)
)
STAR = scene_lib.Object(shape="star", colour="pink", place="top right", size="large")
SCENE = scene_lib.Scene(
  height=112,
  width=112,
  rows=2,
  columns=2,
  seconds=10.0,
  fps=8,
  dwell=2.0,
  objects=(CIRCLE, STAR),
  box="bottom left",
)


def steps_of(asked, seed=0, until=10.0, **fields):
  return truth.reference_steps(
    SCENE, asked, SHOWN, np.random.default_rng(seed), until=until, **fields
  )


def line(name, attribute):
  found = [s for s in truth.states(SCENE) if (s.object, s.attribute) == (name, attribute)]
  assert [state.time for state in found] == [0, 2, 4, 6, 8]
  return [state.value for state in found]


def test_states_are_those_of_the_scripts():
  assert line("circle", "colour") == ["red", "green", "blue", "red", "green"]
  assert line("circle", "box") == ["outside", "inside", "outside", "inside", "outside"]
  assert line("circle", "place")[:2] == ["top left", "bottom left"]
  assert line("star", "colour") == ["pink"] * 5
  assert line("star", "box") == ["outside"] * 5
  assert line("star", "size") == ["large"] * 5
  assert line("star", "visibility") == ["visible"] * 5


def test_a_scene_without_a_box_has_nothing_inside_or_outside():
  config = config_lib.WorldConfig(behaviours=("cycle",), families=("choice",))
  scene = scene_lib.sample_scene(np.random.default_rng(0), config)
  assert {s.attribute for s in truth.states(scene)} == {"colour", "place", "size", "visibility"}


def test_steps_are_in_the_order_of_time_and_each_names_its_time():
  steps = steps_of((("circle", "colour"),))
  assert [(step.start, step.end) for step in steps] == [(0, 2), (2, 4), (4, 6), (6, 8), (8, 10)]
  for step in steps:
    assert f"{step.start:g}s" in step.text and len(step.text.split()) <= 12


def test_only_the_masked_part_is_told_as_the_future():
  for seed in range(20):
    words = [step.text.split() for step in steps_of((("circle", "colour"),), seed=seed)]
    assert ["will" in sentence for sentence in words] == [False] * 4 + [True]


def test_steps_end_with_the_time_that_is_asked_about():
  assert len(steps_of((("circle", "colour"),), until=4.0)) == 2


def test_wordings_vary_with_the_seed_and_their_number_with_the_config():
  every = {steps_of((("circle", "colour"),), seed=seed) for seed in range(40)}
  assert len(every) == config_lib.WORDINGS
  plain = {steps_of((("circle", "colour"),), seed=seed, wordings=1) for seed in range(40)}
  assert [step.text for step in plain.pop()] == [
    "At 0s, the circle is red.",
    "At 2s, the circle is green.",
    "At 4s, the circle is blue.",
    "At 6s, the circle is red.",
    "So at 8s, the circle will be green.",
  ]
  assert not plain


def test_several_things_asked_share_a_step():
  first, second, *_ = steps_of((("circle", "colour"), ("circle", "size")), wordings=1)
  assert first.text == "At 0s, the circle is red and small."
  both = steps_of((("circle", "box"), ("star", "box")), wordings=1)[1]
  assert both.text == "At 2s, the circle is inside the box and the star is outside the box."
  assert second.start == 2


def test_relevant_is_where_things_are_as_they_will_be():
  spans = truth.relevant_spans(SCENE, (("circle", "colour"),), SHOWN, 8.0)
  assert spans == (records.Span(start=2.0, end=4.0),)
  still = truth.relevant_spans(SCENE, (("star", "colour"),), SHOWN, 8.0)
  assert still == (SHOWN,)


def test_all_that_is_shown_is_relevant_to_a_question_about_the_whole_video():
  assert truth.relevant_spans(SCENE, (("circle", "colour"),), SHOWN, None) == (SHOWN,)
