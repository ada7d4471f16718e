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
from vr_jax.eval.benchmarks import protocols, reply_store, statistics


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

  directories: the `--out` of each seed. The last line is the mean over benchmarks, if there are
    several, each once.

  Raises InputError if there are under two, or tables differ in their questions, prompts or limits,
  or two are of the same weights.
  """
  tables = [_read_table(each) for each in directories]
  wanted = list(names) or list(tables[0])
  for name in wanted:
    _check(name, directories, tables)
  found = [_make(name, [table[name] for table in tables]) for name in wanted]
  benchmarks = {protocols.get(name).benchmark for name in wanted}
  if 1 < len(benchmarks) == len(wanted):
    means = [statistics.mean_over_benchmarks([table[name] for name in wanted]) for table in tables]
    scores, errors = zip(*means, strict=True)
    found.append(_summary(f"mean of {len(wanted)} benchmarks", scores, errors))
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


def _make(name: str, values: Sequence[statistics.MetricInterval]) -> SeedScores:
  return _summary(name, [each.value for each in values], [each.standard_error for each in values])


def _read_table(directory: Path) -> Mapping[str, statistics.MetricInterval]:
  """The headline of each protocol in a table."""
  path = directory / "table.json"
  try:
    rows = plain_json.parse(path.read_bytes())
    return {row["protocol"]: _headline(row) for row in rows}
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
  tables: Sequence[Mapping[str, statistics.MetricInterval]],
) -> None:
  """Raises InputError unless all seeds were asked the same, and are different."""
  asked, weights = [], []
  for directory, table in zip(directories, tables, strict=True):
    if name not in table:
      raise InputError(f"{directory / 'table.json'}: has no score of {name}")
    about = reply_store.ReplyStore(directory=directory / name).about()
    asked.append([about.get(field) for field in ("questions", "prompts", "limit")])
    weights.append(about.get("weights"))
  for directory, each in zip(directories, asked, strict=True):
    if each != asked[0]:
      raise InputError(
        f"--seeds: {name} was asked other questions in {directory} than in {directories[0]}"
      )
  for place, each in enumerate(weights):
    if each and each in weights[:place]:
      other = directories[weights.index(each)]
      raise InputError(
        f"--seeds: {name} was asked of the same weights in {other} and {directories[place]}"
      )
