"""Terminal output: progress bars on stderr; without a terminal, a line at least once a minute.

with console.heartbeat():                       # lines that say where the run is
  with console.progress("rl", 200) as tick:     # a bar, or a line for each tenth
    with console.doing("sampling replies"):     # what bar and lines say the run waits for
      ...
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import functools
import io
import sys
import threading
import time
from typing import TextIO

import jax
from rich import console as rich_console
from rich import progress as rich_progress
from rich import text as rich_text

from vr_jax import durations, errors, json_lines
from vr_jax.parallel import absent_tpu
from vr_jax.train import background

Tick = Callable[..., None]

MINUTE = 60.0  # seconds without a line after which the heartbeat prints one
_ANNOUNCE_AFTER = 2.0  # seconds after which something slow is announced


@dataclasses.dataclass(eq=False)
class _Task:
  """What a bar shows. values: the text behind it."""

  name: str
  total: int | None
  done: int
  values: str = ""

  def __str__(self) -> str:
    return f"{self.name} {self.done}/{self.total}" if self.total else f"{self.name} {self.done}"


@dataclasses.dataclass(eq=False)
class Activity:
  """Something that a run waits for. started: time.monotonic()."""

  text: str
  announced: bool
  started: float = dataclasses.field(default_factory=time.monotonic)


class _Bars(rich_progress.Progress):
  """A bar for each task, and below them their values, and what is waited for if that takes long."""

  def get_renderables(self) -> Iterator[rich_console.RenderableType]:
    """What is drawn: called many times a second, on a thread."""
    yield self.make_tasks_table(self.tasks)
    below = rich_text.Text("  ".join(task.values for task in list(_tasks) if task.values))
    activity = _innermost()
    if activity and (seconds := time.monotonic() - activity.started) > _ANNOUNCE_AFTER:
      below.append(f"  {activity.text}, {durations.as_text(seconds)}", style="dim")
    if below:
      yield below


# What is going on in this process: one terminal, so one of each.
_tasks: list[_Task] = []
_activities: list[Activity] = []
_bars: _Bars | None = None
_last_line = time.monotonic()


@contextlib.contextmanager
def progress(name: str, total: int | None = None, *, done: int = 0) -> Iterator[Tick]:
  """Yields `tick(done, total=None, values={})`, which moves the bar and shows the values.

  Values are numbers or texts. Only process 0 prints. Inside another `progress`, the bar is drawn
  below the outer one and disappears at the end.
  """
  task, nested = _Task(name, total, done), _bars is not None
  with _listed(task), _drawn() as bars:
    shown = bars.add_task(name, total=total, completed=done)

    def tick(
      done: int, total: int | None = None, values: Mapping[str, float | str] | None = None
    ) -> None:
      task.done, task.total = done, total or task.total
      task.values = "  ".join(
        f"{key} {value if isinstance(value, str) else f'{value:.3g}'}"
        for key, value in (values or {}).items()
      )
      bars.update(shown, total=task.total, completed=done)
      if bars.disable and jax.process_index() == 0 and values and _milestone(done, task.total):
        _write(f"{task}  {task.values}", sys.stderr)

    try:
      yield tick
    finally:
      if nested:
        bars.remove_task(shown)


@contextlib.contextmanager
def _listed(task: _Task) -> Iterator[None]:
  _tasks.append(task)
  try:
    yield
  finally:
    _tasks.remove(task)


@contextlib.contextmanager
def _drawn() -> Iterator[_Bars]:
  """Yields the bars that are being drawn, or draws some."""
  global _bars
  if _bars is not None:
    yield _bars
    return
  _bars = _Bars(
    rich_progress.TextColumn("{task.description:>9}"),
    rich_progress.BarColumn(bar_width=30),
    rich_progress.MofNCompleteColumn(),
    rich_progress.TimeElapsedColumn(),
    rich_progress.TimeRemainingColumn(),
    console=rich_console.Console(file=sys.stderr),
    redirect_stdout=sys.stdout.isatty(),  # lines for a file would else appear above the bar
    disable=jax.process_index() != 0 or not sys.stderr.isatty(),
  )
  try:
    with _bars:
      yield _bars
  finally:
    _bars = None


@contextlib.contextmanager
def doing(text: str, *, announce: bool = False) -> Iterator[None]:
  """Names what the run waits for in this block, for bars and heartbeats.

  announce: prints a line, unless a bar shows it, if the block takes more than 2 seconds.
  """
  activity = begin(text, announce=announce)
  try:
    yield
  finally:
    end(activity)


def begin(text: str, *, announce: bool = False) -> Activity:
  """As `doing`, for where a block doesn't fit: give the result to `end`. Any thread may call it."""
  activity = Activity(text, announced=not announce)
  _activities.append(activity)
  return activity


