"""Samples questions about the masked future, or about a short moment, of a scene.

The answers can't be guessed from a question's words. A question is planned for roles, before the
details of the scene are drawn: which object it is about and, for a numerical question, which answer
it must have. Details are then drawn until every plan holds, so a numerical answer is uniform
whatever the words are. The other answers are uniform because the law of the details is symmetric in
the values (see scene.py).

    choice     multiple choice: one attribute of one object at a masked time
    name       the same, free-form
    look       free-form: colour and size, "green and large", at a masked time
    visits     numerical: how often an object has had a colour or been in a place by the end
    changes    numerical: how often it has entered or left the box, or vanished or come back
    occupancy  numerical: how many objects are in the box at a masked time
    read       OCR: the number on an object's display at a masked time
    measure    regression: the charge in percent on an object's display at a masked time
    moment     multiple choice: the colour of an object at a time that is shown
    lamp       multiple choice: the colour of an object that is visible only while its lamp is lit
"""

from collections.abc import Sequence
import dataclasses
import itertools
import math

import numpy as np

from vr_jax import errors, records
from vr_jax.worlds import config as config_lib
from vr_jax.worlds import scene as scene_lib
from vr_jax.worlds import truth, wording

PROBLEM_TYPE = {
  "choice": "multiple choice",
  "name": "free-form",
  "look": "free-form",
  "visits": "numerical",
  "changes": "numerical",
  "occupancy": "numerical",
  "read": "OCR",
  "measure": "regression",
  "moment": "multiple choice",
  "lamp": "multiple choice",
}
# The question family without options that asks for an attribute; "name" for other attributes.
_OPEN_FAMILY = {"label": "read", "charge": "measure"}
_LETTERS = "ABCD"
_MOST_INSIDE = 2  # the answers of `occupancy` are 0.._MOST_INSIDE
_MAX_DRAWS = 5000  # attempts to draw roles that offer enough questions
_MAX_SCENES = 20_000  # attempts to draw a scene in which the plans hold


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """What will be asked.

  asked: the (object, attribute) pairs.
  cell: the cell that the question is about; None for the whole video, or if not yet drawn.
  target: the answer that a numerical question must have.
  """

  family: str
  asked: truth.Asked
  cell: int | None = None
  target: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
  """A question and its answer.

  choices: all answers that are equally likely given the question's words.
  value: the value that the text names (only `visits`).
  """

  plan: Plan
  text: str
  answer: str
  choices: tuple[str, ...]
  options: tuple[str, ...] = ()
  value: str = ""

  @property
  def problem_type(self) -> str:
    """One of records.PROBLEM_TYPES."""
    return PROBLEM_TYPE[self.plan.family]


def sample(
  rng: np.random.Generator, config: config_lib.WorldConfig, count: int
) -> tuple[scene_lib.Scene, tuple[Question, ...]]:
  """Samples a scene and `count` different questions about it.

  Raises errors.InputError if the config allows too few questions about a scene.
  """
  roles, plans = _plan(rng, config, count)
  for _ in range(_MAX_SCENES):
    scene = scene_lib.sample_scene(rng, config, roles)
    values = [_named_value(scene, plan, config, rng) for plan in plans]
    if None not in values:
      pairs = zip(plans, values, strict=True)
      return scene, tuple(_ask(scene, plan, str(value), config, rng) for plan, value in pairs)
  raise errors.InputError(
    f"worlds.families: none of {_MAX_SCENES} scenes has the answers drawn for "
    f"{', '.join(plan.family for plan in plans)}; ask fewer questions a video"
  )


def example(
  scene: scene_lib.Scene,
  question: Question,
  *,
  name: str,
  video: str,
  shown: float,
  wordings: int,
  rng: np.random.Generator,
  tellings: int = 1,
) -> records.Example:
  """Makes the record of a question.

  shown: the model sees the scene's first `shown` seconds.

  For a search question nothing is masked. The cell it asks about is the only relevant one, and the
  steps mention no other.
  """
  span = records.Span(start=0.0, end=shown)
  plan = question.plan
  is_search = plan.family in config_lib.SEARCH_FAMILIES
  cell_start = 0.0 if plan.cell is None else plan.cell * scene.dwell
  since = cell_start if is_search else 0.0
  until = scene.seconds if plan.cell is None else (plan.cell + 1) * scene.dwell
  time = None if PROBLEM_TYPE[plan.family] == "numerical" else cell_start
  return records.Example(
    id=name,
    video=video,
    question=question.text,
    options=question.options,
    answer=question.answer,
    problem_type=question.problem_type,
    shown=span,
    masked=None if is_search else records.Span(start=shown, end=scene.seconds),
    relevant=(records.Span(start=since, end=until),)
    if is_search
    else truth.relevant_spans(scene, plan.asked, span, time),
    states=truth.states(scene),
    steps=truth.reference_steps(
      scene,
      plan.asked,
      span,
      rng,
      since=since,
      until=until,
      wordings=wordings,
      tellings=tellings,
    ),
    source="simulator",
  )


