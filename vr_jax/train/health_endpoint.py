"""An address that says over HTTP whether a run is well: for probes and for dashboards.

GET / gives 200, or 503 if a process has failed, was preempted or fell silent. The body is JSON: the
lines of `vr-jax status`, and what each process is doing.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
from http import server
import json
from pathlib import Path
import threading
import time

from vr_jax import errors, process_state, status
from vr_jax.parallel import processes


@contextlib.contextmanager
def served(workdir: Path, address: str, port: int) -> Iterator[None]:
  """Within it, process 0 answers at this address. port: 0: it does not.

  Raises InputError if it can't listen there.
  """
  if not port or not processes.is_first():
    yield
    return

  class Handler(_Handler):
    run = workdir

  try:
    listener = server.ThreadingHTTPServer((address, port), Handler)
  except OSError as error:
    raise errors.InputError(
      f"--config.log.health_port={port}: can't listen at {address}:{port}: "
      f"{error.strerror or error}; choose another, or 0 for none"
    ) from error
  thread = threading.Thread(target=listener.serve_forever, name="health endpoint", daemon=True)
  thread.start()
  try:
    yield
  finally:
    listener.shutdown()
    listener.server_close()
    thread.join()


def is_well(states: list[process_state.ProcessState], now: float) -> bool:
  """Whether all processes run, or ended as they should. now: seconds since 1970."""
  return bool(states) and all(
    each.state == "done" or (each.state == "running" and now - each.time <= process_state.SILENT)
    for each in states
  )


class _Handler(server.BaseHTTPRequestHandler):
  """Answers one request. run: the workdir."""

  run = Path()
  timeout = 10  # seconds that a client may take to ask

  def do_GET(self) -> None:
    """Answers GET."""
    if self.path != "/":
      self.send_error(404)
      return
    now, states = time.time(), process_state.read_all(self.run)
    try:
      lines = list(status.report(self.run, status.read_config(self.run), now))
    except errors.InputError:  # config.json is being written
      lines = []
    well = is_well(states, now)
    body = json.dumps(
      {"well": well, "status": lines, "processes": [dataclasses.asdict(each) for each in states]}
    ).encode()
    self.send_response(200 if well else 503)
    self.send_header("Content-Type", "application/json")
    self.send_header("X-Content-Type-Options", "nosniff")
    self.send_header("Content-Length", str(len(body)))
    self.end_headers()
    self.wfile.write(body)

  def log_message(self, format: str, *args: object) -> None:
    """Says nothing on the terminal."""