def end(activity: Activity) -> None:
  """Ends what `begin` began."""
  _activities.remove(activity)


@contextlib.contextmanager
def heartbeat(*, stream: io.TextIOBase | TextIO | None = None) -> Iterator[None]:
  """Prints where the run is when nothing was printed for a minute; only in process 0.

  stream: where to. None: stderr if that is no terminal, else stdout if that is none. Where both are
    terminals, stderr, but only while no bar is drawn.
  """
  absent_tpu.leave_out()  # the next line starts JAX, if nothing else has
  if jax.process_index() != 0:
    yield
    return
  global _last_line
  _last_line = time.monotonic()  # that of an earlier run in this process may be long ago
  with background.beside("heartbeat", functools.partial(_beat, stream)):
    yield


def _beat(stream: io.TextIOBase | TextIO | None, stop: threading.Event) -> None:
  while not stop.wait(min(0.5, MINUTE / 4)):
    where, activity = stream or _line_stream(), _innermost()
    if where is None:
      continue
    now, subject = time.monotonic(), str(_tasks[-1]) if _tasks else "vr-jax"
    line = ""
    if activity and not activity.announced and now - activity.started > _ANNOUNCE_AFTER:
      activity.announced = True
      line = f"{subject}: {activity.text}"
    elif now - _last_line >= MINUTE:
      doing = (
        f"{activity.text}, {durations.as_text(now - activity.started)} so far" if activity else ""
      )
      values = _tasks[-1].values if _tasks else ""
      line = f"{subject}: {'  '.join(part for part in (values, doing) if part) or 'at work'}"
    if line:
      with contextlib.suppress(OSError, ValueError):  # nobody reads any more
        _write(line, where)


def _line_stream() -> io.TextIOBase | TextIO | None:
  """Where lines about the progress go; None while a terminal shows a bar instead."""
  if not sys.stderr.isatty():
    return sys.stderr
  if not sys.stdout.isatty():
    return sys.stdout
  return None if _tasks else sys.stderr


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snapshot:
  """What a process is doing: its innermost task and what it waits for, for how many seconds."""

  task: str
  done: int
  total: int | None
  activity: str
  seconds: float


def snapshot() -> Snapshot:
  """What this process is doing now. Any thread may call it."""
  task, activity = next(iter(_tasks[-1:]), None), _innermost()
  return Snapshot(
    task=task.name if task else "",
    done=task.done if task else 0,
    total=task.total if task else None,
    activity=activity.text if activity else "",
    seconds=time.monotonic() - activity.started if activity else 0.0,
  )


def progress_mark() -> tuple[object, ...]:
  """Another value than before if anything has begun, ended or advanced. Any thread may call it."""
  activity = _innermost()
  return (
    *((id(task), task.done) for task in list(_tasks)),
    id(activity),
    activity and activity.started,
  )


def _innermost() -> Activity | None:
  return next(iter(_activities[-1:]), None)


def print_line(text: str) -> None:
  """Prints a line on stdout, in process 0 only."""
  if jax.process_index() == 0:
    _write(text, sys.stdout)


def print_note(text: str) -> None:
  """Prints lines on stderr, above the bar if there is one, in process 0 only."""
  if jax.process_index() == 0:
    _write(text, sys.stderr, "WARNING")


def is_power_of_ten(count: float) -> bool:
  """Whether count is 1, 10, 100, …: when to print a line again about something that recurs."""
  while count > 1:
    count /= 10
  return count == 1


def _write(line: str, where: io.TextIOBase | TextIO, severity: str = "INFO") -> None:
  """Writes a line at once. `print` writes its end separately, and Ctrl-C might come between.

  Names from files, and texts of models, can't steer a terminal: their control characters become
  escapes.
  """
  global _last_line
  _last_line = time.monotonic()
  if isinstance(where, json_lines.JsonLines):
    where.write_message(errors.printable(line), severity)
  else:
    where.write(f"{errors.printable(line)}\n")
    where.flush()


def _milestone(done: int, total: int | None) -> bool:
  return bool(total) and (done == total or done % max(1, total // 10) == 0)
