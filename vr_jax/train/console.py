"""Terminal output: progress bars on stderr, or single lines if stderr is not a terminal."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import io
import sys
from typing import TextIO

import jax
from rich import console as rich_console
from rich import progress as rich_progress

Tick = Callable[..., None]


@contextlib.contextmanager
def progress(name: str, total: int | None = None, *, done: int = 0) -> Iterator[Tick]:
  """Yields `tick(done, total=None, values={})`, which moves the bar and shows the values.

  Only process 0 prints.
  """
  bar = rich_progress.Progress(
    rich_progress.TextColumn("{task.description:>9}"),
    rich_progress.BarColumn(bar_width=30),
    rich_progress.MofNCompleteColumn(),
    rich_progress.TimeElapsedColumn(),
    rich_progress.TimeRemainingColumn(),
    rich_progress.TextColumn("{task.fields[values]}", table_column=None),
    console=rich_console.Console(file=sys.stderr),
    disable=jax.process_index() != 0 or not sys.stderr.isatty(),
  )
  with bar:
    task = bar.add_task(name, total=total, completed=done, values="")

    def tick(
      done: int, total: int | None = None, values: Mapping[str, float] | None = None
    ) -> None:
      shown = "  ".join(f"{key} {value:.3g}" for key, value in (values or {}).items())
      bar.update(task, total=total, completed=done, values=shown)
      if bar.disable and jax.process_index() == 0 and values and _milestone(done, total):
        _write(f"{name} {done}/{total}  {shown}", sys.stderr)

    yield tick


def print_line(text: str) -> None:
  """Prints a line on stdout, in process 0 only."""
  if jax.process_index() == 0:
    _write(text, sys.stdout)


def _write(line: str, where: io.TextIOBase | TextIO) -> None:
  """Writes a line at once. `print` writes its end separately, and Ctrl-C might come between."""
  where.write(f"{line}\n")
  where.flush()


def _milestone(done: int, total: int | None) -> bool:
  return bool(total) and (done == total or done % max(1, total // 10) == 0)
