"""The interface of environments: what a recipe shows, turn by turn, and how it scores replies."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

from jaxtyping import Float
import numpy as np

from vr_jax import records
from vr_jax.envs import grounding as grounding_lib
from vr_jax.envs import metric
from vr_jax.envs import retrieval_actions as retrieval_actions
from vr_jax.envs.episodes import Episode as Episode
from vr_jax.envs.episodes import Observation as Observation
from vr_jax.envs.episodes import Replies as Replies
from vr_jax.envs.episodes import ShownFrame as ShownFrame
from vr_jax.envs.episodes import Size as Size
from vr_jax.envs.episodes import Trace as Trace
from vr_jax.envs.episodes import WholeClip as WholeClip
from vr_jax.envs.episodes import single_turn as single_turn
from vr_jax.rewards import accuracy

# A function that sums numbers over the processes of a run.
SumAcrossProcesses = Callable[[Float[np.ndarray, "numbers"]], Float[np.ndarray, "numbers"]]

# (end character, segment index), ascending; the last end is len(reply).
SegmentSpans = tuple[tuple[int, int], ...]


def question_text(example: records.Example, instruction: str) -> str:
  """The question, the options and the instruction, each on a line of its own."""
  return "\n".join(part for part in (example.question, *example.options, instruction) if part)


def task_score(answer: str | None, example: records.Example) -> float:
  """The task metric of one answer, given without tags; 0 if it is None."""
  return float(task_scores([answer], [example])[0])


def task_scores(
  answers: Sequence[str | None], examples: Sequence[records.Example]
) -> Float[np.ndarray, "answers"]:
  """`task_score` of each answer to the example of the same index, computed in one batch."""
  replies = ["" if answer is None else f"<answer>{answer}</answer>" for answer in answers]
  return accuracy.accuracies(replies, examples)


@runtime_checkable
class Environment(Protocol):
  """What one recipe asks, and how it scores replies. It knows texts and examples, but no model.

  An episode is a conversation about one example: `observe` gives the first turn, the model replies,
  `observe` gives the next turn, and so on until it returns None. Most recipes have a single turn,
  which shows the whole clip and a question; `Defaults` implements everything they have in common.

  An implementation is a dataclass. Its fields are filled from config.env by name. Properties below
  that it does not have as fields are class variables.
  """

  @property
  def turns(self) -> int:
    """The maximum number of replies of an episode."""
    ...

  @property
  def history_turns(self) -> int | None:
    """How many earlier turns a reply can attend to, besides the system message; None: all."""
    ...

  @property
  def chooses_frames(self) -> bool:
    """Whether turns show single frames of the clip; if not, the first turn shows all of it."""
    ...

  @property
  def finds_objects(self) -> bool:
    """Whether replies give the box of an object in a frame, which `grounding` reads."""
    ...

  @property
  def segments(self) -> tuple[str, ...]:
    """Names of what has rewards of its own: parts of a reply, or whole turns."""
    ...

  @property
  def tags(self) -> tuple[str, ...]:
    """The markup of a reply."""
    ...

  @property
  def metrics(self) -> metric.Metrics:
    """How the metrics of an evaluation of this recipe are displayed."""
    ...

  @property
  def best_metric(self) -> str:
    """The evaluation metric by which RL keeps its best checkpoint (docs/own_recipe.md)."""
    ...

  @property
  def needs(self) -> tuple[str, ...]:
    """Services that the constructor takes besides the fields of the config, see registry.NEEDS."""
    ...

  @property
  def answer_reward(self) -> str:
    """Name of the reward for the answer.

    The critic (rl.advantage_estimator=gae) spreads it over the turns that led to the answer.
    """
    ...

  @property
  def has_observation(self) -> bool:
    """Whether a reply describes what it sees before it reasons, and `parse_trace` reads it."""
    ...

  @property
  def compares_shuffled(self) -> bool:
    """Whether rewards compare replies with replies to the same frames in random order."""
    ...

  @classmethod
  def check_config(cls, config: Any) -> None:
    """Raises InputError if other sections of the config contradict config.env."""
    ...

  def check_examples(self, examples: Iterable[records.Example]) -> None:
    """Raises InputError if no example to train on has what a reward with a weight needs."""
    ...

  def question(self, example: records.Example) -> str:
    """The text that the first turn shows along with the frames."""
    ...

  def observe(
    self, example: records.Example, pool: int, replies: Sequence[str]
  ) -> Observation | None:
    """The turn that follows these replies; None if the episode has ended.

    It depends on its arguments alone and is called on threads.

    pool: number of frames of the clip.
    replies: of the turns so far; () for the first turn.
    """

  def longest_replies(self, pool: int) -> tuple[str, ...]:
    """The replies after which the next observation is longest, one of each kind, to size buffers.

    Before training, `observe` is asked for the second turn and for the last one after each of them.
    On the way to the last turn, the first of them is repeated, so it must not end the episode.
    """
    ...

  def reference_replies(
    self, example: records.Example, times: Float[np.ndarray, "pool"]
  ) -> tuple[str, ...]:
    """Replies to train on, one for each turn; () if there are none.

    times: of the frames of the pool, seconds.
    """
    ...

  def reference_problem(self, example: records.Example) -> str:
    """Why a copy of the reference earns less than it can, as an error to the user; else ""."""
    ...

  def relevant(self, example: records.Example, times: Float[np.ndarray, "pool"]) -> tuple[int, ...]:
    """Indices of the frames that hold the evidence; () if that is unknown.

    Raises InputError if the annotation lacks one of these frames.
    """
    ...

  def segment_spans(self, reply: str, turn: int) -> SegmentSpans:
    """How a reply splits into segments."""
    ...

  def score(self, examples: Sequence[records.Example], replies: Replies) -> records.Scores:
    """The rewards of a batch. Segments that a reply does not have are marked as not scored.

    It is called on a thread while other batches are sampled and trained on, and in evaluation. So
    it must not change what `state` returns. It may update counters, which `counts`, called after it
    on the same thread, returns and resets. `finish_batch` adds what depends on other batches.
    """
    ...

  def finish_batch(
    self,
    examples: Sequence[records.Example],
    replies: Replies,
    scores: records.Scores,
    *,
    sum_processes: SumAcrossProcesses = np.asarray,
  ) -> tuple[records.Scores, Mapping[str, float]]:
    """Adds to the scores of a training batch what depends on other batches.

    All processes call it together, once for each batch, in the order of the steps. Besides
    `set_state`, it is the only method that changes what `state` returns.

    sum_processes: sums numbers over processes, each of which has some rows of the batch.

    Returns the scores, and metrics by name.
    """
    ...

  def episode_metrics(self, example: records.Example, episode: Episode) -> dict[str, float]:
    """Metrics of one episode for an evaluation, by name; `accuracy` is the task metric."""
    ...

  def accuracy(self, example: records.Example, reply: str) -> float:
    """The task metric of the answer in a reply, without other rewards and without a judge."""
    ...

  def parse_action(
    self, example: records.Example, pool: int, reply: str, turn: int
  ) -> retrieval_actions.Action:
    """The action of the reply of a turn: an answer, a request for frames, or an invalid one."""
    ...

  def grounding(self, replies: Sequence[str], pool: int, size: Size) -> grounding_lib.Grounding:
    """The frame and the box that an episode gave.

    pool: number of frames of the clip.
    size: height and width of the video, in whose pixels the box is.
    """
    ...

  def observation(self, reply: str) -> str | None:
    """The observation in a reply, "" if it has none; None if the recipe does not ask for one."""
    ...

  def parse_trace(self, reply: str) -> Trace | None:
    """The parts of a reply that has exactly the right form and no empty part; otherwise None."""
    ...

  def trace(self, reply: str) -> str:
    """The reasoning in a reply, which is split into steps."""
    ...

  def explain(self, example: records.Example, reply: str) -> Mapping[str, Any]:
    """How a reply was parsed (steps, alignment, segments), as JSON for the report."""
    ...

  def tokenizer_texts(self, example: records.Example, pool: int) -> tuple[str, ...]:
    """Texts of the first turn, for recipes that train a tokenizer."""
    ...

  def state(self) -> Mapping[str, Any]:
    """State kept from batch to batch, as JSON; saved in every checkpoint. {} if there is none."""
    ...

  def set_state(self, state: Mapping[str, Any]) -> None:
    """Restores a state that `state` returned."""
    ...

  def counts(self) -> Mapping[str, float]:
    """Metrics by name that `score` has counted since the last call; resets them."""
    ...

  def close(self) -> None:
    """Cancels scoring that is running and releases its resources."""
    ...


class Defaults:
  """Defaults for environments of one turn. Inherit from it and override what differs.

  The turn shows the whole clip and `question`. A subclass has to have `tags`, and to implement
  `question`, `score`, `accuracy`, `trace` and `explain`; if there are replies to train on, also
  `reference_reply`.
  """

  turns: ClassVar[int] = 1
  history_turns: ClassVar[int | None] = None
  chooses_frames: ClassVar[bool] = False
  finds_objects: ClassVar[bool] = False
  segments: tuple[str, ...] = ("reply",)  # an instance may have its own
  metrics: ClassVar[metric.Metrics] = {
    "accuracy": metric.Metric(
      title="Accuracy",
      note="mean score of answers, by the rule of their problem type",
      headline=True,
      chance=metric.guess,
    ),
    "format": metric.Metric(
      title="Right format", note="replies with exactly the tags asked for", reward="format"
    ),
  }
  best_metric: ClassVar[str] = "accuracy"
  needs: ClassVar[tuple[str, ...]] = ()
  answer_reward: ClassVar[str] = "accuracy"
  has_observation: ClassVar[bool] = False
  compares_shuffled: ClassVar[bool] = False

  @classmethod
  def check_config(cls, config: Any) -> None:
    """Every config is accepted."""
    del config

  def check_examples(self, examples: Iterable[records.Example]) -> None:
    """All examples will do."""
    del examples

  def observe(
    self, example: records.Example, pool: int, replies: Sequence[str]
  ) -> Observation | None:
    """The clip and the question; the episode ends after one reply."""
    del pool
    if replies:
      return None
    return Observation(parts=(WholeClip(), cast(Environment, self).question(example)))

  def longest_replies(self, pool: int) -> tuple[str, ...]:
    """There are none: no turn follows the first."""
    del pool
    return ()

  def reference_reply(self, example: records.Example) -> str | None:
    """The reply to train on; None if there is none."""
    del example

  def reference_replies(
    self, example: records.Example, times: Float[np.ndarray, "pool"]
  ) -> tuple[str, ...]:
    """The `reference_reply` alone."""
    del times
    reply = self.reference_reply(example)
    return () if reply is None else (reply,)

  def reference_problem(self, example: records.Example) -> str:
    """Why the right answer, between <answer> tags, earns less than 1."""
    problem = accuracy.find_reference_problem(example)
    if example.problem_type == records.SEGMENTATION:
      return problem
    copy = f"<think></think>\n<answer>{example.answer}</answer>"
    return "" if problem and cast(Environment, self).accuracy(example, copy) == 1 else problem

  def relevant(self, example: records.Example, times: Float[np.ndarray, "pool"]) -> tuple[int, ...]:
    """Unknown, so ()."""
    del example, times
    return ()

  def grounding(self, replies: Sequence[str], pool: int, size: Size) -> grounding_lib.Grounding:
    """Nothing: the recipe does not look for objects."""
    del replies, pool, size
    return grounding_lib.Grounding(problem="not asked for")

  def segment_spans(self, reply: str, turn: int) -> SegmentSpans:
    """The whole reply belongs to the segment of its turn."""
    return ((len(reply), turn),)

  def finish_batch(
    self,
    examples: Sequence[records.Example],
    replies: Replies,
    scores: records.Scores,
    *,
    sum_processes: SumAcrossProcesses = np.asarray,
  ) -> tuple[records.Scores, Mapping[str, float]]:
    """Scores as they are: no batch depends on another."""
    del examples, replies, sum_processes
    return scores, {}

  def episode_metrics(self, example: records.Example, episode: Episode) -> dict[str, float]:
    """The accuracy of the last reply, rounded to float32 as rewards are."""
    reward = cast(Environment, self).accuracy(example, episode.replies[-1])
    return {"accuracy": float(np.float32(reward))}

  def parse_action(
    self, example: records.Example, pool: int, reply: str, turn: int
  ) -> retrieval_actions.Action:
    """The text between the answer tags; nothing else in the reply matters."""
    del example, pool, turn
    answer = accuracy.answer_text(reply)
    kind = "invalid" if answer is None else "answer"
    return retrieval_actions.Action(kind=kind, answer=answer or "")

  def parse_trace(self, reply: str) -> Trace | None:
    """None: replies contain no observation."""
    del reply

  def observation(self, reply: str) -> str | None:
    """None: the recipe does not ask for an observation."""
    del reply

  def tokenizer_texts(self, example: records.Example, pool: int) -> tuple[str, ...]:
    """The question and the options, without the instruction."""
    del pool
    return (example.question, *example.options)

  def state(self) -> Mapping[str, Any]:
    """No state."""
    return {}

  def set_state(self, state: Mapping[str, Any]) -> None:
    """There is no state to restore."""
    del state

  def counts(self) -> Mapping[str, float]:
    """No metrics."""
    return {}

  def close(self) -> None:
    """There are no resources to release."""
