"""What each process of a run is doing, in <workdir>/health/<process>.json; without JAX.

A process writes its file every few seconds (train/health.py); `vr-jax status` (status.py) and the
watch over processes that hang read them.
"""

from collections.abc import Sequence
import dataclasses
from pathlib import Path

from vr_jax import plain_json

DIRECTORY = "health"
SILENT = 60.0  # seconds without a new file after which a process counts as silent


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessState:
  """What a process is doing.

  time: when this was written, seconds since 1970.
  state: running, done, failed or preempted.
  task: what has a bar: a stage, a download; "" if there is none. done, total: its count.
  activity: what it waits for, and for how many seconds so far.
  error: the line that it ended with; while it runs, that with which the last start failed.
  programs: how many compiled programs were in its cache, and how many were not.
  namespace: what the pid belongs to: a machine, or a container.
  waiting: whether it waits for the other processes, to exchange something.
  """

  host: str
  process: int
  pid: int
  time: float
  state: str
  task: str
  done: int
  total: int | None
  activity: str
  seconds: float
  error: str = ""
  namespace: str = ""
  programs: str = ""
  waiting: bool = False

  @property
  def place(self) -> str:
    """Task and activity, as a person says them."""
    count = f" {self.done}" + (f" of {self.total}" if self.total else "") if self.task else ""
    waits = f"{self.activity} for {self.seconds:.0f} s" if self.activity else ""
    return ", ".join(filter(None, (f"{self.task}{count}", waits))) or "at work"


def path(workdir: Path, process: int) -> Path:
  """The file of a process."""
  return workdir / DIRECTORY / f"{process}.json"


def read_all(workdir: Path) -> list[ProcessState]:
  """The states of all processes that have a readable file, in order."""
  found = []
  for file in (workdir / DIRECTORY).glob("*.json"):
    try:
      found.append(plain_json.build(ProcessState, plain_json.parse(file.read_bytes())))
    except (OSError, ValueError):
      continue  # it is being written, or of another version
  return sorted(found, key=lambda each: each.process)


def find_late(states: Sequence[ProcessState], now: float) -> list[ProcessState]:
  """The processes that the others wait for: silent ones, those behind, those that don't wait.

  None if none of them differs from the others so: then they wait for each other.
  """
  running = [each for each in states if each.state == "running"]
  silent = [each for each in running if now - each.time > SILENT]
  if silent:
    return silent
  ended = [each for each in states if each.state in ("failed", "preempted")]
  if ended:
    return ended
  furthest = max((each.done for each in running), default=0)
  behind = [each for each in running if each.done < furthest]
  late = behind or running
  busy = [each for each in late if not each.waiting]
  if behind or (busy and len(busy) < len(running)):
    # Those that wait for each other on their devices don't exchange anything: they seem to be busy.
    return _unlike(busy) or busy or behind
  return _unlike(running)


def _unlike(states: Sequence[ProcessState]) -> list[ProcessState]:
  """The few that do something else than most do."""
  activities = [each.activity for each in states]
  common = max(set(activities), key=activities.count, default="")
  alone = [each for each in states if each.activity != common]
  return alone if 2 * len(alone) < len(states) else []
