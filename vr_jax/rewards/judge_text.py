"""The judge that asks a language model, whichever it is: questions, what is known of them on disk, and each of them once."""

import collections
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from vr_jax.rewards import judge, judge_cache, judge_prompt


@runtime_checkable
class JudgeModel(Protocol):
  """What answers questions."""

  def ask(self, questions: Sequence[judge_prompt.JudgeQuestion]) -> list[bool | None]:
    """The verdict on each, as `Question.read` reads the model's reply; None where there was no readable reply."""

  def counts(self) -> Mapping[str, float]:
    """As `judge.Judge.counts`."""

  def close(self) -> None:
    """As `judge.Judge.close`."""


class TextJudge:
  """A judge made of a model and a cache. Verdicts alone are kept: a case without one is asked again another time."""

  def __init__(
    self,
    model: JudgeModel,
    cache: judge_cache.VerdictCache,
    *,
    identity: Sequence[str],
    threshold: float | None,
  ):
    """`identity` names the model: verdicts of another are not its own. threshold: as `judge_prompt.question` takes it."""
    self._model, self._cache = model, cache
    self._identity, self._threshold = tuple(identity), threshold
    self._counts: collections.Counter[str] = collections.Counter()

  def verdicts(self, cases: Sequence[judge.JudgeCase]) -> list[bool | None]:
    """One for each case. Cases that are asked about in the same words share it."""
    questions = [judge_prompt.question(case, threshold=self._threshold) for case in cases]
    keys = [judge_cache.key((*self._identity, *question.content)) for question in questions]
    wanted = dict(zip(keys, questions, strict=True))
    known = self._cache.get(wanted)
    asked = {key: question for key, question in wanted.items() if key not in known}
    replies = zip(asked, self._model.ask(list(asked.values())), strict=True)
    fresh = {key: verdict for key, verdict in replies if verdict is not None}
    self._cache.put(fresh)
    told = known | fresh
    found = [told.get(key) for key in keys]
    self._counts.update(
      asked=len(asked), cached=sum(key in known for key in keys), failed=found.count(None)
    )
    return found

  def counts(self) -> Mapping[str, float]:
    """Those of the model, and:

    asked: questions put to it. cached: cases that the disk answered. failed: cases without a verdict.
    """
    taken, self._counts = self._counts, collections.Counter()
    own = {name: float(taken[name]) for name in ("asked", "cached", "failed")}
    return {**own, **self._model.counts()}

  def close(self) -> None:
    """Closes model and cache."""
    self._model.close()
    self._cache.close()
