"""Derives a record's ground truth from a scene: states, reference steps and relevant spans."""

import dataclasses

import numpy as np

from vr_jax import records
from vr_jax.worlds import config as config_lib
from vr_jax.worlds import scene as scene_lib
from vr_jax.worlds import wording

Asked = tuple[tuple[str, str], ...]  # (object, attribute) pairs that a question is about


def states(scene: scene_lib.Scene) -> tuple[records.State, ...]:
  """Every attribute of every object at the start of every cell.

  Ordered by object, then time, then attribute. A state holds until the next state of the same
  object and attribute.
  """
  return tuple(
    records.State(
      object=thing.shape,
      time=cell * scene.dwell,
      attribute=attribute,
      value=scene.value(thing, attribute, cell),
    )
    for thing in scene.objects
    for cell in range(scene.cells)
    for attribute in scene.attributes(thing)
  )


def reference_steps(
  scene: scene_lib.Scene,
  asked: Asked,
  shown: records.Span,
  rng: np.random.Generator,
  *,
  since: float = 0.0,
  until: float,
  wordings: int = config_lib.WORDINGS,
  tellings: int = 1,
) -> tuple[records.Step, ...]:
  """The reasoning that leads to an answer: a sentence or several for each cell, in order of time.

  The sentences cover the cells that start at or after `since` and before `until` (seconds). Those
  in `shown` state what is seen; those after it state what is expected. All sentences of an example
  share one wording, drawn here from the first `wordings`. A cell has 1 to `tellings` sentences,
  drawn for each cell; they tell the state at the start of equal parts of it.
  """
  chosen = int(rng.integers(wordings))
  steps = []
  for cell in range(scene.cells):
    start = cell * scene.dwell
    if not since <= start < until:
      continue
    facts = [make_fact(scene, shape, attribute, cell) for shape, attribute in asked]
    # Nothing is drawn for a single telling, so that its traces are those of older data.
    count = 1 + int(rng.integers(tellings)) if tellings > 1 else 1
    part = scene.dwell / count
    for number in range(count):
      time = start + number * part
      text = wording.step(chosen, time, facts, future=start >= shown.end)
      steps.append(records.Step(text=text, start=time, end=time + part))
      facts = [dataclasses.replace(fact, before=fact.value) for fact in facts]
  return tuple(steps)


def relevant_spans(
  scene: scene_lib.Scene, asked: Asked, shown: records.Span, time: float | None
) -> tuple[records.Span, ...]:
  """The parts of the shown span that are relevant to a question.

  time: what the question asks about, in seconds. Relevant are the cells in which all asked
    attributes have the values that they will have at that time, so that a look there gives the
    answer. Adjoining cells are merged into one span.
  If `time` is None (the question is about the whole video) or no such cell exists, the whole shown
  span is relevant.
  """
  if time is None:
    return (shown,)
  then = round(time / scene.dwell)
  spans = []
  for cell in range(round(shown.end / scene.dwell)):
    start, end = cell * scene.dwell, (cell + 1) * scene.dwell
    if any(_value(scene, *pair, cell) != _value(scene, *pair, then) for pair in asked):
      continue
    if spans and spans[-1].end == start:
      spans[-1] = records.Span(start=spans[-1].start, end=end)
    else:
      spans.append(records.Span(start=start, end=end))
  return tuple(spans) or (shown,)


def make_fact(scene: scene_lib.Scene, shape: str, attribute: str, cell: int) -> wording.Fact:
  """What is true of an attribute of an object in a cell, and what was in the cell before."""
  return wording.Fact(
    object=shape,
    attribute=attribute,
    value=_value(scene, shape, attribute, cell),
    before=_value(scene, shape, attribute, cell - 1) if cell else None,
  )


def _value(scene: scene_lib.Scene, shape: str, attribute: str, cell: int) -> str:
  return scene.value(scene.object(shape), attribute, cell)
