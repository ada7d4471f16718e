"""Plain question answering: one reply of reasoning and answer, scored by a list of rewards.

    <think>what follows from the frames</think>
    <answer>…</answer>

It needs no reference steps. Recipes of one reply inherit from it, and so do those of a user: they
add rewards of their own, and override what they do differently.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from typing import Any, ClassVar

from jaxtyping import Float
import numpy as np

from vr_jax import records, schema
from vr_jax.envs import environment
from vr_jax.rewards import accuracy, reward_function, steps
from vr_jax.rewards import format as format_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionAnswer(environment.Defaults):
  """The task. Raises InputError where a reward that its config lists is not to be had."""

  instruction: str = schema.field("", "Stands below the question; it has to ask for all tags.")
  rewards: tuple[str, ...] = schema.field(
    ("accuracy", "format"),
    "Names of rewards, or file.py:function of your own; *0.5 behind one is its weight.",
    length=1,
  )
  weights: Mapping[str, float] = schema.field(
    {}, "Weights of rewards by name; 1 where there is none."
  )
  tags: ClassVar[tuple[str, ...]] = ("<think>", "</think>\n<answer>", "</answer>")

  def __post_init__(self):
    self.listed_rewards  # noqa: B018  # what can't be had is found before anything runs

  def reward_functions(self) -> Mapping[str, reward_function.Function]:
    """The rewards that config.env.rewards may name: of replies, and the example of each, a number each."""
    return {"accuracy": accuracy.accuracies, "format": format_lib.format_rewards}

  @functools.cached_property
  def listed_rewards(self) -> tuple[reward_function.Reward, ...]:
    """Those of the config, with their weights."""
    return reward_function.resolve(self.rewards, self.reward_functions(), self.weights)

  def question(self, example: records.Example) -> str:
    """Question, options one a line, instruction."""
    return environment.question_text(example, self.instruction)

  def reference_reply(self, example: records.Example) -> str | None:
    """The reference steps, one a line, and the answer; None without steps."""
    if not example.steps:
      return None
    trace = "\n".join(step.text for step in example.steps)
    return f"<think>{trace}</think>\n<answer>{example.answer}</answer>"

  def score(
    self, examples: Sequence[records.Example], replies: environment.Replies
  ) -> records.Scores:
    """Each reward of the config by its name, and their total."""
    texts = replies.texts
    shape = (len(examples), len(texts[0]), 1)
    flat = [reply for group in texts for reply in group]
    owners = [example for example, group in zip(examples, texts, strict=True) for _ in group]
    rewards = {r.name: r(flat, owners).reshape(shape) for r in self.listed_rewards}
    return records.Scores(rewards=rewards, valid=np.ones(shape, bool), total=self.total(rewards))

  def total(
    self, rewards: Mapping[str, Float[np.ndarray, "prompts group 1"]]
  ) -> Float[np.ndarray, "prompts group 1"]:
    """The weighted sum of rewards."""
    return sum(np.float32(reward.weight) * rewards[reward.name] for reward in self.listed_rewards)

  def accuracy(self, example: records.Example, reply: str) -> float:
    """The task metric of what stands between the answer tags."""
    return accuracy.accuracy(reply, example.answer, example.problem_type, example.options)

  def trace(self, reply: str) -> str:
    """What stands between the think tags."""
    return steps.think_text(reply)

  def explain(self, example: records.Example, reply: str) -> Mapping[str, Any]:
    """{"steps"} of one reply."""
    del example
    return {"steps": steps.split_steps(self.trace(reply))}
