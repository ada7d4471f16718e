"""Questions about the masked future of a scene, or a short while of it, whose answers can't be guessed from their words.

A question is planned on a cast (who is asked about, and for a number: which answer it shall have) before the details of the
scene are drawn; details are then drawn until every plan holds. A numerical answer is thus uniform whatever the words are. The
other answers are uniform because the details are symmetric in the values that they come from (see scene.py).

    choice     multiple choice: one attribute of one object at a masked time
    name       the same, free-form
    look       free-form: colour and size, "green and large"
    visits     numerical: how often an object has had a colour or been in a place by the end
    changes    numerical: how often it has entered or left the box, or been covered or uncovered
    occupancy  numerical: how many objects are in the box at a masked time
    read       OCR: the number on an object's display at a masked time
    measure    regression: the charge in percent on an object's display at a masked time
    moment     multiple choice: the colour of an object at a time that is shown
    lamp       multiple choice: the colour of an object that shows for a while only, when a lamp is lit around it
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
_OPEN = {
  "label": "read",
  "charge": "measure",
}  # the family without options; of other attributes: name
_LETTERS = "ABCD"
_MOST_INSIDE = 2  # the answers of `occupancy` are 0.._MOST_INSIDE
_CASTS = 5000
_SCENES = 20_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
  """What will be asked: a family, the (object, attribute) pairs, the cell it is about, the number to come out."""

  family: str
  asked: truth.Asked
  cell: int | None = None  # None: the whole video
  target: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
  """A question with its answer, and `choices`: the answers that its words leave equally likely."""

  plan: Plan
  text: str
  answer: str
  choices: tuple[str, ...]
  options: tuple[str, ...] = ()
  value: str = ""  # the value that the text names (visits)

  @property
  def problem_type(self) -> str:
    """One of records.PROBLEM_TYPES."""
    return PROBLEM_TYPE[self.plan.family]


def sample(
  rng: np.random.Generator, config: config_lib.WorldConfig, count: int
) -> tuple[scene_lib.Scene, tuple[Question, ...]]:
  """A scene and `count` different questions about it.

  Raises errors.InputError where the config allows too few questions on a scene.
  """
  cast, plans = _plan(rng, config, count)
  for _ in range(_SCENES):
    scene = scene_lib.sample_scene(rng, config, cast)
    values = [_named_value(scene, plan, config, rng) for plan in plans]
    if None not in values:
      asked = zip(plans, values, strict=True)
      return scene, tuple(_ask(scene, plan, str(value), config, rng) for plan, value in asked)
  raise errors.InputError(
    f"worlds.families: no scene of {_SCENES} has the answers drawn for "
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
) -> records.Example:
  """The record of a question about a scene whose first `shown` seconds may be seen.

  Of what is searched for, nothing is masked, the cell asked about alone is relevant, and the steps speak of it alone.
  """
  span = records.Span(start=0.0, end=shown)
  plan = question.plan
  searched = plan.family in config_lib.SEARCHES
  since = plan.cell * scene.dwell if searched else 0.0
  until = scene.seconds if plan.cell is None else (plan.cell + 1) * scene.dwell
  time = None if PROBLEM_TYPE[plan.family] == "numerical" else plan.cell * scene.dwell
  return records.Example(
    id=name,
    video=video,
    question=question.text,
    options=question.options,
    answer=question.answer,
    problem_type=question.problem_type,
    shown=span,
    masked=None if searched else records.Span(start=shown, end=scene.seconds),
    relevant=(records.Span(start=since, end=until),)
    if searched
    else truth.relevant_spans(scene, plan.asked, span, time),
    states=truth.states(scene),
    steps=truth.reference_steps(
      scene, plan.asked, span, rng, since=since, until=until, wordings=wordings
    ),
    source="simulator",
  )


def numbers(family: str, attribute: str, config: config_lib.WorldConfig) -> tuple[int, ...]:
  """The answers that a numerical question of a family can have, each as likely as the others."""
  if family == "occupancy":
    return tuple(range(_MOST_INSIDE + 1))
  found = set()
  for period in config.periods:
    if family == "changes":
      for script in scene_lib.two_valued_patterns(config.values(attribute), period):
        found.add(_changes([script[cell % period] for cell in range(config.cells)]))
    else:
      found |= {math.ceil((config.cells - first) / period) for first in range(period)}
      found |= {0} if len(config.values(attribute)) > period else set()
  return tuple(sorted(found))


def _plan(
  rng: np.random.Generator, config: config_lib.WorldConfig, count: int
) -> tuple[tuple[scene_lib.Role, ...], tuple[Plan, ...]]:
  """A cast, and plans of which the first has a family drawn before the cast, so that no family is rare."""
  family = str(rng.choice(config.families))
  for _ in range(_CASTS):
    cast = scene_lib.sample_cast(rng, config)
    offers = _offers(cast, config)
    if len(offers) >= count and any(plan.family == family for plan in offers):
      break
  else:
    raise errors.InputError(
      f"worlds.families: no scene offers {count} different questions, one of them {family!r}; "
      "ask fewer a video, or allow more families, lives or objects"
    )
  plans = []
  while len(plans) < count:
    able = [plan for plan in offers if plan.family == family]
    chosen = able[int(rng.integers(len(able)))]
    offers.remove(chosen)
    plans.append(_with_target(rng, config, chosen))
    left = sorted({plan.family for plan in offers})
    family = str(rng.choice(left)) if left else ""
  return cast, tuple(plans)


def _offers(cast: Sequence[scene_lib.Role], config: config_lib.WorldConfig) -> list[Plan]:
  """Everything that could be asked about a cast, targets and cells still open."""
  offers = []
  for role in cast:
    changing = [config_lib.ATTRIBUTE[kind] for kind in role.kinds if kind != "still"]
    for attribute in changing:
      offers += [
        Plan(family=family, asked=((role.shape, attribute),))
        for family in ("choice", _OPEN.get(attribute, "name"))
      ]
    if "flicker" in role.kinds:
      asked = ((role.shape, "colour"),)
      offers += [Plan(family="moment", asked=asked, cell=cell) for cell in range(config.cells)]
    if "peek" in role.kinds:
      offers.append(Plan(family="lamp", asked=((role.shape, "colour"),)))
    if {"cycle", "grow"} & set(role.kinds) and "box" not in role.kinds:
      offers.append(Plan(family="look", asked=((role.shape, "colour"), (role.shape, "size"))))
    # What bounces has period 2 always, so its counts would tell it from what moves: not asked.
    for family, kinds in (("visits", ("cycle", "move")), ("changes", ("box", "hide"))):
      able = [config_lib.ATTRIBUTE[kind] for kind in role.kinds if kind in kinds]
      offers += [Plan(family=family, asked=((role.shape, attribute),)) for attribute in able]
  boxed = tuple((role.shape, "box") for role in cast if "box" in role.kinds)
  if len(boxed) >= _MOST_INSIDE:
    offers.append(Plan(family="occupancy", asked=boxed))
  return [plan for plan in offers if plan.family in config.families]


def _with_target(rng: np.random.Generator, config: config_lib.WorldConfig, plan: Plan) -> Plan:
  """The plan with its masked cell drawn and, where the answer is a number, that number."""
  cell = plan.cell
  if plan.family not in ("visits", "changes", *config_lib.SEARCHES):
    cell = int(rng.integers(config.shown_cells, config.cells))
  target = None
  if PROBLEM_TYPE[plan.family] == "numerical":
    target = int(rng.choice(numbers(plan.family, plan.asked[0][1], config)))
  return dataclasses.replace(plan, cell=cell, target=target)


def _named_value(
  scene: scene_lib.Scene, plan: Plan, config: config_lib.WorldConfig, rng: np.random.Generator
) -> str | None:
  """The value that the question must name for the target to be its answer; "" for none; None if it can't be."""
  if plan.target is None:
    return ""
  history = [_values(scene, plan, cell) for cell in range(scene.cells)]
  if plan.family == "visits":
    seen = [values[0] for values in history]
    able = [v for v in config.values(plan.asked[0][1]) if seen.count(v) == plan.target]
    return str(rng.choice(able)) if able else None
  if plan.family == "changes":
    return "" if _changes(history) == plan.target else None
  return "" if history[plan.cell].count("inside") == plan.target else None


