"""Damaged inputs of every kind through what reads them.

    python -m benchmarks.fuzz_inputs replies --seconds=3600 --seed=1

Targets: annotations (and mask files, released sets), replies (all parsers of what models write),
safetensors (headers, indexes of shards), frame_store (its index and times, the mask store),
checkpoints (config.json and tokenizers of models, the JSON of a training checkpoint), workdir
(config.json, health, metrics, evaluations), benchmarks (their released files, subtitles).

An execution damages one valid input and reads it. It has to be read, or refused with an InputError
of one line; replies are always read. Everything else is a violation: another exception, more than
20 s of CPU time, more than a GiB of memory, and a process that ends or stands still. The damage
depends on target, seed and number alone: --first=NUMBER --executions=1 repeats one.

The executions run in a process of their own, which is started again after one that ended it.
Prints a JSON line for each target; exit code 1 after a violation.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
import contextlib
import json
import os
from pathlib import Path
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from typing import Any

from absl import flags

from benchmarks import (
  damage,
  fuzzed_benchmarks,
  fuzzed_captions,
  fuzzed_files,
  fuzzed_models,
  fuzzed_replies,
)
from vr_jax import errors

TARGETS = {
  "annotations": fuzzed_files.annotation_inputs,
  "replies": fuzzed_replies.reply_inputs,
  "safetensors": fuzzed_models.safetensors_inputs,
  "frame_store": fuzzed_files.frame_store_inputs,
  "checkpoints": fuzzed_models.checkpoint_inputs,
  "workdir": fuzzed_files.workdir_inputs,
  "benchmarks": fuzzed_benchmarks.benchmark_inputs,
  "captions": fuzzed_captions.caption_inputs,
}
CPU_SECONDS = 20  # of one execution
MEMORY_GIB = 1.0  # by which one execution may raise the peak
_ROOM_GIB = 8  # of address space beyond what the start has taken
_STILL_SECONDS = 300.0  # without progress, after which the process counts as hung
_WRITTEN_EVERY = 2.0  # seconds


class _TooLong(BaseException):
  """An execution has used up its CPU time. No `except Exception` catches it."""


def _stop(number: int, frame: Any) -> None:
  del number, frame
  raise _TooLong


@contextlib.contextmanager
def _limited() -> Iterator[None]:
  """Raises _TooLong after CPU_SECONDS of this process, in Python code."""
  before = signal.signal(signal.SIGPROF, _stop)
  signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
  try:
    yield
  finally:
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)


def damaged(inputs: Sequence[damage.FuzzedInput], target: str, number: int, seed: int) -> Any:
  """The input of this number and its damaged copy, the same in every run."""
  rng = random.Random(f"{seed} {target} {number}")
  chosen = rng.choice(inputs)
  return chosen, chosen.damage(rng, chosen.whole)


def _execute(chosen: damage.FuzzedInput, data: bytes) -> tuple[str, str]:
  """Reads a copy. Returns (accepted or refused, ""), or ("", what was violated)."""
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  try:
    with _limited():
      chosen.read(data)
    outcome = "accepted"
  except errors.InputError as error:
    if "\n" in str(error):
      return "", f"an error of several lines: {str(error)[:300]!r}"
    if not chosen.may_refuse:
      return "", f"refused: {str(error)[:300]}"
    outcome = "refused"
  except _TooLong as error:
    return "", f"more than {CPU_SECONDS} s of CPU time at {_place(error)}"
  except BaseException as error:  # panics of libraries in Rust are no Exception
    if isinstance(error, KeyboardInterrupt | SystemExit):
      raise
    return "", f"{type(error).__name__} at {_place(error)}: {str(error)[:300]!r}"
  growth = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
  return (outcome, "") if growth <= MEMORY_GIB else ("", f"{growth:.1f} GiB of memory")


def _place(error: BaseException) -> str:
  """The innermost line of this project that an exception came through."""
  frames = [f for f in traceback.extract_tb(error.__traceback__) if "/vr_jax/" in f.filename]
  if not frames:
    frames = traceback.extract_tb(error.__traceback__)[-1:]
  return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"


def run(
  target: str,
  *,
  executions: int = 0,
  seconds: float = float("inf"),
  seed: int = 0,
  first: int = 0,
  outcome_file: Path | None = None,
) -> dict[str, Any]:
  """Executes a target in this process and returns the fields of its JSON line.

  executions: how many at most; 0 for as many as the seconds allow.
  outcome_file: what was done so far is written there every few seconds; the number of the present
    execution stands beside it.
  """
  counts: Counter[str] = Counter()
  found: dict[str, dict[str, Any]] = {}
  with tempfile.TemporaryDirectory() as folder:
    inputs = TARGETS[target](Path(folder))
    for each in inputs:
      each.read(each.whole)  # to see that it is valid, and to compile what is compiled once
    begun, number, written = time.monotonic(), first, 0.0
    numbers = outcome_file.with_suffix(".number").open("wb", buffering=0) if outcome_file else None
    while time.monotonic() - begun < seconds and (not executions or number < first + executions):
      if numbers:
        numbers.seek(0)
        numbers.write(number.to_bytes(8, "little"))
      chosen, data = damaged(inputs, target, number, seed)
      outcome, violation = _execute(chosen, data)
      counts[outcome] += 1
      if violation:
        key = f"{chosen.name}: {violation.partition(': ')[0]}"
        entry = found.setdefault(key, {"times": 0, "number": number, "what": violation})
        entry["times"] += 1
      number += 1
      result = {
        "target": target,
        "seed": seed,
        "executions": number - first,
        "accepted": counts["accepted"],
        "refused": counts["refused"],
        "violations": found,
        "seconds": round(time.monotonic() - begun, 1),
        "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
      }
      if outcome_file and time.monotonic() - written > _WRITTEN_EVERY:
        outcome_file.write_text(json.dumps(result))
        written = time.monotonic()
  if outcome_file:
    outcome_file.write_text(json.dumps(result))
  return result


def _run_child(words: Mapping[str, Any]) -> None:
  """What the process of the executions does. words: the arguments of `run`."""
  taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
  limit = taken + _ROOM_GIB * 2**30
  resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  run(**{**words, "outcome_file": Path(words["outcome_file"])})


def run_apart(target: str, *, executions: int, seconds: float, seed: int, first: int) -> Any:
  """Runs a target in processes that may end or hang, and returns the fields of its JSON line."""
  total: dict[str, Any] = {}
  begun, number = time.monotonic(), first
  with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "outcome.json"
    while True:
      left = max(0.0, seconds - (time.monotonic() - begun))
      words = {"target": target, "seed": seed, "first": number, "outcome_file": str(file)}
      words |= {"seconds": left, "executions": executions and first + executions - number}
      command = [sys.executable, "-m", "benchmarks.fuzz_inputs", f"--child={json.dumps(words)}"]
      file.write_text("{}")
      ended = _watch(command, file)
      total = _merged(total, json.loads(file.read_text()))
      if not ended:
        break
      if not file.with_suffix(".number").exists():
        raise RuntimeError(f"{target}: its process {ended} before the first execution")
      number = int.from_bytes(file.with_suffix(".number").read_bytes(), "little")
      key = f"{target}: {ended}"
      total.setdefault("violations", {})[f"{key} ({number})"] = {"times": 1, "number": number}
      number += 1
      total["executions"] = number - first  # what the process had not written yet
      if time.monotonic() - begun >= seconds or (executions and number >= first + executions):
        break
  return total


def _watch(command: Sequence[str], file: Path) -> str:
  """Waits for a process. Returns how it ended if that was before its time; else ""."""
  process = subprocess.Popen(command, env={**os.environ, "JAX_PLATFORMS": "cpu"})
  last, since = b"", time.monotonic()
  try:
    while process.poll() is None:
      time.sleep(0.2)
      numbers = file.with_suffix(".number")
      now = numbers.read_bytes() if numbers.exists() else b""
      if now != last:
        last, since = now, time.monotonic()
      elif time.monotonic() - since > _STILL_SECONDS:
        return "stands still"
    return "" if process.returncode == 0 else f"ended with {process.returncode}"
  finally:
    process.kill()
    process.wait()


def _merged(total: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
  """Adds the results of one process to those of the ones before."""
  merged = total | part
  for name in ("executions", "accepted", "refused", "seconds"):
    merged[name] = total.get(name, 0) + part.get(name, 0)
  merged["violations"] = total.get("violations", {}) | part.get("violations", {})
  return merged


def main(argv: Sequence[str]) -> int:
  """Runs the targets and prints a JSON line for each."""
  values = flags.FlagValues()
  seconds = flags.DEFINE_float("seconds", 3600.0, "For each target.", flag_values=values)
  most = flags.DEFINE_integer("executions", 0, "At most; 0: no limit.", flag_values=values)
  seed = flags.DEFINE_integer("seed", 0, "Seed of the damages.", flag_values=values)
  first = flags.DEFINE_integer("first", 0, "Number of the first execution.", flag_values=values)
  child = flags.DEFINE_string("child", "", "For the command's own processes.", flag_values=values)
  targets = values(argv)[1:]
  if child.value:
    _run_child(json.loads(child.value))
    return 0
  if unknown := [name for name in targets if name not in TARGETS]:
    print(f"{unknown[0]}: no such target; one of {', '.join(TARGETS)}", file=sys.stderr)
    return 2
  violations = 0
  for target in targets or TARGETS:
    outcome = run_apart(
      target,
      executions=most.value or 0,
      seconds=seconds.value or 0.0,
      seed=seed.value or 0,
      first=first.value or 0,
    )
    violations += len(outcome.get("violations", {}))
    print(json.dumps(outcome), flush=True)
  return 1 if violations else 0


if __name__ == "__main__":
  sys.exit(main(sys.argv))
