"""VideoP2R: observation, reasoning and answer in one reply; perception and reasoning are rewarded apart.

    <observation>what is seen</observation>
    <think>what follows from it</think>
    <answer>…</answer>

Source: arXiv 2511.11113. Segment 0 (perception) is the observation with its tags but for the sign that closes them, segment 1
(reasoning) all other tokens. With k a segment, accuracy of perception what a judge says of the observation, and accuracy of
reasoning the task metric of the answer:

    R_k = accuracy_k + format_k + length_k (+ temporal_k)

`Reconstruction:` the paper does not say whose tokens the tags are, nor what a reply without them earns. Here a segment whose
tags are not right earns 0 in all parts, and where the observation's are not, every token is reasoning. The closing sign is
reasoning's because its token often holds what follows too: whether it ends in a new line decides whether <think> comes next.
Rewarded with perception, which is right either way, that choice drifted in a run of the tiny recipe until three replies in four
had no <think>.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import re
from typing import Any, ClassVar, Literal

import numpy as np

from vr_jax import records, schema
from vr_jax.envs import environment, metric
from vr_jax.rewards import accuracy, steps
from vr_jax.rewards import format as format_lib
from vr_jax.rewards import judge as judge_lib

PERCEPTION, REASONING = 0, 1
_OPEN, _CLOSE = "<observation>", "</observation>"
_ANY_TAG = re.compile(r"</?(?:observation|think|answer)>")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParsedReply:
  """A reply taken apart. What has no right tags is None; end: of the observation with its tags, 0 without."""

  observation: str | None
  think: str | None
  answer: str | None
  end: int


def parse_reply(reply: str) -> ParsedReply:
  """Any text gives one outcome.

  The observation is right where the reply begins with it, and no other tag stands in it. What follows it, or without one what
  follows the first <think>, is right where it is one think block and one answer block, as in MOSS-ChatV.
  """
  first = next((m for m in _ANY_TAG.finditer(reply) if m.end() > len(_OPEN)), None)
  seen = reply.startswith(_OPEN) and first is not None and first.group() == _CLOSE
  end = first.end() if seen else 0
  rest = reply[end:].lstrip() if seen else reply[max(reply.find("<think>"), 0) :]
  reasoned = format_lib.format_reward(rest) == 1 and not (_OPEN in rest or _CLOSE in rest)
  return ParsedReply(
    observation=reply[len(_OPEN) : first.start()].strip() if seen else None,
    think=steps.think_text(rest).strip() if reasoned else None,
    answer=accuracy.answer_text(rest) if reasoned else None,
    end=end,
  )


def format_reply(observation: str, think: str, answer: str) -> str:
  """The reply that `read` takes apart into these."""
  return f"{_OPEN}{observation}{_CLOSE}\n<think>{think}</think>\n<answer>{answer}</answer>"


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoP2R(environment.Defaults):
  """The task. judge: None where nothing is scored."""

  instruction: str = schema.field(help="Stands below the question; it has to ask for all tags.")
  weights: Mapping[str, float] = schema.field(help="Of the two segments, and of the rewards.")
  length: Literal["segment", "video_r1"] = schema.field(
    "segment",
    "Which segments earn the length reward: each, or reasoning where several of a group are right.",
  )
  perception_tokens: tuple[int, int] = schema.field(
    (128, 320), "Of a perception that earns the length reward, tags included.", "[0, inf)", length=2
  )
  reasoning_tokens: tuple[int, int] = schema.field(
    (320, 512), "The same of a reasoning.", "[0, inf)", length=2
  )
  length_accuracy: float = schema.field(0.1, "Accuracy that the length reward needs to exceed.")
  temporal_ratio: float = schema.field(
    0.8, "Of the accuracy on shuffled frames that the ordered ones must reach."
  )
  judge: judge_lib.Judge | None = None
  segments: ClassVar[tuple[str, ...]] = ("perception", "reasoning")
  tags: ClassVar[tuple[str, ...]] = (
    _OPEN,
    f"{_CLOSE}\n<think>",
    "</think>\n<answer>",
    "</answer>",
  )
  needs: ClassVar[tuple[str, ...]] = ("judge",)
  has_observation: ClassVar[bool] = True
  compares_shuffled: ClassVar[bool] = True
  metrics: ClassVar[metric.Metrics] = {
    **environment.Defaults.metrics,
    "observation_sufficiency": metric.Metric(
      title="Observation suffices", note="to answer the question, by the true states"
    ),
  }

  def question(self, example: records.Example) -> str:
    """Question, options one a line, instruction."""
    return environment.question_text(example, self.instruction)

  def reference_reply(self, example: records.Example) -> str | None:
    """The trace of the example, or else its steps: those of what is shown are observed, the others reasoned."""
    observation, think = example.observation, example.reasoning
    if not (observation and think):
      shown = [step.text for step in example.steps if step.end <= example.shown.end]
      later = [step.text for step in example.steps if step.end > example.shown.end]
      observation, think = "\n".join(shown), "\n".join(later)
    return format_reply(observation, think, example.answer) if observation and think else None

  def segment_spans(self, reply: str, turn: int) -> environment.SegmentSpans:
    """The observation up to the sign that closes it, then the rest; without a right one, all is reasoning."""
    del turn
    end = parse_reply(reply).end
    return ((end - 1, PERCEPTION), (len(reply), REASONING)) if end else ((len(reply), REASONING),)

  def score(
    self, examples: Sequence[records.Example], replies: environment.Replies
  ) -> records.Scores:
    """Rewards `accuracy`, `format`, `length` and `temporal` of both segments, and their total.

    A perception that the judge gave no verdict on is not valid: it takes no part in its segment's statistics.
    """
    group = len(replies.texts[0])
    owners = [example for example in examples for _ in range(group)]
    read_all = [parse_reply(reply) for texts in replies.texts for reply in texts]
    sufficient, judged = self._verdicts(owners, read_all)
    right = environment.task_scores([one.answer for one in read_all], owners)
    formed = [(one.observation is not None, one.think is not None) for one in read_all]
    shape = (len(examples), group, 2)
    rewards = {
      "accuracy": np.stack([sufficient, right], -1).astype(np.float32).reshape(shape),
      "format": np.array(formed, np.float32).reshape(shape),
    }
    rewards["length"] = self._length(rewards, replies.lengths(2))
    if replies.shuffled is not None:
      rewards["temporal"] = self._temporal(rewards["accuracy"], examples, replies.shuffled)
    valid = np.stack([judged, np.ones_like(judged)], -1).reshape(shape)
    total = sum(np.float32(self.weights[name]) * value for name, value in rewards.items())
    total = total * np.float32([self.weights[name] for name in self.segments])
    return records.Scores(rewards=rewards, valid=valid, total=np.float32(total))

  def accuracy(self, example: records.Example, reply: str) -> float:
    """The task metric of the answer behind the reasoning; 0 where there is none."""
    return environment.task_score(parse_reply(reply).answer, example)

  def parse_trace(self, reply: str) -> environment.Trace | None:
    """Observation, reasoning and answer of a reply that is one of each, and nothing else."""
    found = parse_reply(reply)
    if not (found.observation and found.think and found.answer):
      return None
    return environment.Trace(
      observation=found.observation, reasoning=found.think, answer=found.answer
    )

  def trace(self, reply: str) -> str:
    """Observation and reasoning."""
    found = parse_reply(reply)
    return "\n".join(filter(None, (found.observation, found.think or steps.think_text(reply))))

  def observation(self, reply: str) -> str | None:
    """That inside its tags."""
    return parse_reply(reply).observation or ""

  def explain(self, example: records.Example, reply: str) -> Mapping[str, Any]:
    """{"steps", "segments": [{"name", "text"}]} of one reply."""
    end = parse_reply(reply).end
    texts = zip(self.segments, (reply[:end], reply[end:]), strict=True)
    return {
      "steps": steps.split_steps(self.trace(reply)),
      "segments": [{"name": name, "text": text} for name, text in texts if text],
    }

  def counts(self) -> Mapping[str, float]:
    """What the judge counted."""
    return {f"judge/{name}": float(value) for name, value in self.judge.counts().items()}

  def close(self) -> None:
    """Closes the judge."""
    self.judge.close()

  def _verdicts(
    self, owners: Sequence[records.Example], replies: Sequence[ParsedReply]
  ) -> tuple[np.ndarray, np.ndarray]:
    """(whether each observation suffices, whether that is known): the judge is asked about those that say something."""
    said = [index for index, one in enumerate(replies) if one.observation]
    cases = [
      judge_lib.JudgeCase(example=owners[index], observation=replies[index].observation)
      for index in said
    ]
    sufficient, known = np.zeros(len(replies), bool), np.ones(len(replies), bool)
    if not cases:
      return sufficient, known
    for index, verdict in zip(said, self.judge.verdicts(cases), strict=True):
      sufficient[index], known[index] = bool(verdict), verdict is not None
    return sufficient, known

  def _length(self, rewards: Mapping[str, np.ndarray], lengths: np.ndarray) -> np.ndarray:
    """1 where a segment is right, and as long as is wanted; its weight is what it is worth (the papers: 0.2).

    With `video_r1` only the reasoning segment earns it, and only where more than one reply of its group is right.
    """
    low, high = np.array([self.perception_tokens, self.reasoning_tokens]).T
    right = rewards["accuracy"] > self.length_accuracy
    earned = right & (rewards["format"] > 0) & (low <= lengths) & (lengths <= high)
    if self.length == "video_r1":
      earned &= right.sum(axis=1, keepdims=True) > 1
      earned[..., PERCEPTION] = False
    return earned.astype(np.float32)

  def _temporal(
    self,
    right: np.ndarray,
    examples: Sequence[records.Example],
    shuffled: Sequence[Sequence[str]],
  ) -> np.ndarray:
    """1 where reasoning is right, if replies to frames in order are right at least about as often as to shuffled ones.

    Source: T-GRPO, Video-R1, arXiv 2503.21776, eq. 1 and 2.
    """
    answers = [parse_reply(reply).answer for texts in shuffled for reply in texts]
    owners = [example for example, texts in zip(examples, shuffled, strict=True) for _ in texts]
    of_shuffled = environment.task_scores(answers, owners).reshape(len(examples), -1).mean(axis=1)
    ordered = right[..., REASONING].mean(axis=1)
    helped = ordered >= self.temporal_ratio * of_shuffled
    earned = np.zeros_like(right)
    earned[..., REASONING] = helped[:, None] & (right[..., REASONING] > self.length_accuracy)
    return earned