def numbers(family: str, attribute: str, config: config_lib.WorldConfig) -> tuple[int, ...]:
  """The equally likely answers that a numerical question of a family can have."""
  if family == "occupancy":
    return tuple(range(_MOST_INSIDE + 1))
  answers = set()
  for period in config.periods:
    if family == "changes":
      for script in scene_lib.two_valued_patterns(config.values(attribute), period):
        answers.add(_count_changes([script[cell % period] for cell in range(config.cells)]))
    else:
      answers |= {math.ceil((config.cells - first) / period) for first in range(period)}
      answers |= {0} if len(config.values(attribute)) > period else set()
  return tuple(sorted(answers))


def _plan(
  rng: np.random.Generator, config: config_lib.WorldConfig, count: int
) -> tuple[tuple[scene_lib.Role, ...], tuple[Plan, ...]]:
  """Samples roles, and plans of questions about them.

  The first plan's family is drawn before the roles, so that no family is rare.
  """
  family = str(rng.choice(config.families))
  for _ in range(_MAX_DRAWS):
    roles = scene_lib.sample_roles(rng, config)
    candidates = _possible_plans(roles, config)
    if len(candidates) >= count and any(plan.family == family for plan in candidates):
      break
  else:
    raise errors.InputError(
      f"worlds.families: no scene allows {count} different questions, one of them {family!r}; "
      "ask fewer a video, or allow more families, behaviours or objects"
    )
  plans = []
  while len(plans) < count:
    matching = [plan for plan in candidates if plan.family == family]
    plan = matching[int(rng.integers(len(matching)))]
    candidates.remove(plan)
    plans.append(_with_target(rng, config, plan))
    families = sorted({plan.family for plan in candidates})
    family = str(rng.choice(families)) if families else ""
  return roles, tuple(plans)


def _possible_plans(roles: Sequence[scene_lib.Role], config: config_lib.WorldConfig) -> list[Plan]:
  """Everything that could be asked about the roles; targets and most cells are not drawn yet."""
  plans = []
  for role in roles:
    changing = [config_lib.ATTRIBUTE[kind] for kind in role.kinds if kind != "still"]
    for attribute in changing:
      plans += [
        Plan(family=family, asked=((role.shape, attribute),))
        for family in ("choice", _OPEN_FAMILY.get(attribute, "name"))
      ]
    if "flicker" in role.kinds:
      asked = ((role.shape, "colour"),)
      plans += [Plan(family="moment", asked=asked, cell=cell) for cell in range(config.cells)]
    if "peek" in role.kinds:
      plans.append(Plan(family="lamp", asked=((role.shape, "colour"),)))
    if {"cycle", "grow"} & set(role.kinds) and "box" not in role.kinds:
      plans.append(Plan(family="look", asked=((role.shape, "colour"), (role.shape, "size"))))
    # Bouncing objects are not counted: their period is always 2, so the question would give away
    # that the object bounces.
    for family, kinds in (("visits", ("cycle", "move")), ("changes", ("box", "hide"))):
      attributes = [config_lib.ATTRIBUTE[kind] for kind in role.kinds if kind in kinds]
      plans += [Plan(family=family, asked=((role.shape, attribute),)) for attribute in attributes]
  boxed = tuple((role.shape, "box") for role in roles if "box" in role.kinds)
  if len(boxed) >= _MOST_INSIDE:
    plans.append(Plan(family="occupancy", asked=boxed))
  return [plan for plan in plans if plan.family in config.families]


