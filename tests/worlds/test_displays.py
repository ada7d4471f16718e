import dataclasses

import av
import numpy as np
import PIL.Image
import pytest

from tests.worlds import blind
from vr_jax import errors
from vr_jax.rewards import accuracy
from vr_jax.worlds import claims as claims_lib
from vr_jax.worlds import config as config_lib
from vr_jax.worlds import consistency, displays, render, sufficiency, write
from vr_jax.worlds import questions as questions_lib
from vr_jax.worlds import scene as scene_lib

WORLD = config_lib.WorldConfig(
  height=112,
  width=112,
  rows=2,
  columns=2,
  objects_max=2,
  behaviours=config_lib.DISPLAYS,
  families=config_lib.DISPLAY_FAMILIES,
)
MIXED = dataclasses.replace(
  WORLD,
  behaviours=("cycle", "move", *config_lib.DISPLAYS),
  families=("choice", *config_lib.DISPLAY_FAMILIES),
)


def examples(config, count):
  for index in range(count):
    yield from write.sample_video(config, seed=5, index=index, questions=1)[1]


def at_56_pixels(image):
  small = PIL.Image.fromarray(image).resize((56, 56), PIL.Image.Resampling.BICUBIC)
  return np.asarray(small).astype(int)


def test_a_world_has_displays_only_where_it_names_them():
  world = config_lib.WorldConfig()
  assert not set(world.behaviours) & set(config_lib.DISPLAYS)
  assert not set(world.families) & set(config_lib.DISPLAY_FAMILIES)
  for example in examples(world, 20):
    assert not {state.attribute for state in example.states} & {"label", "charge"}


def test_only_objects_with_a_display_have_a_label_or_a_charge():
  seen = set()
  for index in range(60):
    scene, (example,) = write.sample_video(MIXED, seed=5, index=index, questions=1)
    for thing in scene.objects:
      attributes = {s.attribute for s in example.states if s.object == thing.shape}
      assert attributes & {"label", "charge"} == set(thing.displayed)
      seen.add(thing.displayed)
  assert seen == {(), ("label",), ("charge",)}


@pytest.mark.parametrize("digits", [1, 2])
def test_at_56_pixels_displays_can_still_be_read_from_the_file(tmp_path, digits):
  config = dataclasses.replace(WORLD, digits=digits)
  for index in range(8):
    scene, _ = write.sample_video(config, seed=2, index=index, questions=1)
    path = tmp_path / f"{index}.mp4"
    render.write_video(path, (frame.image for frame in render.iterate_frames(scene)), scene.fps)
    with av.open(str(path)) as container:
      frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for cell in range(scene.cells):
      image = at_56_pixels(frames[round(cell * scene.dwell * scene.fps)])
      for thing in scene.objects:
        (attribute,) = thing.displayed
        read = nearest_label if attribute == "label" else charge_of
        plate = below(image, scene_lib.zone_centre(scene, thing.place))
        assert read(plate, config) == scene.value(thing, attribute, cell)


