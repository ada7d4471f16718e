"""What judged.json says, as rows of texts: for the terminal and for the report."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses

from rich import console as rich_console
from rich import markup
from rich import table as rich_table

from vr_jax import errors
from vr_jax.eval import report_json
from vr_jax.eval.trace_judging import grade


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableCell:
  """A number and its 95 % interval, as texts; the interval is "" where there is none.

  tone: "good" or "bad" for a change whose interval leaves out 0; else "".
  """

  number: str
  interval: str = ""
  tone: str = ""


ABSENT_CELL = TableCell(number="–")


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeTable:
  """A judge's numbers.

  about: how it was asked, and what it lacks.
  columns: titles of the scales.
  rows: title of what was measured, and a cell for each scale.
  """

  judge: str
  about: str
  columns: tuple[str, ...]
  rows: tuple[tuple[str, tuple[TableCell, ...]], ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgedTables:
  """All judges, and rows (judges, scale, kappa, alpha) of how far two of them agree.

  notes: sentences about what was judged.
  """

  judges: tuple[JudgeTable, ...]
  agreement: tuple[tuple[str, str, TableCell, TableCell], ...]
  notes: tuple[str, ...]


def tables(judged: report_json.Record) -> JudgedTables:
  """Makes the tables of a judged.json. Raises InputError if a field is missing or wrong."""
  evaluations = judged.record("evaluations")
  titles = {name: evaluations.text(name) for name in evaluations.values}
  return JudgedTables(
    judges=tuple(_judge(each, titles) for each in judged.records("judges")),
    agreement=tuple(
      (
        " and ".join(each.texts("judges")),
        scale.capitalize(),
        _value(found.record("kappa")),
        _value(found.record("alpha")),
      )
      for each in judged.records("agreement")
      for scale in grade.SCALES
      for found in [each.record("scales").record(scale)]
    ),
    notes=_notes(judged, titles),
  )


def show(judged: JudgedTables) -> None:
  """Prints the tables to the terminal."""
  console = rich_console.Console()
  for each in judged.judges:
    table = rich_table.Table(
      title=_plain(f"judge {each.judge}\n{each.about}"), title_justify="left"
    )
    table.add_column("")
    for column in each.columns:
      table.add_column(_plain(column), justify="right")
    for title, cells in each.rows:
      table.add_row(_plain(title), *map(_line, cells))
    console.print(table)
  if judged.agreement:
    table = rich_table.Table(title="agreement of judges", title_justify="left")
    for column in ("", "", "kappa", "alpha"):
      table.add_column(column, justify="right" if column else "left")
    for judges, scale, kappa, alpha in judged.agreement:
      table.add_row(_plain(judges), scale, _line(kappa), _line(alpha))
    console.print(table)
  for note in judged.notes:
    console.print(errors.printable(note), markup=False, highlight=False)


def _judge(record: report_json.Record, titles: dict[str, str]) -> JudgeTable:
  scales = record.record("scales")
  rows = [scales.record(scale) for scale in grade.SCALES]
  return JudgeTable(
    judge=record.text("judge"),
    about=_about(record),
    columns=tuple(scale.capitalize() for scale in grade.SCALES),
    rows=tuple(_rows(rows, titles)),
  )


def _rows(
  scales: Sequence[report_json.Record], titles: dict[str, str]
) -> Iterator[tuple[str, tuple[TableCell, ...]]]:
  """(title, a cell for each scale) of what was measured on any scale."""

  def row(
    title: str, read: Callable[[report_json.Record], TableCell], *path: str
  ) -> Iterator[tuple[str, tuple[TableCell, ...]]]:
    """The row of a section of each scale; nothing if no scale has it."""
    cells = [_find(scale, path) for scale in scales]
    if any(each is not None for each in cells):
      yield title, tuple(ABSENT_CELL if each is None else read(each) for each in cells)

  for name, title in titles.items():
    yield (
      title,
      tuple(
        ABSENT_CELL if (found := _find(scale, ("scores", name))) is None else _mean(found)
        for scale in scales
      ),
    )
  if any(scale.has("change") for scale in scales):
    yield from row("Change", _change, "change")
    names = ("better", "equal", "worse")
    yield (
      "Better / equal / worse",
      tuple(
        TableCell(number=" / ".join(f"{scale.integer(name):,}" for name in names))
        for scale in scales
      ),
    )
  yield from row("Runs agree: kappa", _value, "runs", "kappa")
  yield from row("Runs agree: alpha", _value, "runs", "alpha")
  yield from row("Order decides", _percent, "position", "order_decides")
  yield from row("… for the first", _percent, "position", "first_favoured")
  yield from row("… for the second", _percent, "position", "second_favoured")
  yield from row("Asking again decides", _percent, "position", "runs_decide")
  yield from row("Truth: Spearman's ρ", _value, "truth")


def _find(record: report_json.Record, path: Sequence[str]) -> report_json.Record | None:
  """A section inside of sections; None if there is none."""
  for name in path:
    if not record.has(name):
      return None
    record = record.record(name)
  return record


def _about(record: report_json.Record) -> str:
  """How a judge was asked, and how many verdicts it did not give."""
  settings = record.record("settings")
  parts = []
  if settings.text("kind") == "rule":
    parts.append("counts of claims, by the simulator's true states")
  else:
    pair = settings.text("shown") == "pair"
    parts.append("both traces in one prompt, in both orders" if pair else "each trace alone")
    runs = settings.integer("runs")
    parts.append(f"{runs} run{'' if runs == 1 else 's'}")
  missing, verdicts = record.integer("missing"), record.integer("verdicts")
  if missing:
    problems = record.record("problems")
    causes = ", ".join(f"{problems.integer(name)} {name}" for name in problems.values)
    parts.append(f"{missing:,} of {verdicts:,} verdicts missing ({causes})")
  else:
    parts.append(f"{verdicts:,} verdicts, none missing")
  return "; ".join(parts)


def _notes(judged: report_json.Record, titles: dict[str, str]) -> tuple[str, ...]:
  questions, videos = judged.integer("questions"), judged.integer("videos")
  notes = [f"{questions:,} questions about {videos:,} videos; grades from 1 to 5, 5 is best."]
  left = judged.record("left_out")
  for name, why in (
    ("without_reference", "have no reference steps"),
    ("not_in_all_evaluations", "are not in all evaluations"),
  ):
    if count := left.integer(name):
      notes.append(f"{count:,} further questions {why} and were not judged.")
  addressing = judged.record("addressing")
  speaking = [
    f"{addressing.integer(name):,} ({titles[name]})" for name in titles if addressing.integer(name)
  ]
  if speaking:
    notes.append(f"Traces that seem to speak to a judge: {', '.join(speaking)}.")
  return tuple(notes)


def _value(record: report_json.Record) -> TableCell:
  """A statistic with its bootstrapped interval."""
  return _statistic(record, lambda value: f"{value:.2f}".replace("-", "−"))


def _percent(record: report_json.Record) -> TableCell:
  return _statistic(record, lambda value: f"{100 * value:.0f} %")


def _statistic(record: report_json.Record, text: Callable[[float], str]) -> TableCell:
  if not record.has("value"):
    return ABSENT_CELL
  interval = ""
  if record.has("low") and record.has("high"):
    interval = f"({text(record.number('low'))} to {text(record.number('high'))})"
  return TableCell(number=text(record.number("value")), interval=interval)


def _mean(record: report_json.Record) -> TableCell:
  low, high = record.number("low"), record.number("high")
  return TableCell(number=f"{record.number('mean'):.2f}", interval=f"({low:.2f} to {high:.2f})")


def _change(record: report_json.Record) -> TableCell:
  mean, low, high = (record.number(name) for name in ("mean", "low", "high"))
  texts = [f"{value:+.2f}".replace("-", "−") for value in (mean, low, high)]
  tone = "" if low <= 0 <= high else "good" if mean > 0 else "bad"
  return TableCell(number=texts[0], interval=f"({texts[1]} to {texts[2]})", tone=tone)


def _line(cell: TableCell) -> str:
  return " ".join(filter(None, (cell.number, cell.interval)))


def _plain(text: str) -> str:
  """A text that is no markup and moves no cursor."""
  return markup.escape(errors.printable(text))
