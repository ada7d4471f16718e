"""A harness for faults: starts a run of local processes, waits for a moment, and ends or stops one.

run = LocalRun.start(arguments, workdir, processes=2)
run.wait_until(lambda: run.steps("rl") >= 3)
run.signal(1, signal.SIGKILL)
ended = run.finish()
"""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import functools
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

from launch import local
from vr_jax import process_state

ROOT = Path(__file__).resolve().parents[2]
# As tests/conftest.py has it: a run of a few steps compiles far longer than it computes.
COMPILE_FAST = (
  "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false "
  "--xla_cpu_parallel_codegen_split_count=1"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ended:
  """How the processes of a run ended: exit codes (negative: a signal), and what each printed."""

  codes: tuple[int, ...]
  said: tuple[str, ...]
  seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalRun:
  """The processes of a run.

  outputs: what each prints.
  started: time.monotonic(). time: seconds since 1970.
  """

  workdir: Path
  processes: tuple[subprocess.Popen, ...]
  outputs: tuple[Path, ...]
  started: float
  time: float

  @classmethod
  def start(
    cls,
    arguments: Sequence[str],
    workdir: Path,
    *,
    processes: int = 1,
    devices: int = 1,
    module: str = "tests.faults.witness",
    environments: Mapping[int, Mapping[str, str]] | None = None,
    output: Path | None = None,
  ) -> "LocalRun":
    """Starts `python -m module`, once for each process; they connect over localhost.

    environments: variables that only some processes have, by index.
    output: directory of what they print. None: one beside the workdir.
    """
    place = output or workdir.with_name(f"{workdir.name}.output")
    address = f"localhost:{local.free_port()}"
    place.mkdir(parents=True, exist_ok=True)
    started, outputs = [], []
    for index in range(processes):
      flags = [f"--coordinator_address={address}", f"--num_processes={processes}"]
      joined = [*flags, f"--process_id={index}"] if processes > 1 else []
      outputs.append(place / f"{index}.txt")
      with outputs[-1].open("wb") as file:
        started.append(
          subprocess.Popen(
            [sys.executable, "-m", module, *arguments, *joined],
            cwd=ROOT,
            env=environment(devices) | dict((environments or {}).get(index, {})),
            stdout=file,
            stderr=subprocess.STDOUT,
            # One in the background of a script ignores SIGINT, and its children would inherit that.
            preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
          )
        )
    return cls(
      workdir=workdir,
      processes=tuple(started),
      outputs=tuple(outputs),
      started=time.monotonic(),
      time=time.time(),
    )

  def wait_until(self, moment: Callable[[], bool], seconds: float = 600.0) -> bool:
    """Waits until the moment has come; False if a process has ended before, or time is up."""
    deadline = time.monotonic() + seconds
    while not moment():
      if not self.is_running() or time.monotonic() > deadline:
        return moment()
      time.sleep(0.005)
    return True

  def is_running(self) -> bool:
    """Whether all processes are still there."""
    return all(process.poll() is None for process in self.processes)

  def is_at_work(self) -> bool:
    """Whether all processes of this start, not of an earlier one, say that they run."""
    pids = {process.pid for process in self.processes}
    states = process_state.read_all(self.workdir)
    return pids <= {each.pid for each in states if each.state == "running"}

  def lines(self, stage: str) -> int:
    """How many lines of metrics a stage has."""
    return count_lines(self.workdir, stage)

  def own_steps(self, stage: str) -> int:
    """How many steps of a stage process 0 of this start has noted (witness.py)."""
    pid, lines = self.processes[0].pid, seen(self.workdir).get(0, [])
    return sum(line["pid"] == pid and line["stage"] == stage for line in lines)

  def has_done(self, stage: str, steps: int) -> bool:
    """Whether this start has noted so many steps of a stage."""
    return self.own_steps(stage) >= steps

  def is_writing_checkpoint(self, stage: str) -> bool:
    """Whether a checkpoint of a stage is half written, by this start."""
    return self.half_written(stage) > 0

  def half_written(self, stage: str) -> int:
    """The step of the checkpoint of a stage that is half written, by this start; 0 if none is."""
    for path in (self.workdir / "checkpoints" / stage).glob("*.orbax-checkpoint-tmp*"):
      with contextlib.suppress(FileNotFoundError):  # it has just become complete
        if path.stat().st_ctime > self.time:
          return int(path.name.partition(".")[0])
    return 0

  def signal(self, index: int, number: signal.Signals) -> None:
    """Sends a signal to one process."""
    self.processes[index].send_signal(number)

  def kill(self, index: int) -> None:
    """Kills one process at once, then the others, as a launcher does when one has ended."""
    for process in (self.processes[index], *self.processes):
      process.kill()
    for process in self.processes:
      process.wait()

  def finish(self, seconds: float = 1800.0) -> Ended:
    """Waits until all have ended; what still runs after so long is killed."""
    deadline = time.monotonic() + seconds
    for process in self.processes:
      try:
        process.wait(max(0.0, deadline - time.monotonic()))
      except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    return Ended(
      codes=tuple(process.returncode for process in self.processes),
      said=tuple(path.read_text(errors="replace") for path in self.outputs),
      seconds=time.monotonic() - self.started,
    )


def count_lines(workdir: Path, stage: str) -> int:
  """How many lines of metrics a stage has."""
  path = workdir / "metrics.jsonl"
  return path.read_text().count(f'"stage": "{stage}"') if path.exists() else 0


def seen(workdir: Path) -> dict[int, list[dict]]:
  """What each process has noted of its steps (witness.py), in the order of time."""
  return {
    int(path.stem): [json.loads(line) for line in _whole_lines(path)]
    for path in sorted((workdir / "seen").glob("*.jsonl"))
  }


def _whole_lines(path: Path) -> list[str]:
  """The lines of a file that is being written, or whose writer was killed."""
  return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def environment(devices: int) -> dict[str, str]:
  """The environment of a process with so many CPU devices."""
  return {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": f"{COMPILE_FAST} --xla_force_host_platform_device_count={devices}",
    "JAX_COMPILATION_CACHE_DIR": os.environ.get(
      "JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache")
    ),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.02",
  }
