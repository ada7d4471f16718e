"""Lines as JSON objects for whoever collects them, as Cloud Logging does: `--log_format=json`.

    {"time": "2026-11-30T20:00:00.000+00:00", "severity": "INFO", "message": "rl 20/200  …",
     "process": 1, "host": "host-b", "stage": "rl"}

Each line that Python prints on stdout or stderr becomes one, and so do lines that are written at
once, as a traceback. What libraries written in other languages print themselves stays as it is.
"""

from collections.abc import Iterator, Sequence
import contextlib
import datetime
import io
import json
import socket
import sys
import threading
from typing import TextIO

FLAG = "--log_format"


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
  processes, console = (
    sys.modules.get(f"vr_jax.{name}") for name in ("parallel.processes", "train.console")
  )
  return {
    "process": processes.joined_index() if processes else 0,
    "host": socket.gethostname(),
    "stage": console.snapshot().task if console else "",
  }


def is_asked(words: Sequence[str]) -> bool:
  """Whether a command line wants JSON lines. As for all flags, the last value counts."""
  asked = ""
  for word, following in zip(words, [*words[1:], ""], strict=True):
    name, equals, value = word.partition("=")
    if f"--{name.lstrip('-')}" == FLAG and name.startswith("-"):
      asked = value if equals else following
  return asked == "json"


@contextlib.contextmanager
def written(words: Sequence[str]) -> Iterator[None]:
  """Within it stdout and stderr are written as a command line wants it."""
  if not is_asked(words):
    yield
    return
  before = sys.stdout, sys.stderr
  streams = JsonLines(sys.stdout, "INFO"), JsonLines(sys.stderr, "ERROR")
  sys.stdout, sys.stderr = streams
  try:
    yield
  finally:
    for stream in streams:
      stream.end()
    sys.stdout, sys.stderr = before
