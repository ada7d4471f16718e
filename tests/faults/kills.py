"""Kills a run again and again at random, and compares it with one that was left alone.

    python -m tests.faults.kills --recipe=moss_chatv --kills=50 --seed=0 --processes=2
    python -m tests.faults.kills --recipe=video_mtr --processes=4 --steps=4 \\
      --moments=data,sft:checkpoint,rl:step,eval,export:write

A kill (SIGKILL) hits one process at random: some seconds after the start, some steps later, or
while a checkpoint is being written, in every stage; with --moments at these, in this order. The
others are then ended, as a launcher does, and the same command starts again. At the end metrics,
rollouts, parameters, optimizer states, evaluations and the export, if one was wanted, have to be
those of the undisturbed run, bit for bit; in each epoch every example is learned from once; and a
kill costs at most one save interval. A checkpoint is written while the next steps run, and one that
a kill cuts short does not count: such a kill also costs the steps that ended during the write,
which are at most one more interval, as the next save waits for the write. The results are printed
as JSON, and written to --out; exit code 1 if one differs.
"""

import argparse
import collections
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import itertools
import json
import math
from pathlib import Path
import random
import statistics
import sys
import tempfile
import time
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from tests.faults import runs
from tests.train import nano
from vr_jax import atomic, process_state
from vr_jax.data import examples
from vr_jax.train import metrics

