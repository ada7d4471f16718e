"""What a recipe asks of a model: the question it shows, and what a reply is worth."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import Float, Int
import numpy as np

from vr_jax import records
from vr_jax.envs import metric
from vr_jax.rewards import accuracy

# What adds numbers up over the processes of a run.
Summed = Callable[[Float[np.ndarray, "numbers"]], Float[np.ndarray, "numbers"]]

Pieces = tuple[tuple[int, int], ...]  # (end, segment), the last end being that of the reply


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replies:
  """What a policy said to a batch of examples.

  texts: [prompts][group]. segment: which one each token belongs to; -1 where there is none. shuffled: what it said to the same
  frames in random order, [prompts][any number], where the loop asks for it.
  """

  texts: Sequence[Sequence[str]]
  segment: Int[np.ndarray, "prompts group time"]
  shuffled: Sequence[Sequence[str]] | None = None

  def lengths(self, segments: int) -> Int[np.ndarray, "prompts group {segments}"]:
    """Tokens of each segment."""
    return np.stack([(self.segment == number).sum(-1) for number in range(segments)], axis=-1)


def question_text(example: records.Example, instruction: str) -> str:
  """Question, options one a line, instruction."""
  return "\n".join(part for part in (example.question, *example.options, instruction) if part)


def worth(answer: str | None, example: records.Example) -> float:
  """The task metric of an answer, without tags; 0 where there is none."""
  return float(worths([answer], [example])[0])


def worths(
  answers: Sequence[str | None], examples: Sequence[records.Example]
) -> Float[np.ndarray, "answers"]:
  """`worth` of each answer to the example of the same index, compared all at once."""
  replies = ["" if answer is None else f"<answer>{answer}</answer>" for answer in answers]
  return accuracy.accuracies(replies, examples)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observation:
  """What a turn shows, in order: texts, and frames by their index in the pool."""

  parts: tuple[str | int, ...]

  @property
  def frames(self) -> tuple[int, ...]:
    """The frames alone."""
    return tuple(part for part in self.parts if isinstance(part, int))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Episode:
  """What a policy said about a pool of so many frames, turn by turn. relevant: frames with the evidence; () where that is not known."""

  pool: int
  relevant: tuple[int, ...]
  replies: tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trace:
  """A reply taken apart into the texts of a supervised trace."""

  observation: str
  reasoning: str
  answer: str


@runtime_checkable
class Task(Protocol):
  """What one recipe asks and how it scores. It knows texts and examples, and no model.

  An implementation is a dataclass that is built from config.env by the names of its fields, and
  declares the rest of these as class variables; `Defaults` has what most need not say.

  segments: names of the parts of a reply, or the turns of an episode, that earn rewards of their own.
  tags: what a reply is marked up with. metrics: those of an evaluation that only this recipe has.
  needs: what is given to it beside the fields of its config, by name (see registry.NEEDS).
  answer_reward: the reward that pays for the answer; a critic gives it to the turns that led there.
  has_observation: whether replies say what was seen before they reason; `parse_trace` then reads
  them, and supervised traces can be made for the recipe. compares_shuffled: whether it rewards
  replies beside those to the same frames in random order.
  """

  segments: tuple[str, ...]
  tags: tuple[str, ...]
  metrics: metric.Metrics
  needs: tuple[str, ...]
  answer_reward: str
  has_observation: bool
  compares_shuffled: bool

  @classmethod
  def check_config(cls, config: Any) -> None:
    """Raises InputError where fields of the whole config do not go with those of config.env."""

  def question(self, example: records.Example) -> str:
    """The text that the (first) user's turn shows beside the frames."""

  def trace(self, reply: str) -> str:
    """The reasoning in a reply: what is read as its steps."""

  def explain(self, example: records.Example, reply: str) -> Mapping[str, Any]:
    """How a reply was read (steps, alignment, segments), as JSON, for the report."""

  def state(self) -> Mapping[str, Any]:
    """What scoring remembers from step to step, as JSON; part of every checkpoint. {} where it remembers nothing."""

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Goes back to a state that `state` gave."""

  def counts(self) -> Mapping[str, float]:
    """What scoring counted since it was last asked, by name, for the metrics."""

  def close(self) -> None:
    """Ends scoring that is under way, and lets go of what it holds."""


class Defaults:
  """What an environment is where it says nothing else. Inherit, and override what differs."""

  metrics: ClassVar[metric.Metrics] = {
    "accuracy": metric.Metric(title="Accuracy", headline=True, chance=metric.guess),
    "format": metric.Metric(title="Right format", reward="format"),
  }
  needs: ClassVar[tuple[str, ...]] = ()
  answer_reward: ClassVar[str] = "accuracy"
  has_observation: ClassVar[bool] = False
  compares_shuffled: ClassVar[bool] = False

  @classmethod
  def check_config(cls, config: Any) -> None:
    """All configs are good."""
    del config

  def parse_trace(self, reply: str) -> Trace | None:
    """Replies hold no observation."""
    del reply

  def observation(self, reply: str) -> str | None:
    """Replies are not asked for what was seen."""
    del reply

  def state(self) -> Mapping[str, Any]:
    """Scoring remembers nothing."""
    return {}

  def set_state(self, state: Mapping[str, Any]) -> None:
    """There is nothing to go back to."""
    del state

  def counts(self) -> Mapping[str, float]:
    """Scoring counts nothing."""
    return {}

  def close(self) -> None:
    """Scoring holds nothing."""


@runtime_checkable
class Environment(Task, Protocol):
  """A task of one reply."""

  def reference_reply(self, example: records.Example) -> str | None:
    """The whole reply that the reference gives, for supervised training; None where the example has no trace."""

  def pieces(self, reply: str) -> Pieces:
    """Which segment each part of a reply belongs to: (end, segment) of the parts, one after the other, in characters."""

  def score(self, examples: Sequence[records.Example], replies: Replies) -> records.Scores:
    """The rewards of replies; may be called from another thread, a batch at a time."""

  def accuracy(self, example: records.Example, reply: str) -> float:
    """The task metric of its answer, whatever else the reply is rewarded for; no judge is asked."""

  def observation(self, reply: str) -> str | None:
    """What a reply says to have seen, "" where it says nothing; None where the recipe doesn't ask for it."""

  def parse_trace(self, reply: str) -> Trace | None:
    """The texts of a reply that has exactly the right form, none of them empty; None of any other."""


