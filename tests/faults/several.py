"""Does to a run what a pod does to it, and measures what the table of docs/reliability.md promises.

    python -m tests.faults.several [--only=coordinator_gone,full_disk] [--out=FILE]
    python -m tests.faults.several --only=process_gone --processes=4 --recipe=revseg --stage=rl

Runs of one or two processes of the smallest MOSS-ChatV in its warm start, or of as many as
--processes says; process_gone and coordinator_gone also in other recipes and stages. `full_disk`
mounts a small file system and needs root. Each fault's result is printed as JSON, with `right`:
whether it is as promised. Exit code 1 if one is not. Kills after which a launcher starts again:
kills.py.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import json
import os
from pathlib import Path
import re
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from tests.faults import kills, runs, witness
from tests.train import nano
from vr_jax import atomic

LONG = 2000  # steps of a run that a fault ends
HANG = 30.0  # seconds
FULL = 2**20 * 64  # bytes of the file system that is to become full
_ENDLESS = {"sft.steps": LONG, "sft.checkpoint_every": 2, "log.hang_timeout": 300.0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
  """What runs: how many processes, of which recipe, in which stage (sft or rl).

  processes: 0: one, or two where the fault needs several.
  """

  processes: int = 0
  recipe: str = "moss_chatv"
  stage: str = "sft"

  @property
  def one(self) -> int:
    """Processes of a fault that needs no other."""
    return self.processes or 1

  @property
  def several(self) -> int:
    """Processes of a fault that needs another."""
    return self.processes or 2


def process_gone(root: Path, setting: Setting) -> dict[str, Any]:
  """SIGKILL of the last process, where no launcher looks: the others must end, too."""
  return _without(root, setting, setting.several - 1)


def coordinator_gone(root: Path, setting: Setting) -> dict[str, Any]:
  """SIGKILL of the first process, which holds the coordinator."""
  return _without(root, setting, 0)


def _without(root: Path, setting: Setting, killed: int) -> dict[str, Any]:
  stage, workdir = setting.stage, root / "run"
  fields = {**nano.OVERRIDES, **kills.FIELDS[setting.recipe], "sft.steps": 0}
  fields |= {f"{stage}.steps": LONG, f"{stage}.checkpoint_every": 2, "log.hang_timeout": 300.0}
  flags = [f"--config.{name}={value}" for name, value in fields.items()]
  words = [f"--config=configs/{setting.recipe}.py:tiny", f"--workdir={workdir}", *flags]
  kills.run_alone([*words, "--mode=data"], workdir, 1)
  words.append(f"--mode={stage}")
  run = runs.LocalRun.start(words, workdir, processes=setting.several)
  _wait_for_steps(run, 3, stage)
  run.signal(killed, signal.SIGKILL)
  left = [index for index in range(setting.several) if index != killed]
  seconds = _wait_for(run, left)
  ended = run.finish(0)
  codes = [ended.codes[index] for index in left]
  said = ended.said[left[0]].splitlines()
  return {
    # Any code but 0, 2 and 3, after which nobody would start it again.
    "right": seconds < 300 and not {0, 2, 3} & set(codes),
    "setting": dataclasses.asdict(setting),
    "codes": codes,
    "seconds": round(seconds, 1),
    "last_line": [line for line in said if line.strip()][-1][:300],
  }


def _wait_for(run: runs.LocalRun, processes: Sequence[int]) -> float:
  """Waits until these have ended, at most ten minutes; returns the seconds."""
  began = time.monotonic()
  with contextlib.suppress(subprocess.TimeoutExpired):
    for index in processes:
      run.processes[index].wait(max(0.0, began + 600 - time.monotonic()))
  return time.monotonic() - began


def process_hangs(root: Path, setting: Setting) -> dict[str, Any]:
  """The second process never ends reading a batch: all end in time, and name it."""
  stuck = {1: {witness.SLOW: "100000"}}
  run = _start(root, setting, stuck, **{**_ENDLESS, "log.hang_timeout": HANG})
  run.wait_until(run.is_at_work)
  ended = run.finish(600)
  lines = [line for said in ended.said for line in said.splitlines() if "nothing has happ" in line]
  stacks = [run.workdir / "health" / f"{index}.stacks" for index in range(setting.several)]
  return {
    "right": len(lines) == setting.several
    and "waited for process 1 on " in lines[0]
    and ended.codes == (1,) * setting.several
    and all(each.is_file() and "Thread" in each.read_text() for each in stacks)
    and "prepared" in stacks[1].read_text(),
    "codes": ended.codes,
    "seconds": round(ended.seconds, 1),
    "lines": lines or ended.said[0][-300:],
  }


def process_stopped(root: Path, setting: Setting) -> dict[str, Any]:
  """SIGSTOP of the second process: it is named, and JAX ends the others."""
  run = _start(root, setting, **_ENDLESS)
  _wait_for_steps(run, 3)
  run.signal(1, signal.SIGSTOP)
  left = [index for index in range(setting.several) if index != 1]
  seconds = _wait_for(run, left)
  ended = run.finish(0)
  lines = [line for line in ended.said[0].splitlines() if "has given no sign for" in line]
  codes = [ended.codes[index] for index in left]
  return {
    "right": len(lines) == 1
    and "process 1 on " in lines[0]
    and seconds < 300
    and not {0, 2, 3} & set(codes),
    "codes": codes,
    "seconds": round(seconds, 1),
    "line": lines[0] if lines else ended.said[0][-300:],
  }


def slow_host(root: Path, setting: Setting) -> dict[str, Any]:
  """The second process takes longer to read each batch: a line has to name it.

  By more than half of a step, which takes longer the more processes share the cores.
  """
  slow = {1: {witness.SLOW: str(5 * (setting.several - 1))}}
  run = _start(root, setting, slow, **{**_ENDLESS, "sft.steps": 6})
  ended = run.finish()
  found = re.findall(r"sft step (\d+): all wait for process 1 on .*", ended.said[0])
  line = re.search(r"sft step \d+: all wait for .*", ended.said[0])
  return {
    "right": bool(found) and not any(ended.codes),
    "codes": ended.codes,
    "line": line[0] if line else ended.said[0][-300:],
  }


def full_disk(root: Path, setting: Setting) -> dict[str, Any]:
  """A file fills the disk during a run; once it is deleted the same command goes on."""
  alone, place = root / "alone", root / "small"
  words = {each: _words(root, each, **{"sft.steps": 40}) for each in (alone, place / "run")}
  kills.run_alone(words[alone], alone, setting.one)
  place.mkdir()
  subprocess.run(("mount", "-t", "tmpfs", "-o", f"size={FULL}", "tmpfs", place), check=True)
  try:
    run = runs.LocalRun.start(
      words[place / "run"], place / "run", processes=setting.one, output=root / "small.output"
    )
    _wait_for_steps(run, 5)
    with contextlib.suppress(OSError), (place / "filler").open("wb") as file:
      while True:
        file.write(bytes(2**16))
        file.flush()
    ended = run.finish()
    lines = [line for said in ended.said for line in said.splitlines()]
    said = [line for line in lines if line.startswith("vr-jax: ") and "No space left" in line]
    # The others may say how they lost the one that ends.
    traced = any(
      "Traceback" in text for code, text in zip(ended.codes, ended.said, strict=True) if code == 2
    )
    (place / "filler").unlink()
    kills.run_alone(words[place / "run"], place / "run", setting.one)
    differ = _differences(alone, place / "run")
  finally:
    subprocess.run(("umount", place), check=True)
  return {
    # Several may notice it at once; the others end as when a process is gone.
    "right": 2 in ended.codes
    and not {0, 3} & set(ended.codes)
    and 1 <= len(said) <= setting.one
    and not traced
    and not differ,
    "codes": ended.codes,
    "lines": said or ended.said[0][-500:],
    "traceback": traced,
    "differences": differ,
  }


def damaged_checkpoint(root: Path, setting: Setting) -> dict[str, Any]:
  """A bit of the last checkpoint flips after a kill: the one before is used, and said."""
  alone, killed = root / "alone", root / "killed"
  words = {each: _words(root, each, **{"sft.steps": 8}) for each in (alone, killed)}
  kills.run_alone(words[alone], alone, setting.one)
  run = runs.LocalRun.start(words[killed], killed, processes=setting.one)
  run.wait_until(lambda: run.own_steps("sft") >= 7)
  run.kill(0)
  path = flip_a_bit(killed / "checkpoints" / "sft")
  again = kills.run_alone(words[killed], killed, setting.one)
  lines = [line for line in again.said[0].splitlines() if ".damaged" in line]
  differ = _differences(alone, killed)
  return {
    "right": len(lines) == 1 and path.name in lines[0] and not differ,
    "lines": lines,
    "differences": differ,
  }


def damaged_frames(root: Path, setting: Setting) -> dict[str, Any]:
  """A bit of a stored frame flips: one line names shard and record, and the run ends."""
  data = root / "damaged"
  _make_data(data)
  (shard,) = (data / "shards" / "frames").glob("*.array_record")
  content = bytearray(shard.read_bytes())
  for place in range(len(content) // 4, len(content), len(content) // 40):
    content[place] ^= 1
  shard.write_bytes(content)
  workdir = root / "frames"
  words = _words(root, workdir, **{"data.directory": data, "sft.steps": 40})
  ended = runs.LocalRun.start(words, workdir, processes=setting.one).finish()
  lines = [line for said in ended.said for line in said.splitlines() if line.startswith("vr-jax: ")]
  named = lines and all(str(shard) in line and "record" in line for line in lines)
  return {
    "right": bool(named)
    and 2 in ended.codes
    and not {0, 1, 3} & set(ended.codes)
    and len(lines) <= setting.one
    and not any("Traceback" in said for said in ended.said),
    "codes": ended.codes,
    "lines": lines or ended.said[0][-500:],
  }


def second_run(root: Path, setting: Setting) -> dict[str, Any]:
  """A second run in the same workdir is refused, and the first one doesn't notice it."""
  alone, shared = root / "alone", root / "shared"
  words = {each: _words(root, each, **{"sft.steps": 200}) for each in (alone, shared)}
  kills.run_alone(words[alone], alone, setting.one)
  first = runs.LocalRun.start(words[shared], shared, processes=setting.one)
  first.wait_until(first.is_at_work)
  second = runs.LocalRun.start(
    words[shared], shared, processes=setting.one, output=root / "second.output"
  )
  refused, ended = second.finish(), first.finish()
  differ = _differences(alone, shared)
  line = refused.said[0].strip().splitlines()[-1]
  return {
    "right": refused.codes == (2,) * setting.one
    and "another run works in it" in line
    and not any(ended.codes)
    and not differ,
    "codes": refused.codes,
    "line": line,
    "differences": differ,
  }


