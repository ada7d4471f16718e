"""Counts of a constructed data set, as JSON and as a page of Markdown."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import statistics
from typing import Any

from vr_jax.traces.construct import benchmark_files, chunk_work, quality

_NAMED = 10  # files of benchmarks; the summary has all
Row = Mapping[str, Any]  # {"record", "reason", "detail", "attribute"}


def summarize(
  videos: Sequence[chunk_work.ConstructedVideo],
  rows: Sequence[Row],
  splits: Mapping[str, Sequence[Row]],
  *,
  bad: int,
  copies: int,
  comparison: benchmark_files.BenchmarkComparison | None,
) -> dict[str, Any]:
  """Returns the counts, JSON-able.

  rows: all questions that were made; those of `splits` are kept.
  bad: number of lines and videos that could not be used.
  copies: number of videos with the frames of another one.
  comparison: with benchmarks, if there was one.
  """
  kept = [row for row in rows if not row["reason"]]
  reasons = Counter(row["reason"] for row in rows)
  asked = Counter(row["attribute"] for row in rows)
  return {
    "videos": len(videos),
    "bad_records": bad,
    "copies": copies,
    "benchmarks": None if comparison is None else dataclasses.asdict(comparison),
    "states": sum(video.states for video in videos),
    "dropped_states": sum(video.dropped for video in videos),
    "not_asked": dict(sorted(chunk_work.count_skipped(videos).items())),
    "questions": len(rows),
    "kept": len(kept),
    "rejected": {reason: reasons[reason] for reason in quality.REASONS},
    "attributes": {
      name: {"made": count, "kept": sum(row["attribute"] == name for row in kept)}
      for name, count in sorted(asked.items())
    },
    "splits": {
      name: {"questions": len(part), "videos": len({row["record"]["video"] for row in part})}
      for name, part in splits.items()
    },
    "answer_positions": _positions(kept),
    "options": dict(sorted(Counter(str(len(row["record"]["options"])) for row in kept).items())),
    "chance": _chance(kept),
    "most_frequent_answer": _most_frequent(kept),
    "last_seen_answer": _last_seen(kept),
    "steps": _spread(len(row["record"]["steps"]) for row in kept),
    "step_words": _spread(
      len(step["text"].split()) for row in kept for step in row["record"]["steps"]
    ),
    "shown_seconds": _spread(_length(row["record"]["shown"]) for row in kept),
    "masked_seconds": _spread(_length(row["record"]["masked"]) for row in kept),
  }


def page(summary: Mapping[str, Any], *, compared: bool) -> str:
  """The page of a summary. compared: whether frames of videos were compared with each other."""
  frames = "not compared: construct.videos is empty"
  if compared:
    frames = f"{summary['copies']} videos have the frames of another one"
  facts = {
    "captioned videos": summary["videos"],
    "lines and videos that could not be used": summary["bad_records"],
    "frames": frames,
    **_benchmark_facts(summary["benchmarks"]),
    "states told": summary["states"],
    "states dropped, as their caption doesn't have them": summary["dropped_states"],
    "questions made": summary["questions"],
    "questions kept": summary["kept"],
  }
  blind = {
    "chance": summary["chance"],
    "the attribute's most frequent answer": summary["most_frequent_answer"],
    "the last state of the trace": summary["last_seen_answer"],
  }
  spreads = {
    "steps of a trace": summary["steps"],
    "words of a step": summary["step_words"],
    "seconds shown": summary["shown_seconds"],
    "seconds masked": summary["masked_seconds"],
  }
  tables = [
    _table(("count", ""), facts.items()),
    "## Filters\n",
    _table(("left out, as", "questions"), summary["rejected"].items()),
    "## Not asked about\n",
    _table(("reason", "pairs of object and attribute"), summary["not_asked"].items()),
    "## Attributes\n",
    _table(
      ("attribute", "made", "kept"),
      ((name, count["made"], count["kept"]) for name, count in summary["attributes"].items()),
    ),
    "## Splits\n",
    _table(
      ("split", "questions", "videos"),
      ((name, count["questions"], count["videos"]) for name, count in summary["splits"].items()),
    ),
    "## Answers\n",
    _table(("letter of the answer", "questions"), summary["answer_positions"].items()),
    _table(("number of options", "questions"), summary["options"].items()),
    _table(("guess without the video", "right"), ((k, f"{v:.1%}") for k, v in blind.items())),
    "## Lengths\n",
    _table(
      ("", "least", "median", "mean", "most"),
      ((name, *(f"{value:.4g}" for value in each.values())) for name, each in spreads.items()),
    ),
  ]
  return "# Constructed questions\n\n" + "\n".join(tables)


def _benchmark_facts(comparison: Mapping[str, Any] | None) -> dict[str, str]:
  if comparison is None:
    return {"frames of benchmarks": "not compared: construct.benchmarks is empty"}
  videos, folders, left = (comparison[name] for name in ("videos", "folders", "not_compared"))
  facts = {"frames of benchmarks": f"of {videos} videos and {folders} folders of pictures compared"}
  if left:
    named = [f"{name} ({why})" for name, why in list(left.items())[:_NAMED]]
    more = [f"and {len(left) - _NAMED} more"] if len(left) > _NAMED else []
    facts["files of benchmarks not compared"] = f"{len(left)}: {'; '.join([*named, *more])}"
  return facts


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
  lines = [head, ["---"] * len(head), *rows]
  cells = ([str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines)
  return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def _positions(kept: Sequence[Row]) -> dict[str, int]:
  return dict(sorted(Counter(row["record"]["answer"] for row in kept).items()))


def _chance(kept: Sequence[Row]) -> float:
  return sum(1 / len(row["record"]["options"]) for row in kept) / max(len(kept), 1)


def _most_frequent(kept: Sequence[Row]) -> float:
  """Fraction right for a guesser who knows how often each answer is right, by attribute.

  He chooses the option that is right most often elsewhere in the set, without this question.
  """
  counts: dict[str, Counter[str]] = {}
  for row in kept:
    counts.setdefault(row["attribute"], Counter())[_right(row)] += 1
  score = 0.0
  for row in kept:
    own = counts[row["attribute"]].copy()
    own[_right(row)] -= 1
    values = [option[3:] for option in row["record"]["options"]]
    best = max(own[value] for value in values)
    chosen = [value for value in values if own[value] == best]
    score += (_right(row) in chosen) / len(chosen)
  return score / max(len(kept), 1)


def _last_seen(kept: Sequence[Row]) -> float:
  """Fraction right for a guesser who chooses the option that the trace's last step names."""
  score = 0.0
  for row in kept:
    text = row["record"]["steps"][-1]["text"] if row["record"]["steps"] else ""
    named = [option[3:] for option in row["record"]["options"] if option[3:] in text]
    score += (_right(row) in named) / max(len(named), 1)
  return score / max(len(kept), 1)


def _right(row: Row) -> str:
  record = row["record"]
  return next(o[3:] for o in record["options"] if o.startswith(f"{record['answer']}."))


def _length(span: Sequence[float]) -> float:
  return span[1] - span[0]


def _spread(values: Iterable[float]) -> dict[str, float]:
  found = list(values) or [0.0]
  return {
    "least": min(found),
    "median": statistics.median(found),
    "mean": statistics.fmean(found),
    "most": max(found),
  }
