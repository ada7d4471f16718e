"""Records what the tiny recipes log in 6 SFT steps, 6 RL steps and an evaluation; compares records.

    python -m tests.golden.recipe_metrics record metrics.json [--only=NAME,…] [--workdir=DIR]
    python -m tests.golden.recipe_metrics compare before.json after.json [--tolerance=1e-6]

For a change that must not change numbers, record before and after it on one machine. `compare`
prints the largest relative difference of each run and fails if it is above the tolerance (default
0: the same bits). Records of two machines differ by rounding.
"""

import argparse
from collections.abc import Mapping, Sequence
import json
import math
import os
from pathlib import Path
import subprocess
import sys
import tempfile
from typing import Any

# These differ from one start to the next by nature.
VOLATILE = ("time/", "memory/", "vision/", "perf/")

COMMON = (
  *("--config.sft.steps=6", "--config.rl.steps=6", "--config.sft.target_loss=0.0"),
  *("--config.eval.examples=16", "--config.eval.batch_size=16"),
  *("--config.sft.checkpoint_every=6", "--config.rl.checkpoint_every=6"),
)
GRPO_TURNS = ("--config.rl.advantage_estimator=episode",)

# name -> (recipe, overrides). Recipes of the same name share their data.
RUNS: dict[str, tuple[str, tuple[str, ...]]] = {
  "moss_chatv": ("moss_chatv", ()),
  "moss_chatv_lora": ("moss_chatv", ("--config.model.lora.rank=4",)),
  "moss_chatv_resampling": ("moss_chatv", ("--config.rl.dynamic_sampling_max_batches=2",)),
  "moss_chatv_off_policy": ("moss_chatv", ("--config.rl.one_step_off_policy=True",)),
  "moss_chatv_two_processes": ("moss_chatv", ()),
  "videop2r": ("videop2r", ()),
  "videop2r_t_grpo": ("videop2r", ("--config.rl.num_shuffled_generations=4",)),
  "video_mtr_gae": ("video_mtr", ()),
  "video_mtr_grpo": ("video_mtr", GRPO_TURNS),
}
VIDEOS = {"moss_chatv": 96, "videop2r": 192, "video_mtr": 48}


def record(path: Path, only: Sequence[str], workdir: Path) -> None:
  """Runs every recipe in `RUNS` (or `only` these), and writes what it logged to a JSON file."""
  found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
  os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str((workdir / "compilations").absolute()))
  for name in only or RUNS:
    if name in found:
      continue
    found[name] = run(name, workdir)
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"{name}: {len(found[name]['steps'])} steps", flush=True)


def run(name: str, workdir: Path) -> dict[str, Any]:
  """Trains and evaluates one run.

  Returns {"steps": its lines of metrics.jsonl, "evaluations": metrics by name}.
  """
  recipe, overrides = RUNS[name]
  where = workdir / name
  flags = [
    f"--config=configs/{recipe}.py:tiny",
    f"--workdir={where}",
    f"--config.data.directory={workdir / 'data' / recipe}",
    f"--config.data.simulate.videos={VIDEOS[recipe]}",
    *COMMON,
    *overrides,
  ]
  if name.endswith("_two_processes"):
    for mode in ("data", "sft", "rl"):
      _run("launch.local", "--processes=2", "--", *flags, f"--mode={mode}")
  else:
    _run("vr_jax.main", *flags, "--mode=all")
  lines = [json.loads(line) for line in (where / "metrics.jsonl").read_text().splitlines()]
  steps = [
    {
      "stage": line["stage"],
      "step": line["step"],
      "values": {k: v for k, v in line["values"].items() if not k.startswith(VOLATILE)},
    }
    for line in lines
  ]
  evaluations = {
    file.stem: json.loads(file.read_text())["metrics"]
    for file in sorted((where / "eval").glob("*.json"))
  }
  return {"steps": steps, "evaluations": evaluations}


def _run(module: str, *flags: str) -> None:
  subprocess.run([sys.executable, "-m", module, *flags], check=True, stdout=subprocess.DEVNULL)


def compare(before: Mapping[str, Any], after: Mapping[str, Any], tolerance: float) -> bool:
  """Prints each run's largest relative difference.

  Returns whether no difference is above the tolerance and no value is missing.
  """
  agrees = True
  for name, old in before.items():
    if name not in after:
      print(f"{name}: not recorded")
      agrees = False
      continue
    a, b = flatten(old), flatten(after[name])
    worst, where = 0.0, ""
    for key in a.keys() & b.keys():
      if (off := difference(a[key], b[key])) > worst:
        worst, where = off, key
    gone, new = sorted(a.keys() - b.keys()), sorted(b.keys() - a.keys())
    agrees = agrees and worst <= tolerance and not gone
    print(f"{name}: {len(a.keys() & b.keys())} values, largest difference {worst:.2e} {where}")
    for title, keys in (("gone", gone), ("new", new)):
      if keys:
        print(f"  {title}: {', '.join(dict.fromkeys(key.rsplit(':', 1)[-1] for key in keys))}")
  return agrees


def flatten(found: Mapping[str, Any]) -> dict[str, Any]:
  """{"rl 3:loss": value} of a run."""
  flat = {
    f"{line['stage']} {line['step']}:{key}": value
    for line in found["steps"]
    for key, value in line["values"].items()
  }
  for name, metrics in found["evaluations"].items():
    flat |= {f"{name}:{key}": value for key, value in metrics.items()}
  return flat


def difference(a: Any, b: Any) -> float:
  """Relative difference of two numbers; infinite where only one is a number."""
  if a == b:
    return 0.0
  if not all(isinstance(x, int | float) for x in (a, b)):
    return math.inf
  return abs(a - b) / max(abs(a), abs(b))


def main(argv: Sequence[str] | None = None) -> int:
  """The command line."""
  parser = argparse.ArgumentParser(prog="python -m tests.golden.recipe_metrics")
  commands = parser.add_subparsers(dest="command", required=True)
  recording = commands.add_parser("record")
  recording.add_argument("path", type=Path)
  recording.add_argument("--only", default="")
  recording.add_argument("--workdir", type=Path)
  comparing = commands.add_parser("compare")
  comparing.add_argument("before", type=Path)
  comparing.add_argument("after", type=Path)
  comparing.add_argument("--tolerance", type=float, default=0.0)
  arguments = parser.parse_args(argv)
  if arguments.command == "record":
    only = arguments.only.split(",") if arguments.only else []
    if arguments.workdir:
      record(arguments.path, only, arguments.workdir)
    else:
      with tempfile.TemporaryDirectory() as directory:
        record(arguments.path, only, Path(directory))
    return 0
  before, after = (json.loads(path.read_text()) for path in (arguments.before, arguments.after))
  return 0 if compare(before, after, arguments.tolerance) else 1


if __name__ == "__main__":
  sys.exit(main())
