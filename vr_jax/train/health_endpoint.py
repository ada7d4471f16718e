"""An address that says over HTTP whether a run is well: for probes and for dashboards.

GET / gives 200, or 503 if a process has failed, was preempted, fell silent or is missing. The body
is JSON: what each process is doing and, at most half a minute old, the lines of `vr-jax status`.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
from http import server
import json
from pathlib import Path
import threading
import time

import jax

from vr_jax import errors, process_state, status
from vr_jax.parallel import processes
from vr_jax.train import background

_LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
_AGE = 30.0  # seconds for which the lines of the status are good: they take long to make


@contextlib.contextmanager
def served(workdir: Path, address: str, port: int) -> Iterator[None]:
  """Within it, process 0 answers at this address. port: 0: it does not.

  Raises InputError if it can't listen there.
  """
  if not port or not processes.is_first():
    yield
    return
  where = f"--config.log.health_address={address}"
  if not address:
    raise errors.InputError(f"{where}: needs an address of this machine, such as 127.0.0.1")
  try:
    listener = _Listener(address, port, workdir)
  except OSError as error:
    raise errors.InputError(
      f"--config.log.health_port={port}: can't listen at {address}:{port}: "
      f"{error.strerror or error}; choose another, or 0 for none"
    ) from error

  def answer_until(stop: threading.Event) -> None:
    while not stop.is_set():
      listener.handle_request()

  with listener, background.beside("health endpoint", answer_until):
    yield


def is_well(states: Sequence[process_state.ProcessState], count: int, now: float) -> bool:
  """Whether all `count` processes run, or ended as they should. now: seconds since 1970."""
  return len(states) >= count and all(
    each.state == "done" or (each.state == "running" and now - each.time <= process_state.SILENT)
    for each in states
  )


class _Listener(server.ThreadingHTTPServer):
  """Answers at an address; the answers of a moment are the same for all who ask."""

  daemon_threads = True
  timeout = 0.5  # seconds without a request after which it looks whether to stop

  def __init__(self, address: str, port: int, workdir: Path) -> None:
    super().__init__((address, port), _Handler)
    self.local = address in _LOOPBACK
    self._workdir = workdir
    self._lock = threading.Lock()
    self._lines: list[str] = []
    self._made = -_AGE

  def answer(self) -> tuple[int, bytes]:
    """The code and the body."""
    now, states = time.time(), process_state.read_all(self._workdir)
    well = is_well(states, jax.process_count(), now)
    with self._lock:
      if time.monotonic() - self._made >= _AGE:
        self._lines = self._status(now)
        self._made = time.monotonic()
      lines = self._lines
    told = [dataclasses.asdict(each) for each in states]
    body = json.dumps({"well": well, "status": lines, "processes": told})
    return (200 if well else 503), body.encode()

  def _status(self, now: float) -> list[str]:
    try:
      return list(status.report(self._workdir, status.read_config(self._workdir), now))
    except Exception as error:  # a file that is being written: probes need no more than the states
      return [f"no status: {error}"]

  def handle_error(self, request: object, client_address: object) -> None:
    """Says nothing: a client that hangs up is none of the run's business."""


class _Handler(server.BaseHTTPRequestHandler):
  """Answers one request."""

  timeout = 10  # seconds that a client may take to ask

  def do_GET(self) -> None:
    """Answers GET."""
    listener = self.server
    assert isinstance(listener, _Listener)
    host = self.headers.get("Host", "").rpartition(":")[0] or self.headers.get("Host", "")
    if listener.local and host not in _LOOPBACK:  # a page of another name, in a browser
      self.send_error(403)
      return
    if self.path != "/":
      self.send_error(404)
      return
    code, body = listener.answer()
    self.send_response(code)
    self.send_header("Content-Type", "application/json")
    self.send_header("X-Content-Type-Options", "nosniff")
    self.send_header("Content-Length", str(len(body)))
    self.end_headers()
    self.wfile.write(body)

  def log_message(self, format: str, *args: object) -> None:
    """Says nothing on the terminal."""
