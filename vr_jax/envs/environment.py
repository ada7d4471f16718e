"""What a recipe asks of a model: the question it shows, and what a reply is worth."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from vr_jax import records


@runtime_checkable
class Environment(Protocol):
  """One recipe's task. It knows texts and examples, and no model."""

  def question(self, example: records.Example) -> str:
    """The text that the user's turn shows beside the frames."""

  def reference_reply(self, example: records.Example) -> str | None:
    """The whole reply that the reference gives, for supervised training; None where the example has no trace."""

  def score(
    self, examples: Sequence[records.Example], replies: Sequence[Sequence[str]]
  ) -> records.Scores:
    """The rewards of replies [prompts][group]."""

  def explain(self, example: records.Example, reply: str) -> Mapping[str, Any]:
    """How a reply was read (steps, alignment, answer), as JSON, for the report."""

  def state(self) -> Mapping[str, Any]:
    """What scoring remembers from step to step, as JSON; part of every checkpoint. {} where it remembers nothing."""

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Goes back to a state that `state` gave."""