def _ask(
  scene: scene_lib.Scene,
  plan: Plan,
  value: str,
  config: config_lib.WorldConfig,
  rng: np.random.Generator,
) -> Question:
  """Puts a plan that holds in a scene into words."""
  shape, attribute = plan.asked[0] if plan.family != "look" else (plan.asked[0][0], "")
  if plan.family == "lamp":
    shows = scene.object(shape).life("visibility").values.index("visible")
    plan = dataclasses.replace(plan, cell=shows)
  time = scene.seconds if plan.cell is None else plan.cell * scene.dwell
  text = wording.question(
    plan.family, attribute, int(rng.integers(config.wordings)), time, shape, value
  )
  if plan.target is not None:
    choices = tuple(str(number) for number in numbers(plan.family, attribute, config))
    return Question(plan=plan, text=text, answer=str(plan.target), choices=choices, value=value)
  told = " and ".join(_values(scene, plan, plan.cell))
  if PROBLEM_TYPE[plan.family] == "multiple choice":
    options, answer = _options(rng, config, scene, plan, told)
    letters = tuple(_LETTERS[: len(options)])
    return Question(plan=plan, text=text, answer=answer, choices=letters, options=options)
  choices = config.values(plan.asked[0][1])
  if plan.family == "look":
    choices = tuple(f"{c} and {size}" for c in config.colours for size in config_lib.SIZES)
  return Question(plan=plan, text=text, answer=told, choices=choices)


def _options(
  rng: np.random.Generator,
  config: config_lib.WorldConfig,
  scene: scene_lib.Scene,
  plan: Plan,
  right: str,
) -> tuple[tuple[str, ...], str]:
  """Up to four options in random order (or that of the world's values, where it says so), and the letter of the right one.

  The others are first what the object was seen to be, so that seeing is not enough, then others of the same kind. What is
  searched for has any others: that an option was never seen elsewhere would tell.
  """
  shape, attribute = plan.asked[0]
  seen = set() if config.searched else set(scene.object(shape).life(attribute).values)
  pool = [str(v) for v in rng.permutation(config.values(attribute)) if v != right]
  wrong = sorted(pool, key=lambda v: v not in seen)[: len(_LETTERS) - 1]
  texts = [str(v) for v in rng.permutation([right, *wrong])]
  if config.options_in_order:
    texts.sort(key=config.values(attribute).index)
  options = tuple(f"{letter}. {text}" for letter, text in zip(_LETTERS, texts, strict=False))
  return options, _LETTERS[texts.index(right)]


def _values(scene: scene_lib.Scene, plan: Plan, cell: int) -> list[str]:
  """What holds of everything asked, in a cell."""
  return [scene.value(scene.object(shape), attribute, cell) for shape, attribute in plan.asked]


def _changes(history: Sequence) -> int:
  return sum(before != after for before, after in itertools.pairwise(history))