STAGES = ("sft", "rl")
KINDS = ("start", "step", "checkpoint")
EXPORT, WRITE = "export", "write"  # a phase, and the kind of moment in which it writes
MOMENTS = (
  *("data:start", "eval:start", f"{EXPORT}:start", f"{EXPORT}:{WRITE}"),
  *(f"{stage}:{kind}" for stage in STAGES for kind in KINDS),
)
INTERVAL = 2  # steps between two checkpoints
LEFT_ALONE = {"eval.blind": False, "eval.shuffled_frames": False}
PATTERNS = ("rollouts/*.jsonl", "eval/*.jsonl")
EXPORTED = (f"{EXPORT}/*.safetensors", f"{EXPORT}/*config.json")
DIFFERS = ("perf/", "vision/")  # prefixes of metrics that differ from run to run
_TURNS = {
  **nano.SHORT_TURNS,
  "data__simulate__videos": 12,
  "data__simulate__world__fps": 1,
  "turns__episode_buckets": (128,),
  "turns__decode_chunk": 16,
  "critic__warmup_steps": 0,
  "sft__max_reply_tokens": 96,
}
_GROUNDING = {
  **nano.SHORT_GROUNDING,
  "data__simulate__videos": 8,
}
FIELDS: Mapping[str, Mapping[str, Any]] = {
  "grpo": {},
  "moss_chatv": {},
  "videop2r": {
    "data.simulate.world.behaviours": ("cycle", "count", "charge"),
    "data.simulate.world.families": ("choice", "read", "measure"),
    "sft.max_reply_tokens": 112,
  },
  "video_mtr": {name.replace("__", "."): value for name, value in _TURNS.items()},
  "revseg": {name.replace("__", "."): value for name, value in _GROUNDING.items()},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kill:
  """What a kill was to hit, and what it hit.

  phase: data, sft, rl, eval or export.
  kind: of moment: start, step, checkpoint or write. seconds: after it.
  steps: of this start, before the kill.
  process: index.
  pid: of process 0. place: what it was doing. written: the step of the checkpoint that it left half
    written; 0 if there is none.
  """

  phase: str
  kind: str
  seconds: float
  steps: int
  process: int
  pid: int = 0
  place: str = ""
  written: int = 0


def arguments(recipe: str, workdir: Path, steps: int, mode: str = "all") -> list[str]:
  """The command line of a run with so many steps in each of its two stages."""
  fields = {**nano.OVERRIDES, **LEFT_ALONE, **FIELDS[recipe]}  # of each one flag: tuples would add
  fields |= {f"{stage}.steps": steps for stage in STAGES}
  fields |= {f"{stage}.checkpoint_every": INTERVAL for stage in STAGES}
  flags = [f"--config.{name}={value}" for name, value in fields.items()]
  return [f"--config=configs/{recipe}.py:tiny", f"--workdir={workdir}", f"--mode={mode}", *flags]


def run_alone(words: Sequence[str], workdir: Path, processes: int) -> runs.Ended:
  """Runs to the end. Raises RuntimeError if it fails."""
  ended = runs.LocalRun.start(words, workdir, processes=processes).finish()
  if any(ended.codes):
    raise RuntimeError(f"exit codes {ended.codes}:\n" + "\n".join(ended.said)[-4000:])
  return ended


def draw(
  rng: random.Random, phase: str, processes: int, start: float, kind: str | None = None
) -> Kill:
  """Draws a kill.

  start: seconds that a start takes until its first step.
  kind: of moment; None: any.
  """
  if kind is None:
    kind = rng.choices(KINDS, (0.2, 0.45, 0.35))[0] if phase in STAGES else "start"
  shares = {"eval": 0.15, "data": 0.6, EXPORT: 0.6}
  low, high = 0.0, shares.get(phase, 1.0) * start
  seconds = {"start": rng.uniform(low, high), "step": rng.uniform(0, 0.3)}
  return Kill(
    phase=phase,
    kind=kind,
    seconds=seconds.get(kind, rng.uniform(0, 0.05)),
    steps=rng.randint(0, 2) if kind == "step" else 0,
    process=rng.randrange(processes),
  )


def phase_of(share: float) -> str:
  """Which part of the run a kill is to hit, so that all parts are hit. share: of all kills."""
  return "data" if share < 0.06 else "sft" if share < 0.48 else "rl" if share < 0.9 else "eval"


def kill(
  words: Sequence[str], workdir: Path, steps: int, processes: int, wanted: Kill
) -> Kill | None:
  """Starts the run and kills it at this moment; None if it was complete before.

  Raises RuntimeError if it failed by itself.
  """
  run, place = runs.LocalRun.start(words, workdir, processes=processes), ""
  last = workdir / "checkpoints" / "rl" / str(steps)
  try:
    if wanted.phase == "eval":
      run.wait_until(lambda: any(last.glob("checksums-*.json")))
    end_of_phase = workdir / "checkpoints" / wanted.phase / str(steps)
    if wanted.kind == "step":
      moment = functools.partial(run.has_done, wanted.phase, wanted.steps + 1)
      run.wait_until(lambda: moment() or end_of_phase.exists())
    elif wanted.kind == "checkpoint":
      moment = functools.partial(run.is_writing_checkpoint, wanted.phase)
      run.wait_until(lambda: moment() or end_of_phase.exists())
    elif wanted.kind == WRITE:
      run.wait_until(lambda: any(workdir.glob(f"{EXPORT}*")))
    end = time.monotonic() + wanted.seconds
    run.wait_until(lambda: time.monotonic() > end)
    states = process_state.read_all(workdir)
    place = states[0].place if states and run.is_at_work() else "starting"
    if not run.is_running():
      ended = run.finish()
      if any(ended.codes):
        raise RuntimeError(f"exit codes {ended.codes}:\n" + "\n".join(ended.said)[-4000:])
      return None
  finally:
    run.kill(wanted.process)
  written = max(run.half_written(stage) for stage in STAGES)
  return dataclasses.replace(wanted, place=place, written=written, pid=run.processes[0].pid)


def most_redone(workdir: Path, each: Kill) -> int:
  """How many steps a kill may cost: an interval, and the steps since the cut write has begun."""
  own = [line["step"] for line in runs.seen(workdir).get(0, []) if line["pid"] == each.pid]
  return INTERVAL + (own[-1] - each.written if each.written else 0)


def redone(workdir: Path) -> dict[int, int]:
  """How many steps were done again after the end of a start, by the pid of its process 0."""
  lines = runs.seen(workdir)[0]
  return {
    before["pid"]: before["step"] - after["step"] + 1
    for before, after in itertools.pairwise(lines)
    if before["stage"] == after["stage"] and before["pid"] != after["pid"]
  }


def order(workdir: Path, stage: str) -> list[list[str]]:
  """The examples of each step, in order, as they were learned from in the end."""
  steps: dict[int, dict[int, list[str]]] = {}
  for process, lines in runs.seen(workdir).items():
    for line in lines:
      if line["stage"] == stage:
        steps.setdefault(line["step"], {})[process] = line["examples"]
  return [
    [example for _, part in sorted(steps[step].items()) for example in part]
    for step in sorted(steps)
  ]


def epoch_faults(workdir: Path, stage: str) -> list[str]:
  """What is wrong with the epochs of a stage: examples that are missing in one, or there twice."""
  source = examples.ExampleSource(workdir / "data" / "shards", "train")
  names = {source[index].id for index in range(len(source))}
  flat = [example for step in order(workdir, stage) for example in step]
  found = []
  for first in range(0, len(flat), len(names)):
    part = flat[first : first + len(names)]
    twice = len(part) - len(set(part))
    lost = names - set(part) if len(part) == len(names) else set()
    if twice or lost or not set(part) <= names:
      found.append(f"{stage}, epoch {first // len(names)}: {twice} twice, {len(lost)} lost")
  return found


def differences(
  one: Path,
  other: Path,
  stages: Sequence[str] = STAGES,
  patterns: Sequence[str] = PATTERNS,
) -> list[str]:
  """What differs between two runs: names of files and arrays; [] if nothing does."""
  found = []
  lines = [_reproducible(workdir) for workdir in (one, other)]
  if json.dumps(lines[0]) != json.dumps(lines[1]):
    found.append("metrics.jsonl")
  for pattern in patterns:
    names = {path.relative_to(each) for each in (one, other) for path in each.glob(pattern)}
    if not names:
      found.append(f"{pattern}: none")
    for name in sorted(names):
      contents = [(each / name).read_bytes() for each in (one, other) if (each / name).is_file()]
      if len(contents) < 2 or contents[0] != contents[1]:
        found.append(str(name))
  for stage in stages:
    arrays = [last_checkpoint(each / "checkpoints" / stage) for each in (one, other)]
    if arrays[0].keys() != arrays[1].keys() or not arrays[0]:
      found.append(f"checkpoints/{stage}")
      continue
    found += [
      f"checkpoints/{stage}: {name}"
      for name, value in arrays[0].items()
      if not np.array_equal(value, arrays[1][name])
    ]
  return found


def _reproducible(workdir: Path) -> list[dict]:
  lines = metrics.read(workdir / "metrics.jsonl")
  for line in lines:
    line["values"] = {k: v for k, v in line["values"].items() if not k.startswith(DIFFERS)}
  return lines


def last_checkpoint(directory: Path) -> dict[str, Any]:
  """The step, and the arrays of its state, whatever devices they were on."""
  steps = [int(path.name) for path in directory.iterdir() if path.name.isdigit()]
  path = directory / str(max(steps)) / "state"
  with ocp.PyTreeCheckpointer() as reader:
    saved = reader.metadata(path).item_metadata.tree
    as_numpy = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in saved}
    return {"": max(steps), **reader.restore(path, restore_args=as_numpy)}


