"""What is true in a scene, in the words of the records: states on the grid, reference steps, relevant spans."""

import numpy as np

from vr_jax import records
from vr_jax.worlds import config as config_lib
from vr_jax.worlds import scene as scene_lib
from vr_jax.worlds import wording

Asked = tuple[tuple[str, str], ...]  # (object, attribute) pairs that a question is about


def states(scene: scene_lib.Scene) -> tuple[records.State, ...]:
  """Every attribute of every object at the start of every cell, where what is discrete changes.

  By object, then time, then attribute. A state holds until the next one of the same object and attribute.
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
) -> tuple[records.Step, ...]:
  """The reasoning that leads to an answer: one sentence for each cell, in the order of time.

  First what is seen in `shown` from `since` seconds on, then what follows for the masked cells that start before `until`. All
  sentences of one example share one of the first `wordings` wordings, drawn here.
  """
  chosen = int(rng.integers(wordings))
  steps = []
  for cell in range(scene.cells):
    start = cell * scene.dwell
    if not since <= start < until:
      continue
    facts = [_fact(scene, shape, attribute, cell) for shape, attribute in asked]
    text = wording.step(chosen, start, facts, future=start >= shown.end)
    steps.append(records.Step(text=text, start=start, end=start + scene.dwell))
  return tuple(steps)


def relevant_spans(
  scene: scene_lib.Scene, asked: Asked, shown: records.Span, time: float | None
) -> tuple[records.Span, ...]:
  """Parts of the shown span that bear on a question.

  For a question about one `time` (seconds): the cells in which everything asked is as it will be then, so that a look
  there gives the answer; adjoining cells are one span. For one about the whole video (None), or where no cell is like
  that: all that is shown.
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


def _fact(scene: scene_lib.Scene, shape: str, attribute: str, cell: int) -> wording.Fact:
  return wording.Fact(
    object=shape,
    attribute=attribute,
    value=_value(scene, shape, attribute, cell),
    before=_value(scene, shape, attribute, cell - 1) if cell else None,
  )


def _value(scene: scene_lib.Scene, shape: str, attribute: str, cell: int) -> str:
  return scene.value(scene.object(shape), attribute, cell)
