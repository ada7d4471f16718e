"""Scores stored replies by their protocol, and shows them as a table: terminal, JSON, LaTeX, HTML.

No model is needed: replies are read from disk, items from the benchmark's released files.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
import dataclasses
import math
from typing import Any

from rich import box as rich_box
from rich import table as rich_table

from vr_jax.data import benchmark_item
from vr_jax.errors import InputError
from vr_jax.eval import report
from vr_jax.eval.benchmarks import (
  aggregation,
  answer_rules,
  group_sums,
  judged_answers,
  protocols,
  reply_store,
  scored_protocol,
  scored_reply,
  statistics,
)


def score_replies(
  protocol: protocols.Protocol,
  items: Sequence[benchmark_item.Item],
  replies: Mapping[str, reply_store.StoredReply],
  judged: judged_answers.JudgedReplies | None = None,
) -> list[scored_reply.ScoredReply]:
  """The final score of each item that a rule or the judge scored; one without a reply failed."""
  scored = []
  for item in items:
    stored = replies.get(item.id)
    reply = None if stored is None or stored.problem else stored.reply
    by_judge = judged is not None and _is_read_by_judge(protocol, item, reply)
    if not by_judge and not can_score(item):
      continue
    answer = None
    if reply is not None:
      if judged is None or not by_judge:
        answer = answer_rules.score(protocol.rule, reply, item)
      elif (answer := judged.answers.get(item.id)) is None:
        continue
    scored.append(
      scored_reply.make(
        item,
        answer,
        truncated=stored is not None and stored.truncated,
        counted=protocol.counted,
        measures=None if judged is None else judged.measures.get(item.id),
      )
    )
  return scored


def can_score(item: benchmark_item.Item) -> bool:
  """Whether a rule can score the item: its answer is known, and it needs no judge."""
  return bool(item.answer) and not answer_rules.needs_judge(item)


def make(
  protocol: protocols.Protocol,
  items: Sequence[benchmark_item.Item],
  replies: Mapping[str, reply_store.StoredReply],
  *,
  missing: Sequence[str] = (),
  count_differences: Sequence[str] = (),
  unshown: int = 0,
  base: Mapping[str, reply_store.StoredReply] | None = None,
  judge: judged_answers.AnswerJudge | None = None,
  masks: Sequence[scored_reply.ScoredReply] | None = None,
  base_masks: Sequence[scored_reply.ScoredReply] | None = None,
) -> scored_protocol.ScoredProtocol:
  """Computes the numbers of a protocol.

  items: of the protocol, whose files are there.
  missing, count_differences, unshown: see `scored_protocol.ScoredProtocol`.
  base: replies of another policy to the same items, to compare with.
  judge: judges open answers and reasoning; None: these are not scored.
  masks, base_masks: of a protocol that finds masks, their scores, of either policy.

  Raises InputError if no item can be scored, or as `judged_answers.grade` does.
  """
  metric = aggregation.get(protocol.metric)
  reads: Any = {"rule": protocol.rule, "reads": protocol.judge_reads}
  judged = None if judge is None else judged_answers.grade(judge, items, replies, **reads)
  scored = score_replies(protocol, items, replies, judged) if masks is None else [*masks]
  if not scored:
    why = "they need a judge (--judge), or their answers were not released"
    if judge is not None and judged is not None and judged.not_judged:
      why = f"{judge.name}: {', '.join(judged.not_judged)}"
    raise InputError(f"{protocol.name}: none of {len(items)} questions can be scored: {why}")
  counts = scored_reply.count_statuses(scored)
  values = statistics.estimate(metric, scored)
  published = [name for name in (metric.headline, *metric.further) if name in values]
  said = [replies[item.id] for item in items if item.id in replies and not replies[item.id].problem]
  beside = aggregation.beside_headline(metric, scored)
  agreements = [] if judged is None else _agreements(judged, items, replies)
  changes, of_base = {}, None
  if base is not None:
    of_base = None if judge is None else judged_answers.grade(judge, items, base, **reads)
    before = base_masks
    if before is None:
      before = score_replies(protocol, items, base, of_base)
    changes = _compare(metric, before, scored)
  return scored_protocol.ScoredProtocol(
    protocol=protocol.name,
    headline=published[0],
    further=tuple(published[1:]),
    values=values,
    changes=changes,
    questions=counts["questions"],
    failed=counts["failed"],
    unparsed=counts["unparsed"],
    truncated=counts["truncated"],
    missing=tuple(missing),
    unscored=len(items) - len(scored) if masks is None else 0,
    count_differences=tuple(count_differences),
    not_asked=sum(item.id not in replies for item in items),
    unshown=unshown,
    absent_groups=aggregation.missing_groups(
      metric, group_sums.add_up(scored, metric.grouping, metric.nest)
    ),
    split=", ".join(sorted({item.split for item in items})),
    tokens=sum(each.tokens for each in said) / len(said) if said else math.nan,
    shown=_describe_shown(said),
    unjudged=0 if judge is not None else sum(map(judged_answers.has_steps, items)),
    beside=len(beside),
    beside_failed=scored_reply.count_statuses(beside)["failed"],
    unreadable=0 if judged is None else judged.unreadable,
    not_judged={} if judged is None else judged.not_judged,
    base_unreadable=0 if of_base is None else of_base.unreadable,
    base_not_judged={} if of_base is None else of_base.not_judged,
    by_rule=0 if judge is not None else _count_read_by_rule(protocol, items, replies),
    judge="" if judge is None or not _is_judged(protocol, items) else judge.name,
    agreed=sum(agreements),
    compared=len(agreements),
  )


def _compare(
  metric: aggregation.BenchmarkMetric,
  before: Sequence[scored_reply.ScoredReply],
  after: Sequence[scored_reply.ScoredReply],
) -> Mapping[str, statistics.MetricChange]:
  """The changes over the questions that both sides have a score of; none without such."""
  both = {each.id for each in before} & {each.id for each in after}
  sides = ([each for each in side if each.id in both] for side in (before, after))
  return statistics.compare(metric, *sides) if both else {}


def _agreements(
  judged: judged_answers.JudgedReplies,
  items: Sequence[benchmark_item.Item],
  replies: Mapping[str, reply_store.StoredReply],
) -> list[bool]:
  """Of each judged answer that our strict rule can read, whether both find the same."""
  found = []
  for item in filter(can_score, items):
    verdict, stored = judged.answers.get(item.id), replies.get(item.id)
    if verdict is None or verdict.parsed is None or stored is None:
      continue
    by_rule = answer_rules.score("strict", stored.reply, item)
    if by_rule.parsed is not None:
      found.append((verdict.score > 0.5) == (by_rule.score > 0.5))
  return found


def _is_read_by_judge(
  protocol: protocols.Protocol, item: benchmark_item.Item, reply: str | None
) -> bool:
  return judged_answers.asks_judge(item, reply, rule=protocol.rule, reads=protocol.judge_reads)


def _is_judged(protocol: protocols.Protocol, items: Sequence[benchmark_item.Item]) -> bool:
  """Whether a judge has a say in the score: reads some answers, or may read any."""
  return protocol.judge_reads != "open" or any(
    _is_read_by_judge(protocol, item, None) or judged_answers.has_steps(item) for item in items
  )


def _count_read_by_rule(
  protocol: protocols.Protocol,
  items: Sequence[benchmark_item.Item],
  replies: Mapping[str, reply_store.StoredReply],
) -> int:
  """The number of answers that a judge would read, if there were one, and a rule reads."""
  said = ((item, replies.get(item.id)) for item in items if can_score(item))
  return sum(
    _is_read_by_judge(protocol, item, stored.reply)
    for item, stored in said
    if stored is not None and not stored.problem
  )


def adjusted_p_values(rows: Sequence[scored_protocol.ScoredProtocol]) -> dict[str, float]:
  """Holm's p-value of each protocol's change of its headline, over all of the table."""
  p_values = {
    row.protocol: row.changes[row.headline].p_value
    for row in rows
    if row.headline in row.changes and not math.isnan(row.changes[row.headline].p_value)
  }
  return dict(statistics.holm(p_values))


HEAD = (
  *("protocol", "score", "95 % interval", "change", "p (Holm)", "n", "failed", "unparsed"),
  *("truncated", "tokens", "frames x pixels", "judge"),
)


def cells(rows: Sequence[scored_protocol.ScoredProtocol]) -> list[tuple[str, ...]]:
  """The texts of a table: a line for each protocol, in the columns of HEAD."""
  p_values = adjusted_p_values(rows)
  lines = []
  for row in rows:
    value, change = row.values[row.headline], row.changes.get(row.headline)
    lines.append(
      (
        _name(row),
        _number(value.value),
        _interval(value.low, value.high),
        "" if change is None else _change(change),
        f"{p_values[row.protocol]:.3f}" if row.protocol in p_values else "",
        str(row.questions),
        *(str(count) for count in (row.failed, row.unparsed, row.truncated)),
        "" if math.isnan(row.tokens) else f"{row.tokens:.0f}",
        row.shown,
        _judge(row),
      )
    )
  return lines


def _judge(row: scored_protocol.ScoredProtocol) -> str:
  """Who judged, and how often our rule says the same of what both can read."""
  if not row.compared:
    return row.judge or "none"
  share = f"{100 * row.agreed / row.compared:.0f} % of {row.compared}"
  return f"{row.judge} (agrees with our rule on {share})"


def _name(row: scored_protocol.ScoredProtocol) -> str:
  """Protocol and split; and what the score is, where the metric's first value can't be had."""
  first = aggregation.get(protocols.get(row.protocol).metric).headline
  named = "" if row.headline == first else f", {row.headline}"
  return f"{row.protocol} {row.split}{named}{' (partial)' if row.is_partial else ''}"


def further_values(rows: Iterable[scored_protocol.ScoredProtocol]) -> list[str]:
  """A line for each published value beside the headline, with its interval and change.

  The last is the mean of the headlines that are percentages, as `name_mean` says.
  """
  rows, lines = tuple(rows), []
  for row in rows:
    for name in row.further:
      line = f"{row.protocol} {row.split}: {name} {_with_interval(row.values[name])}"
      if name in row.changes:
        line += f", change {_change(row.changes[name])}"
      lines.append(line)
  headlines = {row.protocol: row.headline for row in rows}
  names, title = name_mean(headlines, {row.protocol for row in rows if row.is_partial})
  if names:
    averaged = [row.values[row.headline] for row in rows if row.protocol in names]
    mean, error = statistics.mean_over_benchmarks(averaged)
    lines.append(f"{title}: {_number(mean)} (standard error {_number(error)})")
  return lines


def name_mean(headlines: Mapping[str, str], partial: Collection[str]) -> tuple[list[str], str]:
  """Which protocols a mean over benchmarks is of, and its name, which tells what is left out.

  headlines: of each protocol. partial: protocols whose scores are.

  Only percentages are averaged; none, unless they are of several benchmarks, each of them once.
  """
  found = {name: protocols.get(name) for name in headlines}
  names = [
    name
    for name, protocol in found.items()
    if aggregation.is_percentage(aggregation.get(protocol.metric), headlines[name])
  ]
  if not 1 < len({found[name].benchmark for name in names}) == len(names):
    return [], ""
  title = f"mean of {len(names)} benchmarks{' (partial)' if {*names} & {*partial} else ''}"
  others = [f"{name} ({headlines[name]} is no percentage)" for name in found if name not in names]
  return names, f"{title} without {', '.join(others)}" if others else title


WIDTH = 140  # columns of a terminal, so that no number is cut


def to_terminal(rows: Sequence[scored_protocol.ScoredProtocol]) -> rich_table.Table:
  """The table for a terminal. What was shown, and who judged, is a second line of each row."""
  table = rich_table.Table(
    title="benchmarks, with 95 % intervals", title_justify="left", box=rich_box.SIMPLE_HEAD
  )
  compared = any(row.changes for row in rows)
  left_out = {"95 % interval", "frames x pixels", "judge"}
  left_out |= set() if compared else {"change", "p (Holm)"}
  kept = [place for place, name in enumerate(HEAD) if name not in left_out]
  for place in kept:
    name = HEAD[place]
    is_first = name == "protocol"
    table.add_column(
      f"{name}\nframes x pixels; judge" if is_first else name,
      justify="left" if is_first else "right",
      no_wrap=not is_first,
    )
  for line in cells(rows):
    shown = {**dict(enumerate(line)), 1: f"{line[1]} ({line[2]})" if line[2] else line[1]}
    shown[0] = f"{line[0]}\n{line[-2] or 'nothing'}; {line[-1]}"
    table.add_row(*(shown[place] for place in kept))
  return table


def to_latex(rows: Sequence[scored_protocol.ScoredProtocol]) -> str:
  """The table as LaTeX, for booktabs."""
  lines = [
    r"\begin{tabular}{l" + "r" * (len(HEAD) - 1) + "}",
    r"\toprule",
    " & ".join(map(_latex, HEAD)) + r" \\",
    r"\midrule",
    *(" & ".join(map(_latex, line)) + r" \\" for line in cells(rows)),
    r"\bottomrule",
    r"\end{tabular}",
  ]
  return "\n".join(lines) + "\n"


def to_page(lines: Sequence[Mapping[str, Any]]) -> str:
  """The table as a page. lines: as `to_json` makes them."""
  return (
    report.make_environment()
    .get_template("benchmarks_page.html")
    .render(style=report.read_asset("report.css"), benchmarks=lines)
  )


def to_json(rows: Sequence[scored_protocol.ScoredProtocol]) -> list[dict[str, Any]]:
  """All of the table as JSON; numbers that are not finite are null.

  Beside the fields of a `ScoredProtocol`: `cells`, the texts of the table; `notes`, why a score is
  partial; `intervals`, the texts of all values; `p_holm`.
  """
  p_values = adjusted_p_values(rows)
  return [
    _finite(
      dataclasses.asdict(row)
      | {
        "partial": row.is_partial,
        "p_holm": p_values.get(row.protocol),
        "cells": line,
        "notes": scored_protocol.notes([row]),
        "intervals": [
          (name, _number(value.value), _interval(value.low, value.high), value.clusters)
          for name, value in row.values.items()
        ],
      }
    )
    for row, line in zip(rows, cells(rows), strict=True)
  ]


def _describe_shown(replies: Sequence[reply_store.StoredReply]) -> str:
  """The frames of a prompt and their pixels as the model sees them, or the range of each."""

  def spread(values: Iterable[int]) -> str:
    found = sorted(values)
    return str(found[0]) if found[0] == found[-1] else f"{found[0]}-{found[-1]}"

  if not replies:
    return ""
  frames = spread(each.frames for each in replies)
  return f"{frames} x {spread(each.width * each.height for each in replies)}"


def _with_interval(value: statistics.MetricInterval) -> str:
  between = _interval(value.low, value.high)
  return f"{_number(value.value)} ({between})" if between else _number(value.value)


def _change(change: statistics.MetricChange) -> str:
  between = _interval(change.low, change.high)
  return f"{_number(change.change, '+')} ({between})" if between else _number(change.change, "+")


def _number(value: float, sign: str = "") -> str:
  return "undefined" if math.isnan(value) else f"{value:{sign}.1f}"


def _interval(low: float, high: float) -> str:
  return "" if math.isnan(low) else f"{low:.1f} to {high:.1f}"


def _latex(text: str) -> str:
  for sign in "%&_#$":
    text = text.replace(sign, f"\\{sign}")
  return text


def _finite(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {name: _finite(each) for name, each in value.items()}
  if isinstance(value, list | tuple):
    return [_finite(each) for each in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value