def below(image, centre):
  """The pixels below an object's centre, in its quarter of a 56 x 56 image."""
  left, top = (int(value) // 2 - 14 for value in centre)
  return image[top + 10 : top + 28, left : left + 28]


def nearest_label(plate, config):
  """The label whose drawing is closest to the pixels."""
  distances = {}
  for label in config.values("label"):
    image = np.full((112, 112, 3), 118.0, np.float32)
    displays.draw(image, np.array([28.0, 28.0]), 56.0, label=label, charge=None)
    drawn = below(at_56_pixels(image.astype(np.uint8)), (28, 28))
    distances[label] = np.abs(drawn - plate).mean()
  return min(distances, key=distances.get)


def charge_of(plate, config):
  """The charge closest, by ratio, to the bright fraction of the bar's middle row."""
  row = plate[9].mean(axis=1)
  low, high = np.mean(displays.PLATE), np.mean(displays.INK)
  inner = 56 / 2 * (0.92 - 2 * 0.05)
  share = np.clip((row[2:26] - low) / (high - low), 0.01, 1).sum() / inner
  return min(config_lib.CHARGES, key=lambda charge: abs(np.log(100 * share / float(charge))))


def test_a_bar_glides_and_a_number_jumps():
  charge = scene_lib.Behaviour(kind="charge", values=("50", "100"))
  count = scene_lib.Behaviour(kind="count", values=("7", "42"))
  fields = {"colour": "red", "size": "small"}
  scene = scene_lib.Scene(
    height=112,
    width=112,
    rows=2,
    columns=2,
    seconds=10.0,
    fps=8,
    dwell=2.0,
    objects=(
      scene_lib.Object(shape="star", place="top left", behaviours=(charge,), **fields),
      scene_lib.Object(shape="circle", place="top right", behaviours=(count,), **fields),
    ),
  )
  poses = [[scene_lib.pose(scene, t, time) for t in scene.objects] for time in (1.0, 1.75, 2.0)]
  assert [bar.charge for bar, _ in poses] == [50, 75, 100]
  assert [number.label for _, number in poses] == ["7", "7", "42"]


def test_what_is_asked_of_a_display_follows_from_what_is_shown():
  types = set()
  for example in examples(MIXED, 150):
    steps = [step.text for step in example.steps]
    whole = consistency.trace_consistency(steps, example.states, reference=steps)
    assert whole.score == 1.0 and whole.claims == len(steps)
    assert consistency.implied_answer(steps, example) == example.answer
    shown = [step.text for step in example.steps if step.start < example.shown.end]
    assert sufficiency.sufficient(example, " ".join(shown))
    assert not sufficiency.sufficient(example, " ".join(steps[-1:]))
    types.add(example.problem_type)
  assert types == {"multiple choice", "OCR", "regression"}


@pytest.mark.parametrize(
  ("text", "attribute", "value"),
  [
    ("At 2s, the circle is labelled 42.", "label", "42"),
    ("At 2s the circle shows the number 7.", "label", "7"),
    ("The circle reads 07 at 2s", "label", "7"),
    ("At 2s the circle's label is now 8, I think.", "label", "8"),
    ("At 2s, the circle is 12.5% charged.", "charge", "12.5"),
    ("The circle is at 50 percent at 2s.", "charge", "50"),
    ("At 2s, the circle's bar is 6.250 % full", "charge", "6.25"),
  ],
)
def test_displays_are_read_in_several_wordings(text, attribute, value):
  (claim,) = claims_lib.read_claims([text])
  assert (claim.object, claim.attribute, claim.value) == ("circle", attribute, value)
  assert (claim.start, claim.end) == (2, 2)


@pytest.mark.parametrize(
  "text", ["At 2s the circle is 42.", "At 2s, the circle is labelled 123.", "The circle shows 2s."]
)
def test_a_number_alone_is_no_label(text):
  assert claims_lib.read_claims([text]) == ()


@pytest.fixture(scope="module")
def many():
  """Questions of one scene each, with labels of one digit: ten labels can be learnt from 1800."""
  config = dataclasses.replace(MIXED, behaviours=config_lib.DISPLAYS, digits=1)
  rngs = (np.random.default_rng([9, index]) for index in range(1800))
  return [questions_lib.sample(rng, config, 1)[1][0] for rng in rngs]


@pytest.mark.parametrize("predictor", [blind.majority, blind.naive_bayes, blind.option_scores])
@pytest.mark.parametrize("problem_type", ["multiple choice", "OCR", "regression"])
def test_a_blind_predictor_scores_chance_on_displays(many, problem_type, predictor):
  asked = [question for question in many if question.problem_type == problem_type]
  half = len(asked) // 2
  assert half > 200
  assert blind.margin(predictor(asked[:half], asked[half:]), asked[half:]) < 1


def test_no_constant_answer_earns_much_of_a_regression_reward(many):
  answers = [question.answer for question in many if question.problem_type == "regression"]
  assert set(answers) == set(config_lib.CHARGES)
  earned = [
    np.mean([accuracy.accuracy(f"<answer>{p:g}</answer>", a, "regression") for a in answers])
    for p in np.arange(1, 101)
  ]
  assert 0.3 < max(earned) < 0.42


@pytest.mark.parametrize(
  ("fields", "named"),
  [
    ({"digits": 3}, r"worlds\.digits: 3 must be 1 or 2"),
    ({"behaviours": ("count",)}, r"worlds\.families: 'measure' needs one of the behaviours charge"),
    ({"families": ("name",)}, r"worlds\.families: 'name' needs one of the behaviours move"),
  ],
)
def test_a_world_that_cannot_ask_what_it_names_is_refused(fields, named):
  with pytest.raises(errors.InputError, match=named):
    dataclasses.replace(WORLD, **fields)
