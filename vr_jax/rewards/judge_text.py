"""The judge that asks a language model. It caches verdicts on disk and asks no question twice."""

import collections
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from vr_jax.rewards import judge, judge_cache, judge_prompt


@runtime_checkable
class JudgeModel(Protocol):
  """A language model that answers questions about cases."""

  def ask(self, questions: Sequence[judge_prompt.JudgeQuestion]) -> list[bool | None]:
    """Returns what `JudgeQuestion.read` reads in each reply; None if no reply was readable."""
    ...

  def counts(self) -> Mapping[str, float]:
    """As `judge.Judge.counts`."""
    ...

  def close(self) -> None:
    """As `judge.Judge.close`."""


class TextJudge:
  """A judge with a model and a cache. Cases without a verdict are not cached, but asked again."""

  def __init__(
    self,
    model: JudgeModel,
    cache: judge_cache.VerdictCache,
    *,
    identity: Sequence[str],
    threshold: float | None,
  ):
    """Uses `model` for all cases that `cache` doesn't have.

    identity: names the model. Verdicts of a model with another identity are ignored.
    threshold: as in `judge_prompt.question`.
    """
    self._model, self._cache = model, cache
    self._identity, self._threshold = tuple(identity), threshold
    self._counts: collections.Counter[str] = collections.Counter()

  def verdicts(self, cases: Sequence[judge.JudgeCase]) -> list[bool | None]:
    """Returns one for each case. Cases with the same question text share it."""
    questions = [judge_prompt.question(case, threshold=self._threshold) for case in cases]
    keys = [judge_cache.key((*self._identity, *question.content)) for question in questions]
    wanted = dict(zip(keys, questions, strict=True))
    known = self._cache.get(wanted)
    new = {key: question for key, question in wanted.items() if key not in known}
    replies = zip(new, self._model.ask(list(new.values())), strict=True)
    fresh = {key: verdict for key, verdict in replies if verdict is not None}
    self._cache.put(fresh)
    all_verdicts = known | fresh
    verdicts = [all_verdicts.get(key) for key in keys]
    self._counts.update(
      asked=len(new), cached=sum(key in known for key in keys), failed=verdicts.count(None)
    )
    return verdicts

  def counts(self) -> Mapping[str, float]:
    """Returns the model's counts, and:

    asked: questions that the model got.
    cached: cases whose verdict was on disk.
    failed: cases without a verdict.
    """
    counts, self._counts = self._counts, collections.Counter()
    own = {name: float(counts[name]) for name in ("asked", "cached", "failed")}
    return {**own, **self._model.counts()}

  def close(self) -> None:
    """Closes model and cache."""
    self._model.close()
    self._cache.close()