@runtime_checkable
class TurnsEnvironment(Task, Protocol):
  """A task of several turns about a pool of frames: replies ask for frames, or answer.

  turns: replies of an episode, at most. answer_reward: the reward that is the answer's; a turn's others are its own.
  """

  turns: int
  answer_reward: str

  def observe(
    self, example: records.Example, pool: int, replies: Sequence[str]
  ) -> Observation | None:
    """What comes after these replies (() for the first turn) in a pool of so many frames; None where the episode has ended."""

  def probes(self, pool: int) -> tuple[str, ...]:
    """Replies after which what is shown is as long as it gets, for each way in which it is said; the first goes on."""

  def reference_replies(
    self, example: records.Example, times: Float[np.ndarray, "pool"]
  ) -> tuple[str, ...]:
    """An episode that shows how it is done, for supervised training; () where there is none. times: of the pool, seconds."""

  def relevant(self, example: records.Example, times: Float[np.ndarray, "pool"]) -> tuple[int, ...]:
    """The frames of the pool with the evidence; () where that is not known."""

  def rewards(
    self,
    examples: Sequence[records.Example],
    episodes: Sequence[Sequence[Episode]],
    *,
    training: bool = True,
    summed: Summed = np.asarray,
  ) -> records.Scores:
    """What every turn earns, [prompts, group, turns]; those that were not taken are not valid.

    training: a bonus for exploring counts, and the environment remembers and counts the batch. summed: adds up numbers of rows that
    several processes have; all of them then call this, in the same order.
    """

  def outcome(self, example: records.Example, episode: Episode) -> dict[str, float]:
    """What an episode came to, by name: `accuracy`, `format` and what else the recipe is measured by."""


def has_turns(environment: Task) -> bool:
  """Whether replies ask for frames: clips are then pools that turns choose from."""
  return isinstance(environment, TurnsEnvironment)
