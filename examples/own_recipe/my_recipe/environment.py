"""Question answering whose replies should say when things happen."""

import dataclasses

import times  # the file beside this one

from vr_jax import schema
from vr_jax.envs import metric, question_answer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timed(question_answer.QuestionAnswer):
  """Fields are those of config.env."""

  wanted: int = schema.field(1, "Times that a whole reward asks for.", "[1, inf)")

  metrics = {
    **question_answer.QuestionAnswer.metrics,
    "named_times": metric.Metric(title="Times named", note="of those wanted", reward="times"),
  }

  def reward_functions(self):
    return {**super().reward_functions(), "times": self.named_times}

  def named_times(self, replies, examples):
    """The share of the wanted times that a reply names."""
    return [min(1.0, times.count(reply) / self.wanted) for reply in replies]
