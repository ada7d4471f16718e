"""Which proposed traces are kept: those of the template, with a right answer, whose observation suffices.

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
  """Decides chunks of the examples in `source`, and writes them to `output`; one thread at a time.

  environment: reads the replies. threshold: the score by the task metric that an answer needs.
  """

  source: Path
  output: Path
  environment: environment.Environment
  judge: judge_lib.Judge
  threshold: float

  def decide(self, chunk: trace_store.TraceChunk, replies: Sequence[str | None]) -> None:
    """Writes what becomes of a chunk.

    Raises:
      InputError: none of several questions has a reply, or the judge is not to be had: neither is a property of theirs.
    """
    if len(replies) > 1 and all(reply is None for reply in replies):
      raise errors.InputError(
        f"{self.output}: the writer gave no reply to any of {len(replies)} questions; once it does, the same command goes on"
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
    """What becomes of the replies to these examples; the judge is asked about those alone whose answer is right."""
    found = [self._before_judging(*each) for each in zip(indices, examples, replies, strict=True)]
    open_ones = [place for place, outcome in enumerate(found) if not outcome.reason]
    cases = [
      judge_lib.JudgeCase(example=examples[place], observation=found[place].observation)
      for place in open_ones
    ]
    for place, verdict in zip(open_ones, self.judge.verdicts(cases), strict=True):
      reason = {True: "", False: "insufficient", None: "no verdict"}[verdict]
      found[place] = dataclasses.replace(found[place], reason=reason)
    return found

  def _check_judge(self) -> None:
    """Raises InputError where the judge had no budget left, or left several cases or all that were new to it unanswered.

    One of several that fails to its last retry may do so by what it says, and is one without a verdict.
    """
    counts = self.judge.counts()
    asked, spent, lost = (counts.get(name, 0) for name in ("asked", "over_budget", "unanswered"))
    if spent:
      raise errors.InputError(
        f"config.judge.budget: is spent, {spent:g} cases of a chunk are left; the same command goes on, with as many again"
      )
    if lost > 1 or lost == asked > 0:
      raise errors.InputError(
        f"config.judge: left {lost:g} of {asked:g} cases of a chunk unanswered, retries included; once it answers, "
        "the same command goes on"
      )

  def _before_judging(
    self, index: int, example: records.Example, reply: str | None
  ) -> trace_store.TraceOutcome:
    if reply is None:
      return trace_store.TraceOutcome(index=index, reply=None, reason="no reply")
    read = self.environment.parse_trace(reply)
    if read is None:
      return trace_store.TraceOutcome(index=index, reply=reply, reason="template")
    score = environment.task_score(read.answer, example)
    return trace_store.TraceOutcome(
      index=index,
      reply=reply,
      reason="" if score >= self.threshold else "answer",
      score=score,
      observation=read.observation,
      reasoning=read.reasoning,
    )
