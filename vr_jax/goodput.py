"""Which share of a run's time went into steps that counted, and what took the rest; without JAX.

Process 0 appends a line to <workdir>/health/times.jsonl at each of these events:
  start  a process has started; `alive` is when the one before was last seen alive
  other  a stage without steps, such as ingestion, has ended
  stage  the loop of a stage begins at step `first`
  step   a step has ended; `seconds` is its time, and `lost` what of it was no training
  end    the process ends; `state` says how
"""

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import dataclasses
import json
from pathlib import Path
import time
from typing import Any, BinaryIO

from vr_jax import durations, plain_json

_FILE = Path("health") / "times.jsonl"
# Parts of a step that train nothing, by their metrics, and what they are called here.
_LOST = {
  "perf/compilation_time": "compiling",
  "perf/time/data": "waiting for data",
  "perf/time/log": "logs and checkpoints",
  "perf/time/evaluation": "evaluation",
  "perf/time/validation": "evaluation",
}
_DOWN, _AGAIN, _STARTING = "no process running", "steps done again", "starting"
_REST = "other"
_FIELDS: Mapping[str, Mapping[str, Any]] = {  # by event
  "start": {"alive": float},
  "other": {},
  "stage": {"stage": str, "first": int},
  "step": {"stage": str, "step": int, "seconds": float, "lost": dict[str, float]},
  "end": {"state": str},
}


def note(workdir: Path, event: str, **about: Any) -> None:
  """Appends an event that happens now, or at `time`. A disk that is full loses it."""
  with contextlib.suppress(OSError), open_file(workdir) as file:
    _write(file, event, about)


def open_file(workdir: Path) -> BinaryIO:
  """Opens the file for `note_stage` and `note_step`. Raises OSError."""
  (workdir / _FILE).parent.mkdir(parents=True, exist_ok=True)
  return (workdir / _FILE).open("ab", buffering=0)


def _write(file: BinaryIO, event: str, about: Mapping[str, Any]) -> None:
  # An earlier line that a kill has cut must not take this one with it.
  file.write(f"\n{json.dumps({'event': event, 'time': time.time(), **about})}\n".encode())


def note_stage(file: BinaryIO, stage: str, first: int) -> None:
  """Appends the begin of a stage's loop at step `first`. A disk that is full loses it.

  file: of `open_file`.
  """
  with contextlib.suppress(OSError):
    _write(file, "stage", {"stage": stage, "first": first})


def note_step(file: BinaryIO, stage: str, step: int, values: Mapping[str, float]) -> None:
  """Appends the end of a step. A disk that is full loses it.

  file: of `open_file`, kept open between steps: closed, a mounted bucket gets all of it again.
  values: metrics of the step.
  """
  lost: dict[str, float] = {}
  for name, cause in _LOST.items():
    lost[cause] = lost.get(cause, 0.0) + float(values.get(name, 0.0))
  seconds = float(values.get("perf/time/step", 0.0))
  about = {"stage": stage, "step": step, "seconds": seconds, "lost": lost}
  with contextlib.suppress(OSError):
    _write(file, "step", about)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Account:
  """Where the time of a run went, in seconds.

  wall: from its first start on, without the time after a start that ended as it should.
  counted: of steps whose result the run still has, without what of them was no training.
  lost: the rest, by cause.
  """

  wall: float
  counted: float
  lost: Mapping[str, float]

  def __str__(self) -> str:
    """A line: "goodput 83 % of 2 h; compiling 9 %, starting 5 %"; causes of 0.5 % and more."""
    causes = sorted(self.lost.items(), key=lambda item: -item[1])
    parts = [f"{cause} {100 * x / self.wall:.0f} %" for cause, x in causes if x >= self.wall / 200]
    share = f"goodput {100 * self.counted / self.wall:.0f} % of {durations.as_text(self.wall)}"
    return "; ".join([share, ", ".join(parts)] if parts else [share])


def read(workdir: Path) -> Account | None:
  """The account of a run so far; None if no step has ended."""
  try:
    lines = (workdir / _FILE).read_bytes().splitlines()
  except OSError:
    return None
  return account(_parsed(lines))


def account(events: Iterable[Mapping[str, Any]]) -> Account | None:
  """The account of these events, in the order in which they were written."""
  wall, lost = 0.0, dict.fromkeys((_DOWN, _AGAIN, _STARTING, *_LOST.values()), 0.0)
  steps: dict[tuple[str, int], Mapping[str, Any]] = {}
  last, ended = None, ""
  for event in events:
    now, kind = event["time"], event["event"]
    if kind == "start":
      if last is not None and ended != "done":
        alive = min(max(event["alive"], last), now)
        lost[_AGAIN] += alive - last  # in the step that a kill ended
        lost[_DOWN] += now - alive
        wall += now - last
      last, ended = now, ""
      continue
    if last is None:
      continue  # lines of an older start are missing
    wall += now - last
    if kind == "stage":
      lost[_STARTING] += now - last
      for key in [key for key in steps if key[0] == event["stage"] and key[1] >= event["first"]]:
        lost[_AGAIN] += steps.pop(key)["seconds"]
    elif kind == "step":
      steps[event["stage"], event["step"]] = event
    elif kind == "end":
      ended = event["state"]
    last = now
  if not steps or not wall:
    return None
  counted = 0.0
  for step in steps.values():
    counted += max(0.0, step["seconds"] - sum(step["lost"].values()))
    for cause, seconds in step["lost"].items():
      lost[cause] = lost.get(cause, 0.0) + seconds
  rest = max(0.0, wall - counted - sum(lost.values()))
  return Account(wall=wall, counted=counted, lost={**lost, _REST: rest})


def _parsed(lines: Iterable[bytes]) -> Iterator[Mapping[str, Any]]:
  """The lines that are whole: a kill may cut one."""
  for line in lines:
    try:
      event = plain_json.parse(line)
    except ValueError:
      continue
    if isinstance(event, dict) and _is_event(event):
      yield event


def _is_event(event: Mapping[str, Any]) -> bool:
  """Whether a line has the fields of its event."""
  kind = event.get("event")
  fields = _FIELDS.get(kind) if isinstance(kind, str) else None
  return fields is not None and all(
    plain_json.has_type(event.get(name), hint) for name, hint in {"time": float, **fields}.items()
  )
