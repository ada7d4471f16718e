"""A question's final score: denominators are fixed, and what has no answer is wrong.

Every question counts once, whether or not there is a reply to it. Public programs differ: some
leave out what they can't read, or draw an option.
"""

from collections.abc import Collection, Mapping, Sequence
import dataclasses
from typing import Literal

from vr_jax.data import benchmark_item
from vr_jax.errors import InputError
from vr_jax.eval.benchmarks import scored_answer

# answered: an answer was read. truncated: the reply ran out of tokens. failed: there is no reply.
Status = Literal["answered", "unparsed", "truncated", "failed"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredReply:
  """A question with its final score.

  score: in [0, 1]; of a rubric, the sum of its marks. 0 where the status doesn't count.
  cluster: the source video; "" if unknown, then the question is a cluster of its own.
  measures: more numbers, each with a mean of its own, such as `steps/overall_recall`.
  """

  id: str
  cluster: str
  scorer: benchmark_item.Scorer
  strata: Mapping[str, tuple[str, ...]]
  score: float
  status: Status
  measures: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)


def make(
  item: benchmark_item.Item,
  answer: scored_answer.ScoredAnswer | None,
  *,
  truncated: bool = False,
  counted: Collection[Status] = ("answered",),
  measures: Mapping[str, float] | None = None,
) -> ScoredReply:
  """Makes the final score of a question.

  answer: None if there is no reply.
  truncated: whether the reply reached the limit of tokens before its end.
  counted: statuses whose answers keep the score that the rule gave them; others score 0.
  """
  status: Status = "answered"
  if answer is None:
    status = "failed"
  elif truncated:
    status = "truncated"
  elif answer.parsed is None:
    status = "unparsed"
  readable = answer is not None and (answer.parsed is not None or "unparsed" in counted)
  return ScoredReply(
    id=item.id,
    cluster=item.cluster or item.video or item.id,
    scorer=item.scorer,
    strata=item.strata,
    score=answer.score if answer is not None and readable and status in counted else 0.0,
    status=status,
    measures=measures or {},
  )


def count_statuses(replies: Sequence[ScoredReply]) -> Mapping[str, int]:
  """The number of questions, and of those without an answer by status."""
  statuses = [reply.status for reply in replies]
  counts = {status: statuses.count(status) for status in ("failed", "truncated", "unparsed")}
  return {"questions": len(replies), **counts}


def check_complete(replies: Sequence[ScoredReply], items: Sequence[benchmark_item.Item]) -> None:
  """Raises InputError unless each item has exactly one reply: the denominator would change."""
  ids = [reply.id for reply in replies]
  missing = {item.id for item in items} - set(ids)
  if missing:
    raise InputError(f"{min(missing)}: has no reply; give it one that failed ({len(missing)} lack)")
  if extra := set(ids) - {item.id for item in items}:
    raise InputError(f"{min(extra)}: a reply to no question of this benchmark")
  if len(ids) != len(set(ids)):
    raise InputError(f"{next(each for each in ids if ids.count(each) > 1)}: has two replies")