FAULTS: Mapping[str, Callable[[Path, Setting], dict[str, Any]]] = {
  each.__name__: each
  for each in (
    damaged_checkpoint,
    damaged_frames,
    full_disk,
    second_run,
    slow_host,
    process_hangs,
    process_stopped,
    coordinator_gone,
    process_gone,
  )
}


def flip_a_bit(directory: Path) -> Path:
  """Flips a bit in the largest file of the last checkpoint under a directory; returns the file."""
  steps = [path for path in directory.iterdir() if path.name.isdigit()]
  last = max(steps, key=lambda path: int(path.name))
  files = [path for path in (last / "state").rglob("*") if path.is_file()]
  path = max(files, key=lambda path: path.stat().st_size)
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
  return path


def _make_data(directory: Path) -> Path:
  if not directory.exists():
    nano.make_data(directory)
  return directory


def _words(root: Path, workdir: Path, **fields: Any) -> list[str]:
  fields = {
    **nano.OVERRIDES,
    "sft.steps": 4,
    "data.directory": _make_data(root / "data"),
    "sft.checkpoint_every": 2,
    **fields,
  }
  flags = [f"--config.{name}={value}" for name, value in fields.items()]
  return [f"--config={nano.RECIPE}:tiny", f"--workdir={workdir}", "--mode=sft", *flags]


