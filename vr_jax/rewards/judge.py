"""Judges decide whether an observation, as text alone, suffices to answer its question.

    RuleJudge             exact, because it knows the simulator's states; no network, no model
    judge_text.TextJudge  asks a language model, behind an endpoint (model_endpoint) or loaded into
                          this process (train/judge_local)

Source: VideoP2R, arXiv 2511.11113: step 3 of its data pipeline, and its perception reward.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Protocol, runtime_checkable

from vr_jax import records
from vr_jax.rewards import judge_leak


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeCase:
  """What a judge decides about: the question of an example, and an observation without tags."""

  example: records.Example
  observation: str


@runtime_checkable
class Judge(Protocol):
  """Gives verdicts on batches of cases, on one thread, while JAX computes on another."""

  def verdicts(self, cases: Sequence[JudgeCase]) -> list[bool | None]:
    """Returns whether each observation suffices; None if there is no verdict. It never guesses."""
    ...

  def counts(self) -> Mapping[str, float]:
    """Returns counts since the last call, always with the same names. Not while `verdicts` runs."""
    ...

  def close(self) -> None:
    """Cancels running calls, which then raise, and closes connections and files."""


class RuleJudge:
  """Judges simulated examples with a function that knows the true states of their videos."""

  def __init__(self, sufficient: Callable[[records.Example, str], bool]):
    self._sufficient = sufficient
    self._asked = 0

  def verdicts(self, cases: Sequence[JudgeCase]) -> list[bool | None]:
    """Returns a verdict for each case, never None."""
    self._asked += len(cases)
    return [self._sufficient(case.example, case.observation) for case in cases]

  def counts(self) -> Mapping[str, float]:
    """Returns `asked`, the number of cases."""
    asked, self._asked = self._asked, 0
    return {"asked": float(asked)}

  def close(self) -> None:
    """Does nothing."""


class LeakFilter:
  """Wraps a judge: observations that simply state the answer don't suffice, without asking it."""

  def __init__(self, judge: Judge):
    self._judge = judge
    self._leaked = 0

  def verdicts(self, cases: Sequence[JudgeCase]) -> list[bool | None]:
    """Returns False where `judge_leak.states_answer` holds, else the other judge's verdict."""
    leaks = [judge_leak.states_answer(case.example, case.observation) for case in cases]
    self._leaked += sum(leaks)
    rest = [case for case, leak in zip(cases, leaks, strict=True) if not leak]
    judged = iter(self._judge.verdicts(rest))
    return [False if leak else next(judged) for leak in leaks]

  def counts(self) -> Mapping[str, float]:
    """Returns the other judge's counts, and `leaked`."""
    leaked, self._leaked = self._leaked, 0
    return {**self._judge.counts(), "leaked": float(leaked)}

  def close(self) -> None:
    """Closes the other judge."""
    self._judge.close()
