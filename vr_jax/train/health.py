"""Writes what this process is doing to its file, and ends it if nothing happens for too long.

A process that waits in a collective operation for one that is gone or stuck would wait for ever.
So each process looks at itself: where its task and what it waits for have not changed for
config.log.hang_timeout, it writes the stacks of its threads to <workdir>/health/<process>.stacks,
names the process that the others wait for, and ends with exit code 1. Whoever started it starts it
again. It also ends when a process has told that it failed where the others can only wait for it.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import faulthandler
import json
import os
from pathlib import Path
import socket
import sys
import threading
import time
from typing import NoReturn

import jax

from vr_jax import atomic, buckets, durations, errors, goodput, process_state
from vr_jax.parallel import processes
from vr_jax.train import background, compilations, console, lease

PERIOD = lease.PERIOD  # seconds between two files
SILENCE_LOOK = 10.0  # seconds between two looks of process 0 for others that are silent
SILENCE = 30.0  # seconds without a sign after which they are named: JAX ends all after 50 to 100
LOOK = 60.0  # seconds between two looks at the other processes, before one that hangs is ended


@contextlib.contextmanager
def watched(workdir: Path, hang_timeout: float) -> Iterator[None]:
  """Within it, this process's file says what it does; at the end, how it ended.

  hang_timeout: seconds without any progress after which the process is ended; 0: never.
  """
  watch = _HealthWatch(workdir, hang_timeout)
  if processes.is_first():
    before = process_state.read_all(workdir)
    for each in before:
      if each.process >= jax.process_count():  # of an earlier start with more processes
        process_state.path(workdir, each.process).unlink(missing_ok=True)
    alive = max((each.time for each in before), default=0.0)
    goodput.note(workdir, "start", time=_started(), alive=alive)
  watch.write("running")
  state, error = "done", ""
  try:
    with background.beside("health", watch.run):
      yield
  except errors.Preempted as preempted:
    state, error = "preempted", str(preempted)
    raise
  except BaseException as failure:
    state, error = "failed", errors.printable(str(failure) or type(failure).__name__)
    raise
  finally:
    watch.write(state, error)
    if processes.is_first():
      goodput.note(workdir, "end", state=state)


def _started() -> float:
  """When this process has started, before it imported anything: seconds since 1970."""
  try:
    ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    up = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - up + ticks / os.sysconf("SC_CLK_TCK")
  except (OSError, ValueError, IndexError):  # not Linux
    return time.time()


class _SilenceWatch:
  """Names the processes that give no sign any more, before JAX ends all for their sake.

  It compares their files with what it saw of them, not their clocks with its own.
  """

  def __init__(self, workdir: Path, process: int) -> None:
    self._workdir, self._process = workdir, process
    self._seen: dict[int, tuple[float, float]] = {}  # process -> time in its file, when first seen
    self._named: set[int] = set()
    self._next = 0.0

  def look(self) -> None:
    """Looks, if it is time to; prints a line for each process that has become silent."""
    now = time.monotonic()
    if now < self._next:
      return
    self._next = now + SILENCE_LOOK
    for each in process_state.read_all(self._workdir):
      if each.process == self._process or each.state != "running":
        continue
      if self._seen.get(each.process, (None, 0.0))[0] != each.time:
        self._seen[each.process] = each.time, now
        self._named.discard(each.process)
        continue
      silent = now - self._seen[each.process][1]
      if silent >= SILENCE and each.process not in self._named:
        self._named.add(each.process)
        console.print_note(
          f"process {each.process} on {each.host} has given no sign for "
          f"{durations.as_text(silent)}; it was at: {each.place}"
        )


class _HealthWatch:
  """The thread that writes the file and looks at the clock."""

  def __init__(self, workdir: Path, hang_timeout: float) -> None:
    self._workdir, self._hang_timeout = workdir, hang_timeout
    self._host, self._process = socket.gethostname(), jax.process_index()
    own = (each for each in process_state.read_all(workdir) if each.process == self._process)
    self._last_error = next((each.error for each in own if each.state in ("failed", "running")), "")

  def run(self, stop: threading.Event) -> None:
    """Writes every PERIOD, until the watch is stopped or nothing has happened for too long."""
    last, since = console.progress_mark(), time.monotonic()
    places, next_look, silence = None, since, _SilenceWatch(self._workdir, self._process)
    while not stop.wait(PERIOD):
      mark = console.progress_mark()
      if mark != last:
        last, since = mark, time.monotonic()
      self.write("running")
      if processes.is_first() and jax.process_count() > 1:
        silence.look()
      now, waited = time.monotonic(), time.monotonic() - since
      if self._hang_timeout and waited > self._hang_timeout and now >= next_look:
        # It may wait for a process at work alone, as in ingestion: look twice at the others.
        places, before = self._places(), places
        if places == before:
          self._end(waited)
        next_look = now + min(self._hang_timeout, LOOK)
      # Last, as the coordinator may not answer for long.
      if failure := processes.told_failure():
        self._end_as_told(failure)

  def _end_as_told(self, failure: processes.Failure) -> NoReturn:
    """Ends this process, as it, or one of the others, would wait in vain."""
    line = failure.line
    if failure.process != processes.joined_index():
      line = f"process {failure.process} on {failure.host} has failed, so this one ends: {line}"
    line = buckets.explained(f"vr-jax: {line}")
    print(errors.printable(line), file=sys.stderr, flush=True)
    processes.meet_to_end(3 * PERIOD)  # the others look a little later
    self.write("failed", line.removeprefix("vr-jax: "))
    os._exit(failure.code)

  def _places(self) -> list[tuple[int, str, int, str]]:
    """Where the other processes are."""
    return [
      (each.process, each.task, each.done, each.activity)
      for each in process_state.read_all(self._workdir)
      if each.process != self._process
    ]

  def write(self, state: str, error: str = "") -> None:
    """Writes the file. A disk that is full for a moment is no reason to stop a run."""
    content = json.dumps(dataclasses.asdict(self._state(state, error)))
    file = process_state.path(self._workdir, self._process)
    with contextlib.suppress(OSError):
      file.parent.mkdir(parents=True, exist_ok=True)
      with atomic.file(file) as partial:
        partial.write_text(content + "\n", encoding="utf-8")

  def _state(self, state: str, error: str = "") -> process_state.ProcessState:
    now = console.snapshot()
    return process_state.ProcessState(
      host=self._host,
      process=self._process,
      pid=os.getpid(),
      time=time.time(),
      state=state,
      task=now.task,
      done=now.done,
      total=now.total,
      activity=now.activity,
      seconds=round(now.seconds, 1),
      error=error or (self._last_error if state == "running" else ""),
      namespace=lease.namespace(),
      programs=compilations.summary(),
      waiting=processes.is_waiting(),
    )

  def _end(self, seconds: float) -> None:
    """Ends a process in which nothing happens, with its stacks and the name of the late one."""
    stacks = process_state.path(self._workdir, self._process).with_suffix(".stacks")
    with contextlib.suppress(OSError), stacks.open("w", encoding="utf-8") as file:
      faulthandler.dump_traceback(file=file, all_threads=True)
    own = self._state("running")
    late = process_state.find_late(process_state.read_all(self._workdir), time.time())
    names = ", ".join(
      f"process {each.process} on {each.host} ({each.place})"
      for each in late
      if each.process != self._process
    )
    others = f"; waited for {names}" if names else "; the others wait for it" if late else ""
    error = (
      f"process {self._process} on {self._host}: nothing has happened for "
      f"{durations.as_text(seconds)} ({own.place}){others}; stacks are in {stacks}; the same "
      "command goes on from the last checkpoint"
    )
    print(errors.printable(f"vr-jax: {error}"), file=sys.stderr, flush=True)
    # The others notice a little later, and without the first one JAX ends them before. Until then
    # this one is no failure to them, for which they would have waited.
    processes.meet_to_end(min(self._hang_timeout, LOOK) + 3 * PERIOD)
    self.write("failed", error)
    os._exit(1)
