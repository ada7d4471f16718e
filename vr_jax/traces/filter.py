"""Keeps proposed traces that fit the template, answer correctly and whose observation suffices.

Source: VideoP2R, arXiv 2511.11113, steps 2 and 3 of its data pipeline.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
from pathlib import Path

from vr_jax import errors, records
from vr_jax.data import examples as examples_lib
from vr_jax.data import trace_store
from vr_jax.envs import environment
from vr_jax.rewards import judge as judge_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Filter:
  """Decides which traces to keep, chunk by chunk. Only one thread at a time may use it.

  source: what ingestion wrote; has the examples.
  output: the directory of the traces.
  environment: parses the replies.
  judge: says whether an observation suffices.
  threshold: least score, by the task metric, that an answer needs.
  """

  source: Path
  output: Path
  environment: environment.Environment
  judge: judge_lib.Judge
  threshold: float

  def decide(self, chunk: trace_store.TraceChunk, replies: Sequence[str | None]) -> None:
    """Decides a chunk and writes the outcomes.

    Raises:
      InputError: none of several questions has a reply, or the judge doesn't work. Then nothing is
        written, because the traces are not to blame.
    """
    if len(replies) > 1 and all(reply is None for reply in replies):
      raise errors.InputError(
        f"{self.output}: the writer gave no reply to any of {len(replies)} questions; "
        "once it does, the same command goes on"
      )
    examples = [self._sources[chunk.split][index] for index in chunk.indices]
    outcomes = self.outcomes(chunk.indices, examples, replies)
    self._check_judge()
    trace_store.write_chunk(self.output, chunk, outcomes)

  @functools.cached_property
  def _sources(self) -> Mapping[str, examples_lib.ExampleSource]:
    return {split: examples_lib.ExampleSource(self.source, split) for split in trace_store.SPLITS}

  def outcomes(
    self,
    indices: Sequence[int],
    examples: Sequence[records.Example],
    replies: Sequence[str | None],
  ) -> list[trace_store.TraceOutcome]:
    """Decides replies to examples. The judge only sees those with a right answer.

    indices: of the examples, in their split.
    """
    outcomes = [
      self._before_judging(*each) for each in zip(indices, examples, replies, strict=True)
    ]
    undecided = [row for row, outcome in enumerate(outcomes) if not outcome.reason]
    cases = [
      judge_lib.JudgeCase(example=examples[row], observation=outcomes[row].observation)
      for row in undecided
    ]
    for row, verdict in zip(undecided, self.judge.verdicts(cases), strict=True):
      reason = {True: "", False: "insufficient", None: "no verdict"}[verdict]
      outcomes[row] = dataclasses.replace(outcomes[row], reason=reason)
    return outcomes

  def _check_judge(self) -> None:
    """Raises InputError if the judge's budget is spent, or several or all new cases are unanswered.

    A single unanswered case among several is accepted: its own text may be the cause. It counts as
    one without a verdict.
    """
    counts = self.judge.counts()
    asked, spent, lost = (counts.get(name, 0) for name in ("asked", "over_budget", "unanswered"))
    if spent:
      raise errors.InputError(
        f"config.judge.budget: is spent, {spent:g} cases of a chunk are left; "
        "the same command goes on, with as many again"
      )
    if lost > 1 or lost == asked > 0:
      raise errors.InputError(
        f"config.judge: left {lost:g} of {asked:g} cases of a chunk unanswered, retries included; "
        "once it answers, the same command goes on"
      )

  def _before_judging(
    self, index: int, example: records.Example, reply: str | None
  ) -> trace_store.TraceOutcome:
    if reply is None:
      return trace_store.TraceOutcome(index=index, reply=None, reason="no reply")
    trace = self.environment.parse_trace(reply)
    if trace is None:
      return trace_store.TraceOutcome(index=index, reply=reply, reason="template")
    score = environment.task_score(trace.answer, example)
    return trace_store.TraceOutcome(
      index=index,
      reply=reply,
      reason="" if score >= self.threshold else "answer",
      score=score,
      observation=trace.observation,
      reasoning=trace.reasoning,
    )