def measure(
  recipe: str,
  root: Path,
  *,
  kills: int,
  seed: int,
  processes: int,
  minutes: float = math.inf,
  moments: Sequence[str] = (),
  steps: int = 0,
  after_a_kill: Callable[[int, Path], None] = lambda number, workdir: None,
) -> dict[str, Any]:
  """Runs both, and returns the results; see the module.

  kills: without moments.
  minutes: after which it kills no more.
  moments: "phase:kind" of each kill, in the order of the stages.
  steps: of a stage; 0: as many as kills, but at least 8.
  after_a_kill: is called with the number of kills so far and the workdir.
  """
  begun, kills = time.monotonic(), len(moments) or kills
  steps = steps or max(8, kills)
  alone, killed = (root / f"{recipe}-{name}" for name in ("alone", "killed"))
  exports = any(each.startswith(EXPORT) for each in moments)
  modes = ["all", EXPORT] if exports else ["all"]
  words = {mode: arguments(recipe, killed, steps, mode) for mode in modes}
  whole, *_ = [run_alone(arguments(recipe, alone, steps, m), alone, processes) for m in modes]
  rng, done, starts = random.Random(seed), [], []
  end = time.monotonic() + 60 * minutes
  while len(done) < kills and time.monotonic() < end:
    left = (end - time.monotonic()) / (60 * minutes) if minutes < math.inf else 1.0
    phase, kind = phase_of(max((len(done) + 0.5) / kills, 1 - left)), None
    if moments:
      phase, _, kind = moments[len(done)].partition(":")
    if phase == EXPORT and modes[0] != EXPORT:  # the run has to be complete
      run_alone(words[modes.pop(0)], killed, processes)
    start = statistics.median(starts) if starts else min(30.0, whole.seconds / 2)
    wanted = draw(rng, phase, processes, start, kind)
    started = time.time()
    hit = kill(words[modes[0]], killed, steps, processes, wanted)
    if hit is None:
      break
    done.append(hit)
    after_a_kill(len(done), killed)
    starts += _first_step(killed, started)
    print(f"kill {len(done)}: {done[-1]}", file=sys.stderr, flush=True)
  for mode in modes:
    run_alone(words[mode], killed, processes)
  again = redone(killed)
  outside = [again.get(each.pid, 0) for each in done if not each.written]
  during = [most_redone(killed, each) - INTERVAL for each in done]
  tasks = [each.place.split()[0].strip(",") for each in done]
  return {
    "recipe": recipe,
    "kills": len(done),
    "kills_wanted": kills,
    "seed": seed,
    "processes": processes,
    "steps_of_a_stage": steps,
    "save_interval": INTERVAL,
    "kills_by_kind": dict(collections.Counter(each.kind for each in done)),
    "kills_by_phase": dict(collections.Counter(each.phase for each in done)),
    "kills_by_task": dict(collections.Counter(tasks)),
    "kills_inside_a_checkpoint_write": sum(each.written > 0 for each in done),
    "differences": differences(alone, killed, patterns=PATTERNS + EXPORTED * exports),
    "epoch_faults": [fault for stage in STAGES for fault in epoch_faults(killed, stage)],
    "stages_in_other_order": [
      stage for stage in STAGES if order(killed, stage) != order(alone, stage)
    ],
    "most_steps_redone": max(again.values(), default=0),
    "most_steps_redone_outside_writes": max(outside, default=0),
    "most_steps_during_a_write": max(during, default=0),
    "kills_that_cost_more": [
      dataclasses.asdict(each) | {"redone": again[each.pid]}
      for each, more in zip(done, during, strict=True)
      if again.get(each.pid, 0) > INTERVAL + more
    ],
    "seconds_from_start_to_first_step": round(statistics.median(starts), 1) if starts else None,
    "seconds": round(time.monotonic() - begun),
  }


