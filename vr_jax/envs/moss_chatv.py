"""MOSS-ChatV: one reply of reasoning and answer, scored by accuracy, format and the process reward.

The total reward is the sum of weight * reward. `Reconstruction:` the weights.
Source: arXiv 2509.21113. The step distances `claims` and `embeddings` are ours: ROUGE, which the
paper uses, pays for the reference's wording.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import functools
from typing import Any, ClassVar, Literal

from jaxtyping import Float
import numpy as np

from vr_jax import errors, records, schema
from vr_jax.envs import metric, question_answer
from vr_jax.rewards import claim_distance, process, reward_function, steps
from vr_jax.rewards import step_distance as step_distance_lib
from vr_jax.worlds import claims


@dataclasses.dataclass(frozen=True, kw_only=True)
class MossChatV(question_answer.QuestionAnswer):
  """The environment. Raises InputError if the gate is a reward that config.env.rewards lacks.

  step_embedder: None if no replies are scored, or step_distance is not embeddings.
  """

  rewards: tuple[str, ...] = schema.field(
    ("accuracy", "format", "process"),
    "Names of rewards, or file.py:function of your own; *0.5 behind one is its weight.",
    length=1,
    change="before rl",
  )
  alpha: float = schema.field(
    1.0, "Process reward = exp(-alpha * distance). Reconstruction.", "(0, inf)", change="before rl"
  )
  dtw_moves: Literal["strict", "jump", "classic"] = schema.field(
    "jump", "How the alignment goes from one pair of steps to the next.", change="before rl"
  )
  dtw_alignment: Literal["subsequence", "naive"] = schema.field(
    "subsequence",
    "Which steps of a reply are aligned: the stretch that fits best, or (naive, the paper's "
    "ablation) all.",
    change="before rl",
  )
  step_distance: Literal["rouge", "claims", "embeddings"] = schema.field(
    "rouge",
    "How far two steps are apart: by their words (the paper's), by what they claim of the objects "
    "of a simulated video, or by their hidden states in the policy that RL starts from.",
    change="before rl",
  )
  claim_seconds: float = schema.field(
    2.0,
    "Seconds between the times of two equal claims from which on they count as different.",
    "(0, inf)",
    only_with="step_distance=claims",
    change="before rl",
  )
  embedding_layers: float = schema.field(
    0.5,
    "Fraction of the text layers, from the first, that embed a step.",
    "(0, 1]",
    only_with="step_distance=embeddings",
    change="before rl",
  )
  process_gate: Literal["none", "format", "accuracy"] = schema.field(
    "none",
    "Reward that must be 1 for the process reward to count; none: it always counts.",
    change="before rl",
  )
  step_embedder: step_distance_lib.StepEmbedder | None = None
  needs: ClassVar[tuple[str, ...]] = ("step_embedder",)
  metrics: ClassVar[metric.Metrics] = {
    **question_answer.QuestionAnswer.metrics,
    "process_reward": metric.Metric(
      title="Process reward",
      note="PRR: reasoning steps aligned with the reference, 0 to 1",
      unit="",
      digits=3,
      headline=True,
      fraction=True,
      reward="process",
    ),
  }

  def __post_init__(self):
    super().__post_init__()
    names = [reward.name for reward in self.listed_rewards]
    if self.process_gate not in ("none", *names):
      raise errors.InputError(
        f"config.env.process_gate={self.process_gate}: is none of config.env.rewards "
        f"({', '.join(names)})"
      )

  def check_examples(self, examples: Iterable[records.Example]) -> None:
    """Raises InputError if the process reward has a weight and no use.

    That is so if no example has steps, or if most steps claim nothing and claims are compared.
    """
    weight = sum(reward.weight for reward in self.listed_rewards if reward.name == "process")
    if not weight:
      return
    has_steps, count, read, silent = False, 0, 0, 0
    for example in examples:
      count, has_steps = count + 1, has_steps or bool(example.steps)
      if self.step_distance == "claims":
        step_claims = _read_reference_claims(example)
        read, silent = read + len(step_claims), silent + sum(not each for each in step_claims)
      elif has_steps:
        return
    if count and not has_steps:
      raise errors.InputError(
        f"config.env.rewards: process has the weight {weight:g}, but none of {count} "
        "examples to train on has reference steps; add the field 'steps' to the annotations, or "
        "use the recipe grpo"
      )
    if 2 * silent > read:
      raise errors.InputError(
        f"config.env.step_distance=claims: {silent} of {read} reference steps claim nothing "
        "that can be read, since claims are read as the simulator writes them; "
        "choose rouge or embeddings"
      )

  def reward_functions(self) -> Mapping[str, reward_function.Function]:
    """The rewards of question answering, and `process`; each is in [0, 1]."""
    return {**super().reward_functions(), "process": self._process_rewards}

  def total(
    self, rewards: Mapping[str, Float[np.ndarray, "prompts group 1"]]
  ) -> Float[np.ndarray, "prompts group 1"]:
    """The weighted sum; the process reward counts only where the gate's reward is 1."""
    if self.process_gate == "none" or "process" not in rewards:
      return super().total(rewards)
    return super().total(
      {**rewards, "process": rewards["process"] * (rewards[self.process_gate] == 1)}
    )

  def reference_problem(self, example: records.Example) -> str:
    """As for question answering, and why a copy of the reference steps has no full process reward.

    Examples without steps have none to copy.
    """
    problem = super().reference_problem(example)
    reply = self.reference_reply(example)
    weighted = any(each.name == "process" and each.weight for each in self.listed_rewards)
    if problem or reply is None or not weighted:
      return problem
    problem = process.find_reference_problem(reply, [step.text for step in example.steps])
    return f"field 'steps': {problem}" if problem else ""

  def explain(self, example: records.Example, reply: str) -> Mapping[str, Any]:
    """{"reference", "steps", "alignment": {"cost", "path", "distance"}} of one reply.

    reference: the reference steps as the process reward splits them.
    """
    reference = [
      dataclasses.replace(step, text=text)
      for step in example.steps
      for text in process.split_reference([step.text])
    ]
    return {
      "reference": [dataclasses.asdict(step) for step in reference],
      "steps": steps.split_steps(self.trace(reply)),
      "alignment": self._process([reply], [example]).alignment(0),
    }

  def _process_rewards(
    self, replies: Sequence[str], examples: Sequence[records.Example]
  ) -> Float[np.ndarray, "replies"]:
    return self._process(replies, examples).reward

  def _process(
    self, replies: Sequence[str], examples: Sequence[records.Example]
  ) -> process.ProcessReward:
    references = [[step.text for step in example.steps] for example in examples]
    return process.process_reward(
      replies,
      references,
      alpha=self.alpha,
      moves=self.dtw_moves,
      alignment=self.dtw_alignment,
      distance=self._distance,
    )

  @functools.cached_property
  def _distance(self) -> step_distance_lib.StepDistance:
    if self.step_distance == "claims":
      return claim_distance.ClaimDistance(read=claims.read_step_claims, seconds=self.claim_seconds)
    if self.step_distance == "rouge":
      return process.ROUGE
    if self.step_embedder is None:
      raise ValueError("config.env.step_distance=embeddings: the environment has no step_embedder")
    return step_distance_lib.EmbeddingDistance(self.step_embedder)


def _read_reference_claims(example: records.Example) -> Sequence[Sequence[claims.Claim]]:
  """The claims of each reference step, as the process reward splits them."""
  return claims.read_step_claims(process.split_reference([step.text for step in example.steps]))
