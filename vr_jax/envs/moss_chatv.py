"""MOSS-ChatV: one turn of reasoning and answer, scored by accuracy, format and the process reward.

Source: arXiv 2509.21113. Total reward = sum of weight * part; the weights are a reconstruction.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any, ClassVar, Literal

import numpy as np

from vr_jax import records
from vr_jax.envs import environment
from vr_jax.rewards import accuracy, process, steps
from vr_jax.rewards import format as format_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class MossChatV:
  """The task. See configs/moss_chatv.py for what each field means; `weights` has accuracy, format and process."""

  instruction: str
  weights: Mapping[str, float]
  alpha: float
  moves: Literal["strict", "jump", "classic"]
  alignment: Literal["subsequence", "naive"]
  gate: Literal["none", "format", "accuracy"]
  segments: ClassVar[tuple[str, ...]] = ("reply",)
  tags: ClassVar[tuple[str, ...]] = ("<think>", "</think>\n<answer>", "</answer>")

  def question(self, example: records.Example) -> str:
    """Question, options one a line, instruction."""
    return environment.question_text(example, self.instruction)

  def reference_reply(self, example: records.Example) -> str | None:
    """The reference steps, one a line, and the answer; None without steps."""
    if not example.steps:
      return None
    trace = "\n".join(step.text for step in example.steps)
    return f"<think>{trace}</think>\n<answer>{example.answer}</answer>"

  def pieces(self, reply: str) -> environment.Pieces:
    """The whole reply is one segment."""
    return ((len(reply), 0),)

  def score(
    self, examples: Sequence[records.Example], replies: environment.Replies
  ) -> records.Scores:
    """Rewards `accuracy`, `format` and `process` (before the gate), each in [0, 1], and their gated, weighted sum."""
    texts = replies.texts
    shape = (len(examples), len(texts[0]), 1)
    flat = [reply for group in texts for reply in group]
    owners = [example for example, group in zip(examples, texts, strict=True) for _ in group]
    parts = {
      "accuracy": accuracy.accuracies(flat, owners),
      "format": [format_lib.format_reward(reply) for reply in flat],
      "process": self._process(flat, owners).reward,
    }
    rewards = {name: np.asarray(v, np.float32).reshape(shape) for name, v in parts.items()}
    passed = (rewards[self.gate] == 1) if self.gate != "none" else np.ones(shape, bool)
    gated = {**rewards, "process": rewards["process"] * passed}
    total = sum(np.float32(self.weights[name]) * value for name, value in gated.items())
    return records.Scores(rewards=rewards, valid=np.ones(shape, bool), total=total)

  def accuracy(self, example: records.Example, reply: str) -> float:
    """The task metric of what stands between the answer tags."""
    return accuracy.accuracy(reply, example.answer, example.problem_type, example.options)

  def trace(self, reply: str) -> str:
    """What stands between the think tags."""
    return steps.think_text(reply)

  def observation(self, reply: str) -> str | None:
    """Not asked for."""
    del reply

  def explain(self, example: records.Example, reply: str) -> Mapping[str, Any]:
    """{"steps", "alignment": {"cost", "path", "distance"}} of one reply."""
    return {
      "steps": steps.split_steps(self.trace(reply)),
      "alignment": self._process([reply], [example]).alignment(0),
    }

  def state(self) -> Mapping[str, Any]:
    """Nothing is remembered."""
    return {}

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Nothing to go back to."""

  def counts(self) -> Mapping[str, float]:
    """Nothing is counted."""
    return {}

  def close(self) -> None:
    """Nothing is held."""

  def _process(
    self, replies: Sequence[str], examples: Sequence[records.Example]
  ) -> process.ProcessReward:
    references = [[step.text for step in example.steps] for example in examples]
    return process.process_reward(
      replies, references, alpha=self.alpha, moves=self.moves, alignment=self.alignment
    )