def _start(
  root: Path,
  setting: Setting,
  environments: Mapping[int, Mapping[str, str]] | None = None,
  **fields: Any,
) -> runs.LocalRun:
  """Starts a run of several processes in a workdir of its own."""
  workdir = Path(tempfile.mkdtemp(dir=root)) / "run"
  words = _words(root, workdir, **fields)
  return runs.LocalRun.start(words, workdir, processes=setting.several, environments=environments)


def _wait_for_steps(run: runs.LocalRun, steps: int, stage: str = "sft") -> None:
  if not run.wait_until(lambda: run.own_steps(stage) >= steps):
    raise RuntimeError("the run ended too early:\n" + "\n".join(run.finish(0).said)[-3000:])


def _differences(one: Path, other: Path) -> list[str]:
  """Differences of the warm starts of two runs."""
  return kills.differences(one, other, stages=("sft",), patterns=())


def main() -> int:
  """Runs the command; returns the exit code."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--only", default=",".join(FAULTS))
  parser.add_argument("--out", type=Path)
  parser.add_argument("--processes", type=int, default=0)
  parser.add_argument("--recipe", choices=kills.FIELDS, default="moss_chatv")
  parser.add_argument("--stage", choices=kills.STAGES, default="sft")
  options = parser.parse_args()
  os.environ.update(runs.environment(1))
  found = {}
  setting = Setting(processes=options.processes, recipe=options.recipe, stage=options.stage)
  for name in options.only.split(","):
    with tempfile.TemporaryDirectory() as root:
      found[name] = FAULTS[name](Path(root), setting)
    print(f"{name}: {json.dumps(found[name], indent=2)}", flush=True)
    if options.out:
      atomic.write_bytes(options.out, [json.dumps(found, indent=2).encode() + b"\n"])
  return 0 if all(each["right"] for each in found.values()) else 1


if __name__ == "__main__":
  sys.exit(main())
