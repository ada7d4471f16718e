"""Times what a run of several processes, a save and a restart cost.

    python -m benchmarks.pods [processes] [save] [restart]

Prints a JSON line for each (default: all):

processes  four processes with a device each against one process with four devices, in turn: the
           median time of a step of RL of `moss_chatv:tiny`, and the ratio. The goal is 1.25.
save       RL and a warm start whose train state has 1 GB, of a wider network, with a checkpoint
           after each step and with none, in turn: the median time of a step, with what the save
           takes of the next one, and the ratio; and what fresh memory costs. The goal is 1.10.
restart    a run of `moss_chatv:tiny` is killed by SIGKILL and started again, with its programs in
           the compilation cache: seconds from the start to the end of the next step. The goal: 25.

Each run is a command of its own, with the compilation cache of this machine; what is compiled is
run once before it is timed.
"""

from collections.abc import Callable, Sequence
import json
import mmap
import os
from pathlib import Path
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from vr_jax.train import config_changes, metrics

ROUNDS = 3
VIDEOS = "--config.data.simulate.videos=24"
SHORT = (
  "--config=moss_chatv:tiny",
  VIDEOS,
  "--config.sft.steps=4",
  "--config.rl.checkpoint_every=100",
  "--config.mesh=(4, 1, 1, 1)",
  "--config.cpu_devices=4",
)
# 84 M parameters with two moments each, in float32.
WIDE = (
  "--config=moss_chatv:tiny",
  VIDEOS,
  "--config.model.architecture.text_config.hidden_size=1024",
  "--config.model.architecture.text_config.num_attention_heads=32",
  "--config.model.architecture.text_config.intermediate_size=5120",
  "--config.model.architecture.vision_config.out_hidden_size=1024",
  "--config.sft.batch_size=4",
)


def time_processes(home: Path) -> dict[str, float]:
  """Median seconds of a step with four processes, and with one."""
  _vr_jax(home / "data", "data", SHORT)
  _vr_jax(home / "sft", "sft", (*SHORT, f"--config.data.directory={home / 'data' / 'data'}"))
  flags = (
    *SHORT,
    f"--config.data.directory={home / 'data' / 'data'}",
    f"--config.rl.init_checkpoint={home / 'sft' / 'checkpoints' / 'sft'}",
    "--config.rl.steps=5",
  )
  times: dict[int, list[float]] = {4: [], 1: []}
  for number in range(ROUNDS + 1):
    for count, found in times.items():
      run = home / f"{count}-{number}"
      command = ["-m", "launch.local", f"--processes={count}", f"--devices={4 // count}", "--"]
      _python([*command, *flags, f"--workdir={run}", "--mode=rl"])
      found += _steps(run, "rl") if number else []  # the first round compiles
  several, one = (statistics.median(times[count]) for count in (4, 1))
  return {"four_processes": several, "one_process": one, "ratio": several / one}


def time_saves(home: Path) -> dict[str, float]:
  """Median seconds of a step with a save after each, and without, of both stages.

  fresh_gb, used_gb: seconds to write 1 GB of memory for the first time, and again. A save takes
    1 GB for the file's pages; on CPUs also 1 GB for the next step, as the writer holds the arrays.
  checkpoints_gb: of the last two.
  """
  _vr_jax(home / "data", "data", WIDE)
  fresh, used = _fill_seconds()
  found = {"fresh_gb": fresh, "used_gb": used}
  for stage, rounds in {"rl": 1, "sft": ROUNDS}.items():
    times: dict[int, list[float]] = {1: [], 1000: []}
    for number in range(rounds):
      for every, steps in times.items():
        run = home / f"{stage}-{every}-{number}"
        flags = (
          *WIDE,
          f"--config.data.directory={home / 'data' / 'data'}",
          "--config.rl.init_checkpoint=",
          f"--config.sft.steps={5 if stage == 'sft' else 0}",
          "--config.rl.steps=5",
          f"--config.{stage}.checkpoint_every={every}",
        )
        _vr_jax(run, stage, flags)
        steps += _steps(run, stage)
    saving, plain = map(statistics.median, times.values())
    found |= {f"{stage}_with_saves": saving, f"{stage}_without": plain}
    found[f"{stage}_ratio"] = saving / plain
  files = [path for path in (home / "sft-1-0").rglob("d/*") if path.is_file()]
  return found | {"checkpoints_gb": sum(path.stat().st_size for path in files) / 1e9}


def _fill_seconds() -> tuple[float, float]:
  """Seconds to write 1 GB of memory that this process gets anew, and to write it again."""
  with mmap.mmap(-1, 10**9) as memory:
    times = []
    for _ in range(2):
      begun = time.perf_counter()
      for start in range(0, len(memory), 10**6):
        memory[start : start + 10**6] = bytes(10**6)
      times.append(time.perf_counter() - begun)
  return times[0], times[1]


def time_restart(home: Path) -> dict[str, float]:
  """Seconds from a restart after a kill to the end of the next step."""
  run, times = home / "run", []
  flags = (*SHORT[:3], "--config.rl.checkpoint_every=1", "--config.rl.steps=1000")
  _vr_jax(run, "data", flags)
  _vr_jax(run, "sft", flags)
  for _ in range(ROUNDS + 1):
    done, begun = _saved(run), time.perf_counter()
    command = [sys.executable, "-m", "vr_jax.main", *flags, f"--workdir={run}", "--mode=rl"]
    process = subprocess.Popen(
      command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
      _wait(process, _logged, run, done)
      times.append(time.perf_counter() - begun)
      _wait(process, _saved, run, done)
    finally:
      os.killpg(process.pid, signal.SIGKILL)
      process.wait()
  return {"seconds": statistics.median(times[1:])}


def _wait(process: subprocess.Popen, step: Callable[[Path], int], run: Path, done: int) -> None:
  """Waits for a step of a run after `done`. Raises RuntimeError if the run ends before."""
  while step(run) <= done:
    if process.poll() is not None:
      raise RuntimeError(f"the run ended with exit code {process.returncode}")
    time.sleep(0.1)


def _logged(run: Path) -> int:
  """The last step of RL whose metrics are written."""
  lines = metrics.read(run / "metrics.jsonl", complete=False)
  return max((each["step"] for each in lines if each["stage"] == "rl"), default=0)


def _saved(run: Path) -> int:
  """The last step of RL that a restart would go on from."""
  return config_changes.last_step(run / "checkpoints" / "rl")


def _steps(run: Path, stage: str) -> list[float]:
  """Seconds of the steps after the first two."""
  lines = [each for each in metrics.read(run / "metrics.jsonl") if each["stage"] == stage]
  return [each["values"]["perf/time/step"] for each in lines[2:]]


def _vr_jax(run: Path, mode: str, flags: Sequence[str]) -> None:
  _python(["-m", "vr_jax.main", *flags, f"--workdir={run}", f"--mode={mode}"])


def _python(words: Sequence[str]) -> None:
  subprocess.run(
    [sys.executable, *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
  )


TIMED: dict[str, Callable[[Path], dict[str, float]]] = {
  "processes": time_processes,
  "save": time_saves,
  "restart": time_restart,
}

if __name__ == "__main__":
  for name in sys.argv[1:] or TIMED:
    with tempfile.TemporaryDirectory() as directory:
      print(json.dumps({name: TIMED[name](Path(directory))}), flush=True)