def _first_step(workdir: Path, started: float) -> list[float]:
  """Seconds from the start to the first step that it has noted; [] if it came to none."""
  lines = runs.seen(workdir).get(0, [])
  times = [line["time"] for line in lines if line["time"] > started]
  return [times[0] - started] if times else []


def is_right(found: Mapping[str, Any]) -> bool:
  """Whether nothing was lost, as the module says."""
  faults = ("differences", "epoch_faults", "stages_in_other_order", "kills_that_cost_more")
  return (
    not any(found[name] for name in faults)
    and found["most_steps_redone_outside_writes"] <= INTERVAL
    and found["most_steps_during_a_write"] <= INTERVAL
  )


def _moments(text: str) -> list[str]:
  """Reads --moments; a phase alone is its start."""
  found = [each if ":" in each else f"{each}:start" for each in text.split(",")]
  for each in found:
    if each not in MOMENTS:
      raise argparse.ArgumentTypeError(f"{each}: is none of {', '.join(MOMENTS)}")
  return found


def main() -> int:
  """Runs the command; returns the exit code."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--recipe", choices=FIELDS, required=True)
  parser.add_argument("--kills", type=int, default=50)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--processes", type=int, default=1)
  parser.add_argument("--moments", type=_moments, default=(), help="in place of --kills")
  parser.add_argument("--steps", type=int, default=0, help="of a stage")
  parser.add_argument("--minutes", type=float, default=math.inf, help="kills no more after these")
  parser.add_argument("--out", type=Path)
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as root:
    found = measure(
      options.recipe,
      Path(root),
      kills=options.kills,
      seed=options.seed,
      processes=options.processes,
      minutes=options.minutes,
      moments=options.moments,
      steps=options.steps,
    )
  text = json.dumps(found, indent=2)
  print(text)
  if options.out:
    atomic.write_bytes(options.out, [text.encode() + b"\n"])
  return 0 if is_right(found) else 1


if __name__ == "__main__":
  sys.exit(main())
