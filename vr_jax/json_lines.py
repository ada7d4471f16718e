"""Lines as JSON objects for whoever collects them, as Cloud Logging does: `--log_format=json`.

    {"time": "2026-11-30T20:00:00.000+00:00", "severity": "INFO", "message": "rl 20/200  …",
     "process": 1, "host": "host-b", "stage": "rl"}

`process` is null where that is not known: before a process has joined the others, unless a flag or
the machine says it, and in commands that are no part of a run.

Each line that Python prints on stdout or stderr becomes one, and so do lines that are written at
once, as a traceback. What libraries written in other languages print themselves stays as it is.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import datetime
import io
import json
import os
import socket
import sys
import threading
from typing import TextIO

FLAG = "--log_format"
_process: int | None = None


class JsonLines(io.TextIOBase):
  """A text stream that writes the lines that it is given as objects to another one.

  severity: of lines that are not given with one.
  """

  def __init__(self, stream: TextIO, severity: str) -> None:
    self._stream, self._severity = stream, severity
    self._begun = ""  # a line that has no end yet
    self._lock = threading.RLock()

  def write(self, text: str) -> int:
    """Takes text; writes the lines that are complete."""
    with self._lock:
      complete, _, self._begun = (self._begun + text).rpartition("\n")
      self.write_message(complete.rstrip("\n"), self._severity)
    return len(text)

  def write_message(self, message: str, severity: str) -> None:
    """Writes a text, which may have several lines, as one object. Nothing for an empty one."""
    if not message.strip():
      return
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    line = {"time": now, "severity": severity, "message": message, **_place()}
    with self._lock:
      self._stream.write(json.dumps(line, ensure_ascii=False) + "\n")
      self._stream.flush()

  def flush(self) -> None:
    """Writes what was written so far, but for a line that has no end yet."""
    self._stream.flush()

  def fileno(self) -> int:
    """The descriptor of the stream behind it."""
    return self._stream.fileno()

  def writable(self) -> bool:
    """Yes."""
    return True

  def end(self) -> None:
    """Writes also a line that has no end."""
    self.write("\n")


def _place() -> dict[str, object]:
  """Which process this is, and what it is at. Modules that import JAX are not imported for it."""
  console = sys.modules.get("vr_jax.train.console")
  return {
    "process": _process,
    "host": socket.gethostname(),
    "stage": console.snapshot().task if console else "",
  }


def note_process(index: int | None) -> None:
  """Says from now on that this process has this index."""
  global _process
  _process = index


def find_process(words: Sequence[str], environment: Mapping[str, str]) -> int | None:
  """The index that this process will have, if a command line or the machine says it."""
  given = _last(words, "--process_id")
  if not given and environment.get("SLURM_NTASKS", "1") != "1":
    given = environment.get("SLURM_PROCID", "")
  if not given and "MEGASCALE_SLICE_ID" not in environment:  # workers of each slice count from 0
    given = environment.get("TPU_WORKER_ID", "")
  return int(given) if given.isdecimal() and given.isascii() else None


def is_asked(words: Sequence[str]) -> bool:
  """Whether a command line wants JSON lines."""
  return _last(words, FLAG) == "json"


def _last(words: Sequence[str], flag: str) -> str:
  """The value of a flag; the last one counts, as for all flags. "": it is not given."""
  found = ""
  for word, following in zip(words, [*words[1:], ""], strict=True):
    name, equals, value = word.partition("=")
    if f"--{name.lstrip('-')}" == flag and name.startswith("-"):
      found = value if equals else following
  return found


@contextlib.contextmanager
def written(words: Sequence[str]) -> Iterator[None]:
  """Within it stdout and stderr are written as a command line wants it."""
  if not is_asked(words):
    yield
    return
  note_process(find_process(words, os.environ))
  before = sys.stdout, sys.stderr
  streams = JsonLines(sys.stdout, "INFO"), JsonLines(sys.stderr, "ERROR")
  sys.stdout, sys.stderr = streams
  try:
    yield
  finally:
    for stream in streams:
      stream.end()
    sys.stdout, sys.stderr = before
