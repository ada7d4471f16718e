"""Allows one run at a time in a workdir.

On one machine that is a lock of the system's, which ends with the process that has it. Machines
that share a directory need not share locks, and a bucket creates no file exclusively. There the
files that a run renews protect it (`check_alone`); a start that finds them ends. Of starts at about
the same time, the one that wrote its name to <workdir>/health/lease last has the workdir: each
looks at that file again, and ends if it has another name. Where other machines may write, a start
does nothing else before they have had the time to look.
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import fcntl
import json
import os
from pathlib import Path
import secrets
import socket
import sys
import threading
import time

from vr_jax import atomic, errors, plain_json, process_state
from vr_jax.parallel import processes
from vr_jax.train import background

PERIOD = 5.0  # seconds between two looks at the lease, and between two files of a process
LONG_GONE = 3600.0  # seconds without a new file after which a process of another host has ended
# Kinds of file systems that other machines may have, too: a bucket is a FUSE file system.
_SHARED = ("fuse", "nfs", "cifs", "smb", "ceph", "lustre", "gpfs", "beegfs", "9p", "virtiofs")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lease:
  """Who has a workdir. start: a random name of this start."""

  start: str
  host: str
  pid: int


@contextlib.contextmanager
def hold(workdir: Path) -> Iterator[None]:
  """Within it no other run works in this workdir. All processes of the run call it together.

  Raises InputError if another one does, or if the workdir can't be written. A run that loses its
  lease later, as after a long sleep of its machine, ends with a line and exit code 2.
  """
  with contextlib.ExitStack() as stack:
    processes.first_for_all("lease", lambda: _acquire(workdir, stack))
    yield


def _acquire(workdir: Path, stack: contextlib.ExitStack) -> None:
  """Gets the lease, until the stack is closed."""
  own = Lease(start=secrets.token_hex(8), host=socket.gethostname(), pid=os.getpid())
  directory = workdir / process_state.DIRECTORY
  try:
    directory.mkdir(parents=True, exist_ok=True)
    locked = _lock(workdir, stack)
    check_alone(workdir)
    with atomic.file(_path(workdir)) as partial:
      partial.write_text(json.dumps(dataclasses.asdict(own)) + "\n", encoding="utf-8")
  except OSError as error:
    raise errors.InputError(
      f"--workdir={workdir}: can't be written: {error.strerror or error}"
    ) from error
  if not locked or _is_shared(directory):
    time.sleep(PERIOD + 2)  # all others look before that
    if other := _find_other(workdir, own):
      raise errors.InputError(f"--workdir={workdir}: {_describe(other)}")
  stack.enter_context(background.beside("lease", lambda stop: _exit_when_lost(workdir, own, stop)))


def _path(workdir: Path) -> Path:
  return workdir / process_state.DIRECTORY / "lease"


def _lock(workdir: Path, stack: contextlib.ExitStack) -> bool:
  """Locks the workdir on this machine; returns False where the file system has no locks."""
  file = stack.enter_context((workdir / process_state.DIRECTORY / "lock").open("a"))
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    other = _read(workdir)
    who = f" (on {other.host}, pid {other.pid})" if other else ""
    raise errors.InputError(
      f"--workdir={workdir}: another run works in it{who}; end that one, or choose another "
      "--workdir"
    ) from error
  except OSError:
    return False
  return True


def check_alone(workdir: Path) -> None:
  """Raises InputError if processes of another run renew their files in this workdir.

  It waits to see that, unless it knows that a process is gone: two periods after a kill.
  """
  seen = {
    each.process: each for each in process_state.read_all(workdir) if _is_possibly_running(each)
  }
  end = time.monotonic() + (2 * PERIOD + 1 if seen else 0)
  while seen and time.monotonic() < end:
    for each in process_state.read_all(workdir):
      before = seen.get(each.process)
      if before and each.state != "running":
        del seen[each.process]
      elif before and each.time != before.time:  # a clock may have been set back
        raise errors.InputError(
          f"--workdir={workdir}: another run works in it (process {each.process} on {each.host}, "
          f"pid {each.pid}: {each.place}); end that one, or choose another --workdir"
        )
    time.sleep(PERIOD / 10)


def _is_possibly_running(state: process_state.ProcessState) -> bool:
  """Whether the process may still be there."""
  if state.state != "running":
    return False
  if (state.host, state.namespace) != (socket.gethostname(), namespace()):
    # Its clock, or this one, may have jumped: only what is very old is gone for sure.
    return time.time() - state.time <= LONG_GONE
  if state.pid == os.getpid():
    return False
  try:
    os.kill(state.pid, 0)
  except ProcessLookupError:
    return False
  except OSError:
    pass  # it belongs to somebody else
  return True


def namespace() -> str:
  """Names what the number of this process belongs to: the machine since its start, or a container.

  "" where it is not known.
  """
  try:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return f"{boot} {os.readlink('/proc/self/ns/pid')}"
  except OSError:
    return ""


def _is_shared(directory: Path) -> bool:
  """Whether the directory's file system is of a kind that other machines may have, too."""
  try:
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
  except OSError:  # not Linux
    return False
  device = directory.stat().st_dev
  number = f"{os.major(device)}:{os.minor(device)}"
  kinds = {line.split()[2]: line.partition(" - ")[2].split()[0] for line in lines}
  return kinds.get(number, "").startswith(_SHARED)


def _exit_when_lost(workdir: Path, own: Lease, stop: threading.Event) -> None:
  """Ends this process when another start has the workdir."""
  while not stop.wait(PERIOD):
    if other := _find_other(workdir, own):
      line = f"vr-jax: --workdir={workdir}: {_describe(other)}"
      print(errors.printable(line), file=sys.stderr, flush=True)
      os._exit(2)


def _find_other(workdir: Path, own: Lease) -> Lease | None:
  """Who else has the workdir, if it is somebody else."""
  found = _read(workdir)
  return found if found is not None and found != own else None


def _read(workdir: Path) -> Lease | None:
  """The lease; None if there is none that can be read."""
  try:
    return plain_json.build(Lease, plain_json.parse(_path(workdir).read_bytes()))
  except (OSError, ValueError):
    return None


def _describe(other: Lease) -> str:
  return (
    f"another run has begun in it (on {other.host}, pid {other.pid}), so this one ends; if that "
    "one should end instead, end it and give the same command"
  )
