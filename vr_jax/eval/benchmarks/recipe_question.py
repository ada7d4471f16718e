"""A benchmark's question as an example, which a recipe's environment asks in its own words."""

import math

from vr_jax import records
from vr_jax.data import benchmark_item
from vr_jax.eval.benchmarks import strict_rules

_PROBLEM_TYPES = {
  "choice": "multiple choice",
  "caption_match": "multiple choice",
  "mra": "regression",
  "masks": records.SEGMENTATION,
}


def to_example(
  item: benchmark_item.Item, seconds: float = math.inf, *, uses_clip: bool = True
) -> records.Example:
  """The example of an item. Options get their letters; steps without times span what is shown.

  seconds: the video's length, where it is known. uses_clip: whether only the item's clip is shown.
  """
  shown = records.Span(start=0.0, end=seconds)
  if uses_clip and item.clip is not None:
    shown = item.clip
  problem_type = _PROBLEM_TYPES.get(item.scorer, "free-form")
  return records.Example(
    id=item.id,
    video=item.video,
    question=item.question,
    answer=item.answer,
    problem_type="multiple choice" if item.options else problem_type,
    shown=shown,
    options=tuple(strict_rules.lettered(item)),
    steps=tuple(
      records.Step(text=step.text, start=(step.times or (shown.start,))[0], end=_end(step, shown))
      for step in item.steps
    ),
    source=item.benchmark,
  )


def _end(step: benchmark_item.ItemStep, shown: records.Span) -> float:
  return shown.end if step.times is None else step.times[1]
