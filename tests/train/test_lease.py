"""One run at a time has a workdir, whoever starts when, and with or without locks of the system."""

import dataclasses
import errno
import json
import os
from pathlib import Path
import socket
import subprocess
import sys
import threading
import time

import pytest

from tests.train import nano
from vr_jax import errors, process_state
from vr_jax.train import lease

PERIOD = 0.3
NO_LOCKS = f"""
def refuse(*_):
  raise OSError({errno.ENOLCK}, "no locks")
lease.fcntl.flock = refuse
"""
# As a mount on two hosts: each has locks of its own.
OWN_LOCKS = "lease.fcntl.flock = lambda *_: None"
CHILD = f"""
import pathlib, sys
from vr_jax import errors
from vr_jax.train import lease
lease.PERIOD = {PERIOD}
exec(sys.argv[3])
print("ready", flush=True)
while not pathlib.Path(sys.argv[2]).exists():
  pass
try:
  with lease.hold(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
except errors.InputError as error:
  print(error, file=sys.stderr)
  sys.exit(2)
"""
HERE = process_state.ProcessState(
  host=socket.gethostname(),
  process=0,
  pid=os.getppid(),
  time=0.0,
  state="running",
  task="rl",
  done=12,
  total=60,
  activity="updating the policy",
  seconds=4.0,
  namespace=lease.namespace(),
)


def start(workdir: Path, signal: Path, habits: str = "") -> subprocess.Popen:
  """A process that takes the lease once the file `signal` is there, and holds it."""
  process = subprocess.Popen(
    [sys.executable, "-c", CHILD, str(workdir), str(signal), habits],
    cwd=nano.ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout is not None
  assert process.stdout.readline() == "ready\n"
  return process


def race(workdir: Path, signal: Path, habits: str, starts: int = 2) -> list[tuple[bool, int, str]]:
  """Lets processes start at once: whether each had the lease, its exit code, and what it said."""
  processes = [start(workdir, signal, habits) for _ in range(starts)]
  signal.touch()
  time.sleep(0.5)  # nobody may see the end of standard input before all have begun
  threads, found = [], {}
  for number, each in enumerate(processes):

    def collect(number: int = number, each: subprocess.Popen = each) -> None:
      assert each.stdout is not None and each.stderr is not None and each.stdin is not None
      held = each.stdout.readline() == "held\n"
      if held:
        time.sleep(3 * PERIOD)
      each.stdin.close()
      said = each.stderr.read()
      found[number] = held, each.wait(60), said

    threads.append(threading.Thread(target=collect))
    threads[-1].start()
  for thread in threads:
    thread.join(60)
  return [found[number] for number in range(starts)]


@pytest.mark.parametrize("habits", ["", NO_LOCKS])
def test_of_two_that_start_at_once_one_has_the_workdir(tmp_path, habits):
  ends = race(tmp_path / "run", tmp_path / "go", habits)
  assert sorted((held, code) for held, code, _ in ends) == [(False, 2), (True, 0)], ends
  (line,) = next(said for held, _, said in ends if not held).splitlines()
  assert f"--workdir={tmp_path / 'run'}: another run" in line
  assert not next(said for held, _, said in ends if held)


def test_a_run_that_another_one_replaced_ends_with_a_line(tmp_path):
  (tmp_path / "go").touch()
  process = start(tmp_path, tmp_path / "go")
  assert process.stdout is not None and process.stdout.readline() == "held\n"
  other = lease.Lease(start="other", host="host-7", pid=77)
  (tmp_path / "health" / "lease").write_text(json.dumps(dataclasses.asdict(other)))
  assert process.wait(30) == 2
  assert process.stderr is not None
  (line,) = process.stderr.read().splitlines()
  assert line.startswith(f"vr-jax: --workdir={tmp_path}: another run has begun in it (on host-7")


def test_a_kill_ends_the_lease_at_once(tmp_path):
  (tmp_path / "go").touch()
  process = start(tmp_path, tmp_path / "go")
  assert process.stdout is not None and process.stdout.readline() == "held\n"
  began = time.monotonic()
  refused = pytest.raises(errors.InputError, match=rf"another run .*pid {process.pid}\)")
  with refused, lease.hold(tmp_path):
    pass
  process.kill()
  process.wait()
  refused = pytest.raises(errors.InputError, match="another run works in it")
  with lease.hold(tmp_path), refused, lease.hold(tmp_path):
    pass
  with lease.hold(tmp_path):  # it ended
    pass
  assert time.monotonic() - began < 5


def test_a_workdir_that_can_not_be_written_is_named(tmp_path):
  (tmp_path / "run").write_text("")
  refused = pytest.raises(errors.InputError, match=r"--workdir=.*run: can't be written: ")
  with refused, lease.hold(tmp_path / "run"):
    pass


def test_files_of_processes_that_are_renewed_belong_to_another_run(tmp_path, monkeypatch):
  monkeypatch.setattr(lease, "PERIOD", 0.2)

  def write(state: process_state.ProcessState) -> None:
    file = process_state.path(tmp_path, 0)
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(dataclasses.asdict(state)))

  here = dataclasses.replace(HERE, time=time.time())
  write(here)
  began = time.monotonic()
  lease.check_alone(tmp_path)  # it is not renewed
  assert 0.4 < time.monotonic() - began < 5
  # Its clock is right, was set back or forth, or is another host's.
  for change in ({}, {"time": 1e9}, {"time": 4e9}, {"host": "other", "time": time.time() - 600}):
    first = dataclasses.replace(here, **change)
    write(first)
    renewed = dataclasses.replace(first, time=time.time() + 1)
    threading.Timer(0.1, write, (renewed,)).start()
    with pytest.raises(errors.InputError, match=r"another run works in it \(process 0 on .*rl 12"):
      lease.check_alone(tmp_path)
  gone = subprocess.Popen([sys.executable, "-c", ""])
  gone.wait()
  for change in ({"pid": gone.pid}, {"state": "done"}, {"host": "other", "time": 1e9}):
    write(dataclasses.replace(here, **change))
    began = time.monotonic()
    lease.check_alone(tmp_path)
    assert time.monotonic() - began < 0.3


@pytest.mark.parametrize(
  ("age", "waits"), [(lease.LONG_GONE - 60, True), (lease.LONG_GONE + 60, False)]
)
def test_the_lease_of_another_host_ends_an_hour_after_its_last_sign(
  tmp_path, monkeypatch, age, waits
):
  """A younger sign may be that of a run whose clock is late: it is seen whether another follows."""
  monkeypatch.setattr(lease, "PERIOD", 0.2)
  gone = dataclasses.replace(HERE, host="host-7", time=time.time() - age)
  other = lease.Lease(start="other", host="host-7", pid=gone.pid)
  (tmp_path / "health").mkdir()
  process_state.path(tmp_path, 0).write_text(json.dumps(dataclasses.asdict(gone)))
  (tmp_path / "health" / "lease").write_text(json.dumps(dataclasses.asdict(other)))
  began = time.monotonic()
  with lease.hold(tmp_path):
    seconds = time.monotonic() - began
  assert (seconds > 1) == waits and seconds < 5
