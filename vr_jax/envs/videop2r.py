"""VideoP2R: one reply of observation, reasoning and answer, rewarded in two segments.

    <observation>what is seen</observation>
    <think>what follows from it</think>
    <answer>…</answer>

Source: arXiv 2511.11113. Segment 0 (perception) is the observation with its tags, except for the
  last
character of the closing tag; segment 1 (reasoning) is the rest of the reply. For each segment k:

    R_k = accuracy_k + format_k + length_k (+ temporal_k)

The accuracy of perception is a judge's verdict on the observation; the accuracy of reasoning is the
task metric of the answer.

`Reconstruction:` the paper does not say which segment the tags belong to, nor what a reply without
them earns. Here a segment with wrong tags gets 0 for every reward, and without a correct
observation the whole reply is reasoning. The ">" that closes the observation belongs to reasoning
because the
token that holds it often continues beyond it: whether that token ends in a new line decides whether
<think> follows. When it was rewarded with perception, which is right either way, that choice
drifted in a run of the tiny recipe until three replies in four had no <think>.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import re
from typing import Any, ClassVar, Literal, cast

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
  """The parts of a reply; a part without correct tags is None.

  end: number of characters up to the end of the observation's closing tag; 0 without an
    observation.
  """

  observation: str | None
  think: str | None
  answer: str | None
  end: int


def parse_reply(reply: str) -> ParsedReply:
  """Parses any text.

  The observation is correct if the reply begins with it and it contains no other tag. The text
  after it (without an observation, the text from the first <think> on) is correct if it is one
  think block and one answer block, as in MOSS-ChatV.
  """
  observation, end = None, 0
  first = next((m for m in _ANY_TAG.finditer(reply) if m.end() > len(_OPEN)), None)
  if reply.startswith(_OPEN) and first is not None and first.group() == _CLOSE:
    observation, end = reply[len(_OPEN) : first.start()].strip(), first.end()
  rest = reply[end:].lstrip() if end else reply[max(reply.find("<think>"), 0) :]
  reasoned = format_lib.format_reward(rest) == 1 and not (_OPEN in rest or _CLOSE in rest)
  return ParsedReply(
    observation=observation,
    think=steps.think_text(rest).strip() if reasoned else None,
    answer=accuracy.answer_text(rest) if reasoned else None,
    end=end,
  )


def format_reply(observation: str, think: str, answer: str) -> str:
  """The reply from which `parse_reply` gets these parts."""
  return f"{_OPEN}{observation}{_CLOSE}\n<think>{think}</think>\n<answer>{answer}</answer>"


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoP2R(environment.Defaults):
  """The environment. judge: None if no replies are scored."""

  instruction: str = schema.field(help="Stands below the question; it has to ask for all tags.")
  weights: Mapping[str, float] = schema.field(
    help="Weights of the two segments, and of the rewards.", change="before rl"
  )
  length: Literal["segment", "video_r1"] = schema.field(
    "segment",
    "Which segments earn the length reward: each, or reasoning where several of a group are right.",
    change="before rl",
  )
  perception_tokens: tuple[int, int] = schema.field(
    (128, 320),
    "Fewest and most tokens of a perception that earns the length reward, tags included.",
    "[0, inf)",
    length=2,
    change="before rl",
  )
  reasoning_tokens: tuple[int, int] = schema.field(
    (320, 512),
    "Fewest and most tokens of a reasoning that earns it, tags included.",
    "[0, inf)",
    length=2,
    change="before rl",
  )
  length_accuracy: float = schema.field(
    0.1, "Accuracy that the length reward needs to exceed.", change="before rl"
  )
  temporal_ratio: float = schema.field(
    0.8,
    "Fraction of the accuracy on shuffled frames that the accuracy on ordered ones must reach, for "
    "the reward of temporal order.",
    change="before rl",
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
    """The question, the options and the instruction, each on a line of its own."""
    return environment.question_text(example, self.instruction)

  def reference_reply(self, example: records.Example) -> str | None:
    """A reply with the example's trace, or else with its steps; None if it has neither.

    Steps about the part of the video that is shown are the observation, later ones the reasoning.
    """
    observation, think = example.observation, example.reasoning
    if not (observation and think):
      shown = [step.text for step in example.steps if step.end <= example.shown.end]
      later = [step.text for step in example.steps if step.end > example.shown.end]
      observation, think = "\n".join(shown), "\n".join(later)
    return format_reply(observation, think, example.answer) if observation and think else None

  def reference_problem(self, example: records.Example) -> str:
    """Why the right answer, given as a reply, earns less than 1; tags in it are one reason."""
    problem = super().reference_problem(example)
    if problem or self.accuracy(example, format_reply("seen", "so", example.answer)) == 1:
      return problem
    return f"field 'answer': no reply can be right, since {example.answer!r:.80} holds tags"

  def segment_spans(self, reply: str, turn: int) -> environment.SegmentSpans:
    """The observation without its last character, then the rest; see the module's docstring."""
    del turn
    end = parse_reply(reply).end
    return ((end - 1, PERCEPTION), (len(reply), REASONING)) if end else ((len(reply), REASONING),)

  def score(
    self, examples: Sequence[records.Example], replies: environment.Replies
  ) -> records.Scores:
    """Rewards `accuracy`, `format`, `length` and `temporal` of both segments, and their total.

    A perception segment without a verdict of the judge is not scored: statistics leave it out.
    """
    group = len(replies.texts[0])
    owners = [example for example in examples for _ in range(group)]
    parsed = [parse_reply(reply) for texts in replies.texts for reply in texts]
    sufficient, judged = self._verdicts(owners, parsed)
    right = environment.task_scores([each.answer for each in parsed], owners)
    formed = [(each.observation is not None, each.think is not None) for each in parsed]
    shape = (len(examples), group, 2)
    rewards = {
      "accuracy": np.stack([sufficient, right], -1).astype(np.float32).reshape(shape),
      "format": np.array(formed, np.float32).reshape(shape),
    }
    rewards["length"] = self._length(rewards, replies.lengths(2))
    if replies.shuffled is not None:
      rewards["temporal"] = self._temporal(rewards["accuracy"], examples, replies.shuffled)
    scored = np.stack([judged, np.ones_like(judged)], -1).reshape(shape)
    total = sum(np.float32(self.weights[name]) * value for name, value in rewards.items())
    total = total * np.array([self.weights[name] for name in self.segments], np.float32)
    return records.Scores(rewards=rewards, scored=scored, total=np.asarray(total, np.float32))

  def accuracy(self, example: records.Example, reply: str) -> float:
    """The task metric of the answer after the reasoning; 0 without an answer."""
    return environment.task_score(parse_reply(reply).answer, example)

  def parse_trace(self, reply: str) -> environment.Trace | None:
    """The parts of a reply that consists of all three, none of them empty; otherwise None."""
    found = parse_reply(reply)
    if not (found.observation and found.think and found.answer):
      return None
    return environment.Trace(
      observation=found.observation, reasoning=found.think, answer=found.answer
    )

  def trace(self, reply: str) -> str:
    """The observation and the reasoning."""
    found = parse_reply(reply)
    return "\n".join(filter(None, (found.observation, found.think or steps.think_text(reply))))

  def observation(self, reply: str) -> str | None:
    """The text between the observation tags; "" without one."""
    return parse_reply(reply).observation or ""

  def explain(self, example: records.Example, reply: str) -> Mapping[str, Any]:
    """{"steps": reasoning steps, "segments": [{"name", "text"}, …]} of one reply."""
    end = parse_reply(reply).end
    texts = zip(self.segments, (reply[:end], reply[end:]), strict=True)
    return {
      "steps": steps.split_steps(self.trace(reply)),
      "segments": [{"name": name, "text": text} for name, text in texts if text],
    }

  def counts(self) -> Mapping[str, float]:
    """The counters of the judge."""
    counts = {} if self.judge is None else self.judge.counts()
    return {f"judge/{name}": float(value) for name, value in counts.items()}

  def close(self) -> None:
    """Closes the judge."""
    if self.judge is not None:
      self.judge.close()

  def _verdicts(
    self, owners: Sequence[records.Example], replies: Sequence[ParsedReply]
  ) -> tuple[np.ndarray, np.ndarray]:
    """Whether each observation suffices to answer, and whether that is known; both [replies].

    The judge is asked only about observations that are not empty; empty ones never suffice.
    """
    cases = {
      index: judge_lib.JudgeCase(example=owners[index], observation=reply.observation)
      for index, reply in enumerate(replies)
      if reply.observation
    }
    sufficient, known = np.zeros(len(replies), bool), np.ones(len(replies), bool)
    if not cases:
      return sufficient, known
    judge = cast(judge_lib.Judge, self.judge)
    for index, verdict in zip(cases, judge.verdicts(list(cases.values())), strict=True):
      sufficient[index], known[index] = bool(verdict), verdict is not None
    return sufficient, known

  def _length(self, rewards: Mapping[str, np.ndarray], lengths: np.ndarray) -> np.ndarray:
    """1 for segments that are right and whose length is in range (the papers: weight 0.2).

    With `video_r1`, only the reasoning segment can earn it, and only if more than one reply of its
    group is right.
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
    """1 for reasoning that is right, in groups that need the order of the frames; otherwise 0.

    A group needs it if its accuracy is at least `temporal_ratio` times the accuracy of the replies
    to shuffled frames.

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
