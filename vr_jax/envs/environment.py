"""What a recipe asks of a model: what it shows, turn by turn, and what replies are worth."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any, ClassVar, Protocol, runtime_checkable

from jaxtyping import Float, Int
import numpy as np

from vr_jax import records
from vr_jax.envs import metric
from vr_jax.envs import retrieval_actions as retrieval_actions
from vr_jax.rewards import accuracy

# What adds numbers up over the processes of a run.
SumAcrossProcesses = Callable[[Float[np.ndarray, "numbers"]], Float[np.ndarray, "numbers"]]

SegmentSpans = tuple[tuple[int, int], ...]  # (end, segment), the last end being that of the reply


@dataclasses.dataclass(frozen=True, kw_only=True)
class Episode:
  """What a policy replied about one example, turn by turn.

  pool: number of frames of its clip. relevant: which of them hold the evidence; () if unknown.
  """

  pool: int
  relevant: tuple[int, ...]
  replies: tuple[str, ...]


def single_turn(text: str) -> Episode:
  """An episode of one reply, of which nothing else is known."""
  return Episode(pool=0, relevant=(), replies=(text,))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replies:
  """What a policy replied to a batch of examples.

  episodes: [prompts][group]. segment: which segment each token belongs to; -1 where there is none.
  shuffled: its replies to the same frames in random order, [prompts][any number]; None if there
  are none.
  """

  episodes: Sequence[Sequence[Episode]]
  segment: Int[np.ndarray, "prompts group time"]
  shuffled: Sequence[Sequence[str]] | None = None

  @classmethod
  def from_texts(
    cls,
    texts: Sequence[Sequence[str]],
    segment: Int[np.ndarray, "prompts group time"],
    *,
    shuffled: Sequence[Sequence[str]] | None = None,
  ) -> "Replies":
    """Replies of one turn each. texts: [prompts][group]."""
    episodes = [[single_turn(text) for text in group] for group in texts]
    return cls(episodes=episodes, segment=segment, shuffled=shuffled)

  @property
  def texts(self) -> list[list[str]]:
    """The last reply of each episode, [prompts][group]."""
    return [[episode.replies[-1] for episode in group] for group in self.episodes]

  def lengths(self, segments: int) -> Int[np.ndarray, "prompts group {segments}"]:
    """Tokens of each segment."""
    return np.stack([(self.segment == number).sum(-1) for number in range(segments)], axis=-1)


def question_text(example: records.Example, instruction: str) -> str:
  """Question, options one a line, instruction."""
  return "\n".join(part for part in (example.question, *example.options, instruction) if part)


def task_score(answer: str | None, example: records.Example) -> float:
  """The task metric of an answer, without tags; 0 where there is none."""
  return float(task_scores([answer], [example])[0])


def task_scores(
  answers: Sequence[str | None], examples: Sequence[records.Example]
) -> Float[np.ndarray, "answers"]:
  """`worth` of each answer to the example of the same index, compared all at once."""
  replies = ["" if answer is None else f"<answer>{answer}</answer>" for answer in answers]
  return accuracy.accuracies(replies, examples)


@dataclasses.dataclass(frozen=True)
class WholeClip:
  """Stands in an observation for all frames of the clip, shown as one video."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Observation:
  """What a turn shows, in order: texts, single frames by their index in the pool, or the clip.

  A turn that shows the whole clip shows one text beside it; config.model.question_first says which
  of the two stands first.
  """

  parts: tuple[str | int | WholeClip, ...]

  @property
  def frames(self) -> tuple[int, ...]:
    """The single frames."""
    return tuple(part for part in self.parts if isinstance(part, int))

  @property
  def texts(self) -> tuple[str, ...]:
    """The texts."""
    return tuple(part for part in self.parts if isinstance(part, str))

  @property
  def shows_clip(self) -> bool:
    """Whether it shows the whole clip."""
    return any(isinstance(part, WholeClip) for part in self.parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trace:
  """A reply taken apart into the texts of a supervised trace."""

  observation: str
  reasoning: str
  answer: str


@runtime_checkable
class Environment(Protocol):
  """What one recipe asks, and how it scores replies. It knows texts and examples, and no model.

  An episode is a conversation about one example: `observe` shows something, the model replies,
  `observe` shows what follows, until it returns None. Most recipes have one turn, which shows the
  whole clip and a question; `Defaults` implements all that those need not say.

  An implementation is a dataclass that is built from config.env by the names of its fields, and
  declares the rest of these as class variables.

  turns: replies of an episode, at most. history_turns: turns before its own that a reply sees (None: all of
  them); those before it are forgotten, and of the first turn the system turn is kept. chooses_frames: whether turns show single frames of the
  clip, so that it is a pool to choose from; otherwise the first turn shows it whole. segments: names
  of the parts of an episode that earn rewards of their own: parts of a reply, or whole turns. tags:
  what a reply is marked up with. metrics: those of an evaluation that only this recipe has. needs:
  what is given to it beside the fields of its config, by name (see registry.NEEDS). answer_reward:
  the reward that pays for the answer; a critic gives it to the turns that led there.
  has_observation: whether replies say what was seen before they reason; `parse_trace` then reads
  them, and supervised traces can be made for the recipe. compares_shuffled: whether it rewards
  replies beside those to the same frames in random order.
  """

  turns: int
  history_turns: int | None
  chooses_frames: bool
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
    """The text that the first turn shows beside the frames."""

  def observe(
    self, example: records.Example, pool: int, replies: Sequence[str]
  ) -> Observation | None:
    """What follows these replies, () for the first turn; None where the episode has ended.

    pool: number of frames of the clip. A function of its arguments alone; called on threads.
    """

  def longest_replies(self, pool: int) -> tuple[str, ...]:
    """Replies that trigger the longest observation of each kind, to size buffers; the first goes on."""

  def reference_replies(
    self, example: records.Example, times: Float[np.ndarray, "pool"]
  ) -> tuple[str, ...]:
    """An episode to train on, a reply a turn; () if there is none. times: of the frames, seconds."""

  def relevant(self, example: records.Example, times: Float[np.ndarray, "pool"]) -> tuple[int, ...]:
    """The frames of the pool with the evidence; () if that is unknown."""

  def segment_spans(self, reply: str, turn: int) -> SegmentSpans:
    """Which segment each part of the reply of a turn belongs to: (end, segment), in characters."""

  def score(self, examples: Sequence[records.Example], replies: Replies) -> records.Scores:
    """The rewards of a batch; those of segments that a reply does not have are not valid.

    It is called on a thread, a batch at a time, while other batches are sampled and learnt from, and
    in evaluation: it remembers nothing. What depends on other batches belongs into `finish_batch`.
    """

  def finish_batch(
    self,
    examples: Sequence[records.Example],
    replies: Replies,
    scores: records.Scores,
    *,
    sum_processes: SumAcrossProcesses = np.asarray,
  ) -> tuple[records.Scores, Mapping[str, float]]:
    """(the scores of a training batch, what it counted by name), with what depends on other batches.

    It is called in the order of steps, once for each batch, by all processes together, and alone
    changes what `state` gives. sum_processes: adds up numbers of rows that several processes have.
    """

  def episode_metrics(self, example: records.Example, episode: Episode) -> dict[str, float]:
    """What an evaluation measures of an episode, by name: `accuracy`, the task metric, and others."""

  def accuracy(self, example: records.Example, reply: str) -> float:
    """The task metric of the answer in a reply, whatever else it is rewarded for; asks no judge."""

  def parse_action(
    self, example: records.Example, pool: int, reply: str
  ) -> retrieval_actions.Action:
    """What a reply does: it answers, asks for frames, or neither."""

  def observation(self, reply: str) -> str | None:
    """What a reply says to have seen, "" if nothing; None where the recipe doesn't ask for it."""

  def parse_trace(self, reply: str) -> Trace | None:
    """The texts of a reply that has exactly the right form, none of them empty; None of any other."""

  def trace(self, reply: str) -> str:
    """The reasoning in a reply: what is read as its steps."""

  def explain(self, example: records.Example, reply: str) -> Mapping[str, Any]:
    """How a reply was read (steps, alignment, segments), as JSON, for the report."""

  def tokenizer_texts(self, example: records.Example, pool: int) -> tuple[str, ...]:
    """Texts of the first turn that a tokenizer learns from, where a recipe trains one."""

  def state(self) -> Mapping[str, Any]:
    """What is remembered from batch to batch, as JSON; part of every checkpoint. {} if nothing."""

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Goes back to a state that `state` gave."""

  def counts(self) -> Mapping[str, float]:
    """What `score` counted since this was last asked, by name, for the metrics."""

  def close(self) -> None:
    """Ends scoring that is under way, and lets go of what it holds."""


class Defaults:
  """What an environment is where it says nothing else. Inherit, and override what differs.

  One turn shows the whole clip and `question`; an environment of this kind adds `question`, `score`
  and `accuracy`, and `reference_reply` where there are replies to train on.
  """

  turns: ClassVar[int] = 1
  history_turns: ClassVar[int | None] = None
  chooses_frames: ClassVar[bool] = False
  segments: ClassVar[tuple[str, ...]] = ("reply",)
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

  def observe(
    self, example: records.Example, pool: int, replies: Sequence[str]
  ) -> Observation | None:
    """The clip and the question; nothing follows a reply."""
    del pool
    return None if replies else Observation(parts=(WholeClip(), self.question(example)))

  def longest_replies(self, pool: int) -> tuple[str, ...]:
    """No reply is shown anything."""
    del pool
    return ()

  def reference_reply(self, example: records.Example) -> str | None:
    """The reply to train on; None: there is none."""
    del example

  def reference_replies(
    self, example: records.Example, times: Float[np.ndarray, "pool"]
  ) -> tuple[str, ...]:
    """The `reference_reply` alone."""
    del times
    reply = self.reference_reply(example)
    return () if reply is None else (reply,)

  def relevant(self, example: records.Example, times: Float[np.ndarray, "pool"]) -> tuple[int, ...]:
    """Unknown."""
    del example, times
    return ()

  def segment_spans(self, reply: str, turn: int) -> SegmentSpans:
    """Every turn is a segment."""
    return ((len(reply), turn),)

  def finish_batch(
    self,
    examples: Sequence[records.Example],
    replies: Replies,
    scores: records.Scores,
    *,
    sum_processes: SumAcrossProcesses = np.asarray,
  ) -> tuple[records.Scores, Mapping[str, float]]:
    """No batch depends on another."""
    del examples, replies, sum_processes
    return scores, {}

  def episode_metrics(self, example: records.Example, episode: Episode) -> dict[str, float]:
    """The accuracy of the last reply, in the precision of rewards, of which it often is one."""
    return {"accuracy": float(np.float32(self.accuracy(example, episode.replies[-1])))}

  def parse_action(
    self, example: records.Example, pool: int, reply: str
  ) -> retrieval_actions.Action:
    """What stands between the answer tags, whatever else the reply says."""
    del example, pool
    answer = accuracy.answer_text(reply)
    if answer is None:
      return retrieval_actions.Action(kind="invalid")
    return retrieval_actions.Action(kind="answer", answer=answer)

  def parse_trace(self, reply: str) -> Trace | None:
    """Replies hold no observation."""
    del reply

  def observation(self, reply: str) -> str | None:
    """Replies are not asked for what was seen."""
    del reply

  def tokenizer_texts(self, example: records.Example, pool: int) -> tuple[str, ...]:
    """Question and options, without the instruction."""
    del pool
    return (example.question, *example.options)

  def state(self) -> Mapping[str, Any]:
    """Nothing is remembered."""
    return {}

  def set_state(self, state: Mapping[str, Any]) -> None:
    """There is nothing to go back to."""
    del state

  def counts(self) -> Mapping[str, float]:
    """Scoring counts nothing."""
    return {}

  def close(self) -> None:
    """Scoring holds nothing."""
