"""The numbers of one protocol, a line of the table, and why they are not of all questions."""

from collections.abc import Iterable, Mapping
import dataclasses
import math

from vr_jax.eval.benchmarks import protocols, statistics

FEW_VIDEOS = 20  # below, fewer than 93 % of intervals may hold the true value (docs/evaluation.md)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoredProtocol:
  """The numbers of one protocol.

  values: of the metric, by name, with intervals; `headline` is the one that is published first,
    `further` are others that a terminal shows below the table.
  questions: that count; failed, unparsed, truncated: of these, without an answer. All score 0.
  missing: files that are not there, one for each question that needs one; these questions don't
    count, and the score is partial.
  unscored: questions that no judge has judged, or whose answers were not released.
  count_differences: counts of questions that are not as published, "task/Counting: 199 of 200".
  not_asked: questions that have no reply yet; they score 0.
  unshown: questions left out, as they have pictures that the recipe can't show.
  absent_groups: strata of a complete set that have no question here.
  split: of the benchmark.
  tokens: mean number of sampled tokens of a reply.
  shown: frames of a prompt, and pixels of each as the model sees them: "32 x 602112".
  unjudged: questions whose reasoning has no verdicts, as there is no judge.
  beside: of `questions`, those that count in `further` values alone; beside_failed: of these.
  unreadable: verdicts of the judge that could not be read.
  not_judged: prompts that it refused or can't hold, by cause.
  base_unreadable, base_not_judged: the same of the other policy's replies.
  by_rule: answers that the protocol has a judge read, and for want of one our rule read, or could
    not.
  judge: the model that scored; "" for rules alone.
  agreed, compared: of `compared` answers that both the judge and our strict rule read, on how many
    they agree whether it is right.
  """

  protocol: str
  headline: str
  further: tuple[str, ...]
  values: Mapping[str, statistics.MetricInterval]
  changes: Mapping[str, statistics.MetricChange]
  questions: int
  failed: int
  unparsed: int
  truncated: int
  missing: tuple[str, ...]
  unscored: int
  count_differences: tuple[str, ...]
  not_asked: int
  unshown: int
  absent_groups: tuple[str, ...]
  split: str
  tokens: float
  shown: str
  unjudged: int = 0
  beside: int = 0
  beside_failed: int = 0
  unreadable: int = 0
  not_judged: Mapping[str, int] = dataclasses.field(default_factory=dict)
  base_unreadable: int = 0
  base_not_judged: Mapping[str, int] = dataclasses.field(default_factory=dict)
  by_rule: int = 0
  judge: str = ""
  agreed: int = 0
  compared: int = 0

  @property
  def is_partial(self) -> bool:
    """Whether the number is not of all published questions."""
    return bool(
      self.missing
      or self.unscored
      or self.not_judged
      or self.not_asked
      or self.unshown
      or self.count_differences
      or self.absent_groups
    )


def notes(rows: Iterable[ScoredProtocol]) -> list[str]:
  """A line for each reason why a score is partial."""
  found = []
  for row in rows:
    if row.missing:
      files = list(dict.fromkeys(row.missing))
      more = f" and {len(files) - 3} more" if len(files) > 3 else ""
      listed = f"{', '.join(files[:3])}{more}"
      found.append(f"{row.protocol}: {len(row.missing)} questions left out: {listed} missing")
    if row.unscored:
      why = "not judged" if row.judge else "no judge (--judge)"
      found.append(f"{row.protocol}: {row.unscored} questions not scored: {why}, or no answer")
    if row.unjudged:
      found.append(
        f"{row.protocol}: steps of {row.unjudged} replies not judged: no judge (--judge)"
      )
    if row.by_rule:
      said = "that a judge is to read are read by a rule"
      if protocols.get(row.protocol).judge_reads == "unread":
        said = "that no rule reads count as wrong"
      found.append(f"{row.protocol}: {row.by_rule} answers {said}: no judge (--judge)")
    found += [f"{row.protocol}: {line}" for line in _judge_notes(row)]
    if row.beside:
      found.append(
        f"{row.protocol}: n counts {row.questions} questions, {row.headline} of them "
        f"{row.questions - row.beside}; the other {row.beside} ({row.beside_failed} failed) are in "
        f"{' and '.join(row.further)} alone"
      )
    value = row.values[row.headline]
    if value.clusters < FEW_VIDEOS and not math.isnan(value.low):
      found.append(
        f"{row.protocol}: {value.clusters} videos; intervals of fewer than {FEW_VIDEOS} are a "
        "little too narrow"
      )
    if row.not_asked:
      found.append(f"{row.protocol}: {row.not_asked} questions not asked yet; they count as wrong")
    if row.unshown:
      found.append(
        f"{row.protocol}: {row.unshown} questions left out: the recipe shows no pictures"
      )
    if row.absent_groups:
      found.append(f"{row.protocol}: no question of {', '.join(row.absent_groups)}")
    if row.count_differences:
      count = len(row.count_differences)
      more = f" (and {count - 1} more counts)" if count > 1 else ""
      first = next(iter(row.count_differences))
      found.append(f"{row.protocol}: not the published set: {first}{more}")
  return found


def _judge_notes(row: ScoredProtocol) -> list[str]:
  """A line for each reason why a prompt has no verdict, of the policy and of the base."""
  lines = []
  for of, unreadable, not_judged in (
    ("", row.unreadable, row.not_judged),
    (" of --base", row.base_unreadable, row.base_not_judged),
  ):
    if unreadable:
      lines.append(
        f"{row.judge} gave no readable verdict to {unreadable} prompts{of}; such answers "
        "count as wrong, such steps as without a right one"
      )
    lines += [
      f"{row.judge} did not judge {count} prompts{of}: {cause}; such answers are not scored"
      f"{', nor compared' if row.changes else ''}, such steps are left out"
      for cause, count in not_judged.items()
    ]
  return lines
