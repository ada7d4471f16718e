"""Plain question answering: one reply of reasoning and answer, scored by a list of rewards.

    <think>what follows from the frames</think>
    <answer>…</answer>

It needs no reference steps. Other recipes of one reply, a user's too, inherit from it: they add
rewards and override what they do differently.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any, ClassVar, Literal

from jaxtyping import Float
import numpy as np

from vr_jax import errors, records, schema
from vr_jax.envs import environment
from vr_jax.rewards import accuracy, length, reward_function, steps
from vr_jax.rewards import format as format_lib

SIGNED = ("accuracy", "length")  # rewards that combination=signed multiplies


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionAnswer(environment.Defaults):
  """The environment. Raises InputError if a reward that its config lists does not exist."""

  instruction: str = schema.field("", "Stands below the question; it has to ask for all tags.")
  rewards: tuple[str, ...] = schema.field(
    ("accuracy", "format"),
    "Names of rewards, or file.py:function of your own; *0.5 behind one is its weight.",
    length=1,
    change="before rl",
  )
  weights: Mapping[str, float] = schema.field(
    {}, "Weights of rewards by name; 1 where there is none.", change="before rl"
  )
  combination: Literal["sum", "signed"] = schema.field(
    "sum",
    "How rewards make the total. sum: each times its weight. signed: the same, but accuracy and "
    "length count as accuracy + (2 accuracy - 1) length, or -2 where that is 0 (arXiv 2504.09641).",
    change="before rl",
  )
  length_characters: int = schema.field(
    1200,
    "Characters of reasoning from which on the reward length is full (arXiv 2504.09641).",
    "[1, inf)",
    change="before rl",
  )
  tags: ClassVar[tuple[str, ...]] = ("<think>", "</think>\n<answer>", "</answer>")

  def __post_init__(self):
    weights = {reward.name: reward.weight for reward in self.listed_rewards}
    if self.combination == "signed" and any(weights.get(name) != 1 for name in SIGNED):
      raise errors.InputError(
        "config.env.combination=signed: needs the rewards accuracy and length, each with the "
        f"weight 1; config.env.rewards={self.rewards}"
      )

  def reward_functions(self) -> Mapping[str, reward_function.Function]:
    """The functions that config.env.rewards may name.

    Each takes replies and the example of each, and returns a number for each reply.
    """
    return {
      "accuracy": accuracy.accuracies,
      "format": format_lib.format_rewards,
      "length": lambda replies, _: length.length_rewards(replies, self.length_characters),
    }

  @functools.cached_property
  def listed_rewards(self) -> tuple[reward_function.Reward, ...]:
    """The rewards that the config lists, with their weights."""
    return reward_function.resolve(self.rewards, self.reward_functions(), self.weights)

  def question(self, example: records.Example) -> str:
    """The question, the options and the instruction, each on a line of its own."""
    return environment.question_text(example, self.instruction)

  def reference_reply(self, example: records.Example) -> str | None:
    """The reference steps, one per line, and the answer; None without steps."""
    if not example.steps:
      return None
    trace = "\n".join(step.text for step in example.steps)
    return f"<think>{trace}</think>\n<answer>{example.answer}</answer>"

  def score(
    self, examples: Sequence[records.Example], replies: environment.Replies
  ) -> records.Scores:
    """Each reward that the config lists, by name, and their total."""
    texts = replies.texts
    shape = (len(examples), len(texts[0]), 1)
    flat = [reply for group in texts for reply in group]
    owners = [example for example, group in zip(examples, texts, strict=True) for _ in group]
    rewards = {r.name: r(flat, owners).reshape(shape) for r in self.listed_rewards}
    return records.Scores(rewards=rewards, scored=np.ones(shape, bool), total=self.total(rewards))

  def total(
    self, rewards: Mapping[str, Float[np.ndarray, "prompts group 1"]]
  ) -> Float[np.ndarray, "prompts group 1"]:
    """The weighted sum of the rewards; see `combination`."""
    signed = self.combination == "signed"
    weighted = [
      np.float32(each.weight) * rewards[each.name]
      for each in self.listed_rewards
      if not (signed and each.name in SIGNED)
    ]
    if signed:
      weighted.append(length.signed_total(*(rewards[name] for name in SIGNED)))
    return np.asarray(sum(weighted))

  def accuracy(self, example: records.Example, reply: str) -> float:
    """The task metric of the text between the answer tags."""
    return accuracy.accuracy(reply, example.answer, example.problem_type, example.options)

  def trace(self, reply: str) -> str:
    """The text between the think tags."""
    return steps.think_text(reply)

  def explain(self, example: records.Example, reply: str) -> Mapping[str, Any]:
    """{"steps": the reasoning steps} of one reply."""
    del example
    return {"steps": steps.split_steps(self.trace(reply))}