def _with_target(rng: np.random.Generator, config: config_lib.WorldConfig, plan: Plan) -> Plan:
  """Draws the plan's masked cell and, for a numerical question, its answer."""
  cell = plan.cell
  if plan.family not in ("visits", "changes", *config_lib.SEARCH_FAMILIES):
    cell = int(rng.integers(config.shown_cells, config.cells))
  target = None
  if PROBLEM_TYPE[plan.family] == "numerical":
    target = int(rng.choice(numbers(plan.family, plan.asked[0][1], config)))
  return dataclasses.replace(plan, cell=cell, target=target)


def _named_value(
  scene: scene_lib.Scene, plan: Plan, config: config_lib.WorldConfig, rng: np.random.Generator
) -> str | None:
  """The value that the question must name so that `target` is its answer.

  Returns "" if the question names no value, and None if the scene has another answer.
  """
  if plan.target is None:
    return ""
  history = [_values(scene, plan, cell) for cell in range(scene.cells)]
  if plan.family == "visits":
    seen = [values[0] for values in history]
    matching = [v for v in config.values(plan.asked[0][1]) if seen.count(v) == plan.target]
    return str(rng.choice(matching)) if matching else None
  if plan.family == "changes":
    return "" if _count_changes(history) == plan.target else None
  assert plan.cell is not None  # `occupancy` asks about one cell
  return "" if history[plan.cell].count("inside") == plan.target else None


def _ask(
  scene: scene_lib.Scene,
  plan: Plan,
  value: str,
  config: config_lib.WorldConfig,
  rng: np.random.Generator,
) -> Question:
  """Writes the question of a plan that holds in a scene."""
  shape, attribute = plan.asked[0] if plan.family != "look" else (plan.asked[0][0], "")
  if plan.family == "lamp":
    visible_cell = scene.script(shape, "visibility").index("visible")
    plan = dataclasses.replace(plan, cell=visible_cell)
  time = scene.seconds if plan.cell is None else plan.cell * scene.dwell
  text = wording.question(
    plan.family, attribute, int(rng.integers(config.wordings)), time, shape, value
  )
  if plan.target is not None:
    choices = tuple(str(number) for number in numbers(plan.family, attribute, config))
    return Question(plan=plan, text=text, answer=str(plan.target), choices=choices, value=value)
  assert plan.cell is not None  # only numerical questions are about the whole video
  value_then = " and ".join(_values(scene, plan, plan.cell))
  if PROBLEM_TYPE[plan.family] == "multiple choice":
    options, answer = _options(rng, config, scene, plan, value_then)
    letters = tuple(_LETTERS[: len(options)])
    return Question(plan=plan, text=text, answer=answer, choices=letters, options=options)
  choices = config.values(plan.asked[0][1])
  if plan.family == "look":
    choices = tuple(f"{c} and {size}" for c in config.colours for size in config_lib.SIZES)
  return Question(plan=plan, text=text, answer=value_then, choices=choices)


def _options(
  rng: np.random.Generator,
  config: config_lib.WorldConfig,
  scene: scene_lib.Scene,
  plan: Plan,
  right: str,
) -> tuple[tuple[str, ...], str]:
  """Draws up to four options. Returns them and the letter of the right one.

  The order is random, or that of the world's values with `config.options_in_order`. Wrong options
  are first values that the object does take, so that having seen a value is not enough, then other
  values of the attribute. In a search world wrong options are drawn from all values: else an option
  that the object never takes would be known to be wrong.
  """
  shape, attribute = plan.asked[0]
  seen = set() if config.is_search else set(scene.script(shape, attribute))
  pool = [str(v) for v in rng.permutation(config.values(attribute)) if v != right]
  wrong = sorted(pool, key=lambda v: v not in seen)[: len(_LETTERS) - 1]
  texts = [str(v) for v in rng.permutation([right, *wrong])]
  if config.options_in_order:
    texts.sort(key=config.values(attribute).index)
  options = tuple(f"{letter}. {text}" for letter, text in zip(_LETTERS, texts, strict=False))
  return options, _LETTERS[texts.index(right)]


def _values(scene: scene_lib.Scene, plan: Plan, cell: int) -> list[str]:
  """The values, in a cell, of all attributes that are asked about."""
  return [scene.value(scene.object(shape), attribute, cell) for shape, attribute in plan.asked]


def _count_changes(history: Sequence) -> int:
  return sum(before != after for before, after in itertools.pairwise(history))
