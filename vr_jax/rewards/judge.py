"""Judges: does an observation, read as text alone, suffice to answer its question?

    Rule        exact, from what the simulator knows; no network, no model
    judge_text  a language model is asked: one behind an endpoint (model_endpoint) or one loaded here (train/local_judge)

Source: VideoP2R, arXiv 2511.11113: step 3 of its data pipeline, and its reward of perception.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Protocol, runtime_checkable

from vr_jax import records
from vr_jax.rewards import judge_leak


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeCase:
  """What a judge is shown: an observation (without tags) that was made for the question of an example."""

  example: records.Example
  observation: str


@runtime_checkable
class Judge(Protocol):
  """Gives verdicts on many cases at once. May be called from one thread while JAX computes on another."""

  def verdicts(self, cases: Sequence[JudgeCase]) -> list[bool | None]:
    """Whether each observation suffices; None where no verdict was to be had, which is never a guess."""

  def counts(self) -> Mapping[str, float]:
    """What happened since the last call of this; the same names every time. Not while `verdicts` runs."""

  def close(self) -> None:
    """Ends what is under way (it raises where it is waited for) and lets connections and files go."""


class RuleJudge:
  """The judge of simulated examples: a function that knows what is true in their videos."""

  def __init__(self, sufficient: Callable[[records.Example, str], bool]):
    self._sufficient = sufficient
    self._asked = 0

  def verdicts(self, cases: Sequence[JudgeCase]) -> list[bool | None]:
    """Never None."""
    self._asked += len(cases)
    return [self._sufficient(case.example, case.observation) for case in cases]

  def counts(self) -> Mapping[str, float]:
    """`asked`: cases."""
    asked, self._asked = self._asked, 0
    return {"asked": float(asked)}

  def close(self) -> None:
    """Nothing is held."""


class LeakFilter:
  """Another judge, which is not asked about observations that state the answer outright: these do not suffice."""

  def __init__(self, judge: Judge):
    self._judge = judge
    self._leaked = 0

  def verdicts(self, cases: Sequence[JudgeCase]) -> list[bool | None]:
    """False for what `judge_leak.states_answer` finds, the other judge's verdict for the rest."""
    leaks = [judge_leak.states_answer(case.example, case.observation) for case in cases]
    self._leaked += sum(leaks)
    rest = [case for case, leak in zip(cases, leaks, strict=True) if not leak]
    judged = iter(self._judge.verdicts(rest))
    return [False if leak else next(judged) for leak in leaks]

  def counts(self) -> Mapping[str, float]:
    """Those of the other judge, and `leaked`."""
    leaked, self._leaked = self._leaked, 0
    return {**self._judge.counts(), "leaked": float(leaked)}

  def close(self) -> None:
    """Closes the other judge."""
    self._judge.close()
