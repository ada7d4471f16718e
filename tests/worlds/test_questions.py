import collections
import dataclasses

import numpy as np
import pytest

from tests.worlds import blind
from vr_jax import errors
from vr_jax.worlds import config as config_lib
from vr_jax.worlds import questions as questions_lib

FULL = config_lib.WorldConfig(behaviours_per_object=2)
TINY = config_lib.WorldConfig(
  height=112,
  width=112,
  rows=2,
  columns=2,
  objects_max=2,
  behaviours=("cycle", "grow", "move"),
  families=("choice", "name", "visits"),
)
LONG = config_lib.WorldConfig(seconds=18, shown=12, periods=(2, 3, 4), objects_max=4)


def sample(config, count, *, each=3, seed=0):
  """(scene, question) pairs of `count` scenes."""
  pairs = []
  for index in range(count):
    scene, asked = questions_lib.sample(np.random.default_rng([seed, index]), config, each)
    pairs += [(scene, question) for question in asked]
  return pairs


def future(shown_values, cells):
  """What a viewer of the shown cells expects: the shortest period that fits continues."""
  count = len(shown_values)
  period = next(
    p
    for p in range(1, count + 1)
    if all(shown_values[i] == shown_values[i - p] for i in range(p, count))
  )
  return [shown_values[cell % period] for cell in range(cells)]


def solve(question, scene, config):
  """The answer from the states of the shown cells alone."""
  plan = question.plan
  lines = []
  for shape, attribute in plan.asked:
    thing = scene.object(shape)
    seen = [scene.value(thing, attribute, cell) for cell in range(config.shown_cells)]
    lines.append(future(seen, config.cells))
  if plan.family == "visits":
    return str(lines[0].count(question.value))
  if plan.family == "changes":
    return str(sum(a != b for a, b in zip(lines[0], lines[0][1:], strict=False)))
  if plan.family == "occupancy":
    return str([line[plan.cell] for line in lines].count("inside"))
  value = " and ".join(line[plan.cell] for line in lines)
  return {option[3:]: option[0] for option in question.options}.get(value, value)


@pytest.mark.parametrize("config", [FULL, TINY, LONG], ids=["full", "tiny", "long"])
def test_what_is_shown_determines_every_answer(config):
  for scene, question in sample(config, 150):
    assert solve(question, scene, config) == question.answer


def test_the_same_seed_gives_the_same_questions():
  assert sample(FULL, 20) == sample(FULL, 20)
  assert sample(FULL, 20) != sample(FULL, 20, seed=1)


def test_questions_of_a_scene_differ():
  for index in range(60):
    _, asked = questions_lib.sample(np.random.default_rng(index), FULL, 4)
    assert len({(question.plan.family, question.plan.asked) for question in asked}) == 4


def test_options_are_distinct_lettered_and_hold_the_answer():
  offered = set()
  for scene, question in sample(FULL, 200):
    if question.plan.family != "choice":
      assert question.options == ()
      continue
    texts = [option[3:] for option in question.options]
    assert [option[:3] for option in question.options] == [f"{c}. " for c in "ABCD"[: len(texts)]]
    assert len(set(texts)) == len(texts) and question.answer in "ABCD"[: len(texts)]
    (shape, attribute) = question.plan.asked[0]
    assert len(texts) == min(4, len(FULL.values(attribute)))
    # Having seen a value isn't enough to rule the others out.
    assert set(scene.object(shape).behaviour(attribute).values) <= set(texts)
    offered.add(attribute)
  assert offered == {"colour", "place", "size", "visibility", "box"}


@pytest.mark.parametrize("family", config_lib.FAMILIES)
def test_each_family_can_be_switched_off_and_be_the_only_one(family):
  others = tuple(other for other in config_lib.FAMILIES if other != family)
  without = dataclasses.replace(FULL, families=others)
  assert {q.plan.family for _, q in sample(without, 80, each=2)} == set(others)
  alone = dataclasses.replace(FULL, families=(family,))
  assert {q.plan.family for _, q in sample(alone, 10, each=1)} == {family}


def test_numbers_are_asked_for_equally_often():
  asked = [q for _, q in sample(FULL, 400, each=2) if q.problem_type == "numerical"]
  for family in ("visits", "changes", "occupancy"):
    counts = collections.Counter(q.answer for q in asked if q.plan.family == family)
    total = counts.total()
    share = 1 / len(counts)
    assert set(counts) == {str(n) for n in questions_lib.numbers(family, _attribute(family), FULL)}
    for count in counts.values():
      assert abs(count / total - share) < 4 * np.sqrt(share * (1 - share) / total)


def _attribute(family):
  return "colour" if family == "visits" else "box"


def test_questions_never_name_what_they_ask_for():
  for scene, question in sample(FULL, 200):
    if question.plan.family in ("choice", "name", "look"):
      for shape, attribute in question.plan.asked:
        if attribute in ("colour", "place", "size"):
          thing = scene.object(shape)
          for cell in range(scene.cells):
            assert scene.value(thing, attribute, cell) not in question.text.split()


def test_too_many_questions_for_a_scene_are_refused():
  config = dataclasses.replace(TINY, behaviours=("grow",), families=("choice",), objects_max=1)
  with pytest.raises(errors.InputError, match=r"worlds\.families: no scene allows 2 different"):
    questions_lib.sample(np.random.default_rng(0), config, 2)


@pytest.fixture(scope="module", params=[FULL, TINY], ids=["full", "tiny"])
def many(request):
  """Several thousand independent questions: one a scene, since those of a scene depend."""
  return [question for _, question in sample(request.param, 2600, each=1, seed=7)]


@pytest.mark.parametrize("predictor", [blind.majority, blind.naive_bayes, blind.option_scores])
@pytest.mark.parametrize("problem_type", ["multiple choice", "numerical", "free-form"])
def test_a_blind_predictor_scores_chance(many, problem_type, predictor):
  asked = [question for question in many if question.problem_type == problem_type]
  half = len(asked) // 2
  assert half > 200
  assert blind.margin(predictor(asked[:half], asked[half:]), asked[half:]) < 1


@pytest.mark.parametrize("predictor", [blind.naive_bayes, blind.option_scores])
def test_the_blind_predictors_find_a_leak_where_there_is_one(predictor):
  config = dataclasses.replace(TINY, behaviours=("cycle",), families=("choice",))
  asked = [question for _, question in sample(config, 1500, each=1)]
  rng = np.random.default_rng(0)
  for index, question in enumerate(asked):
    red = [option[0] for option in question.options if option.endswith("red")]
    if red and rng.random() < 0.4:
      asked[index] = dataclasses.replace(question, answer=red[0])
  assert blind.margin(predictor(asked[:750], asked[750:]), asked[750:]) > 1
