"""Scores of one recipe trained with several seeds: how much training varies, apart from questions.

Read from the tables that `vr-jax eval` has written for each seed. The standard deviation over seeds
says how much a score moves when the run is repeated; the standard error is that of the questions,
of one run. They are errors of different things: they are shown apart and never added up.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
from pathlib import Path
from typing import Any

from rich import box as rich_box
from rich import table as rich_table

from vr_jax import plain_json
from vr_jax.errors import InputError
from vr_jax.eval.benchmarks import reply_store, score_table, statistics

# What a seed's replies are of, and fields of its row in the table: the same for all seeds.
_ASKED = ("questions", "prompts", "limit")
_SCORED = ("headline", "judge", "questions", "missing", "unscored", "not_asked")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeedScores:
  """One protocol's scores, or their mean over benchmarks.

  scores: of each seed. errors: their standard errors over questions.
  mean, deviation: over the seeds, n - 1 in the latter's denominator.
  """

  name: str
  scores: tuple[float, ...]
  errors: tuple[float, ...]
  mean: float
  deviation: float


def read(directories: Sequence[Path], names: Sequence[str] = ()) -> list[SeedScores]:
  """Reads the scores of all protocols, or of some, that each seed's table has.

  directories: the `--out` of each seed. The last line is the mean over benchmarks, if there is one
    (`score_table.name_mean`).

  Raises InputError if there are under two, or tables differ in their questions, prompts or limits,
  in what of these was scored or by whom, or two are of the same weights.
  """
  tables = [_read_table(each) for each in directories]
  wanted = list(names) or list(tables[0])
  for name in wanted:
    _check(name, directories, tables)
  partial = {name for name in wanted if any(table[name].partial for table in tables)}
  found = []
  for name in wanted:
    values = [table[name].value for table in tables]
    title = f"{name} (partial)" if name in partial else name
    errors = [each.standard_error for each in values]
    found.append(_summary(title, [each.value for each in values], errors))
  averaged, title = score_table.name_mean(
    {name: tables[0][name].scored["headline"] for name in wanted}, partial
  )
  if averaged:
    means = [
      statistics.mean_over_benchmarks([table[name].value for name in averaged]) for table in tables
    ]
    scores, errors = zip(*means, strict=True)
    found.append(_summary(title, scores, errors))
  return found


def to_terminal(rows: Sequence[SeedScores]) -> rich_table.Table:
  """The table for a terminal."""
  count = len(rows[0].scores)
  table = rich_table.Table(
    title=f"{count} training seeds", title_justify="left", box=rich_box.SIMPLE_HEAD
  )
  heads = ("mean", "SD over seeds", "standard error of questions", "each seed")
  for name in ("protocol", *heads):
    table.add_column(name, justify="left" if name == "protocol" else "right", no_wrap=True)
  for row in rows:
    error = sum(row.errors) / count
    each = ", ".join(f"{score:.1f}" for score in row.scores)
    table.add_row(row.name, f"{row.mean:.1f}", f"{row.deviation:.1f}", f"{error:.1f}", each)
  return table


def _summary(name: str, scores: Sequence[float], errors: Sequence[float]) -> SeedScores:
  mean, deviation = statistics.seed_spread(scores)
  return SeedScores(
    name=name, scores=tuple(scores), errors=tuple(errors), mean=mean, deviation=deviation
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _SeedRow:
  """A seed's headline, whether it is partial, and what it is of: the fields of _SCORED."""

  value: statistics.MetricInterval
  partial: bool
  scored: Mapping[str, Any]


def _read_table(directory: Path) -> Mapping[str, _SeedRow]:
  """The row of each protocol in a table."""
  path = directory / "table.json"
  try:
    rows = plain_json.parse(path.read_bytes())
    return {
      row["protocol"]: _SeedRow(
        value=_headline(row),
        partial=row["partial"],
        scored={field: row[field] for field in _SCORED},
      )
      for row in rows
    }
  except FileNotFoundError as error:
    raise InputError(f"{path}: no such file; --seeds needs the --out of each seed") from error
  except (ValueError, KeyError, TypeError) as error:
    raise InputError(f"{path}: is damaged: {error}; run vr-jax eval again") from error


def _headline(row: Mapping[str, Any]) -> statistics.MetricInterval:
  value = row["values"][row["headline"]]
  number = {name: math.nan if each is None else float(each) for name, each in value.items()}
  return statistics.MetricInterval(
    value=number["value"],
    low=number["low"],
    high=number["high"],
    standard_error=number["standard_error"],
    clusters=int(number["clusters"]),
  )


def _check(
  name: str,
  directories: Sequence[Path],
  tables: Sequence[Mapping[str, _SeedRow]],
) -> None:
  """Raises InputError unless all seeds were asked and scored the same, and are different."""
  asked, weights = [], []
  for directory, table in zip(directories, tables, strict=True):
    if name not in table:
      raise InputError(f"{directory / 'table.json'}: has no score of {name}")
    about = reply_store.ReplyStore(directory=directory / name).about()
    asked.append([about.get(field) for field in _ASKED])
    weights.append(about.get("weights"))
  for directory, each in zip(directories, asked, strict=True):
    if each != asked[0]:
      raise InputError(
        f"--seeds: {name} was asked other questions in {directory} than in {directories[0]}"
      )
  for directory, table in zip(directories, tables, strict=True):
    for field in _SCORED:
      one, first = (rows[name].scored[field] for rows in (table, tables[0]))
      if one != first:
        raise InputError(
          f"--seeds: {name} has {field}={_short(one)} in {directory / 'table.json'}, "
          f"{_short(first)} in {directories[0] / 'table.json'}: complete both, and score them alike"
        )
  for place, each in enumerate(weights):
    if each and each in weights[:place]:
      other = directories[weights.index(each)]
      raise InputError(
        f"--seeds: {name} was asked of the same weights in {other} and {directories[place]}"
      )


def _short(value: Any) -> str:
  return f"{len(value)} files" if isinstance(value, list) else repr(value)
