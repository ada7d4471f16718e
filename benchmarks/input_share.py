"""Measures the input pipeline's share of a training step, in the tiny recipe.

    python -m benchmarks.input_share

Runs the stages themselves (data, then SFT steps, then RL steps) and reads the times that they log.
`perf/time/data` of a step is the wait for the next batch, padding it and putting it on the devices;
it counts only where the update that runs meanwhile ends before it. The rest of the step is the
tower, sampling, scoring, the update, and writing the log of the previous step. The first steps of
each stage compile and are left out. Prints one JSON line, for both stages:

- the share of data (sum over sum)
- mean and median over steps of `perf/exposed_host_fraction`, in which the devices wait for data or
  other work of the host, compilation of a new shape for rewards included
- the median milliseconds of data and of the whole step

The goal is below 0.02 for the share of data and for the mean exposed fraction.
"""

import json
from pathlib import Path
import statistics
import tempfile

import ml_collections

from vr_jax import main as vr_jax
from vr_jax.train import metrics

VIDEOS = 200
WARM_UP = 10  # steps that are left out
STEPS = 40
GOAL = 0.02


def tiny_config(workdir: Path) -> ml_collections.ConfigDict:
  """The tiny recipe with few videos and steps, and a checkpoint at the end only."""
  fields = {
    "data.simulate.videos": VIDEOS,
    "sft.steps": STEPS,
    "sft.checkpoint_every": STEPS,
    "rl.steps": STEPS,
    "rl.checkpoint_every": STEPS,
  }
  overrides = [f"--config.{name}={value}" for name, value in fields.items()]
  recipe = ["--config=configs/moss_chatv.py:tiny", f"--workdir={workdir}"]
  return vr_jax.parse_flags(["input_share", *recipe, *overrides])[0]


def shares(workdir: Path) -> dict[str, dict[str, float]]:
  """The numbers of each stage, from a workdir's metrics."""
  found = {}
  for stage in ("sft", "rl"):
    values = [
      line["values"]
      for line in metrics.read(workdir / "metrics.jsonl")
      if line["stage"] == stage and line["step"] > WARM_UP
    ]
    data = [value["perf/time/data"] for value in values]
    exposed = [value["perf/exposed_host_fraction"] for value in values]
    step = [value["perf/time/step"] for value in values]
    found[stage] = {
      "share": round(sum(data) / sum(step), 4),
      "exposed_host_share": round(statistics.mean(exposed), 4),
      "exposed_host_share_median": round(statistics.median(exposed), 4),
      "data_ms": round(1e3 * statistics.median(data), 2),
      "step_ms": round(1e3 * statistics.median(step), 1),
    }
  return found


def main() -> None:
  """Runs the stages and prints the line."""
  with tempfile.TemporaryDirectory() as directory:
    workdir = Path(directory) / "run"
    config = tiny_config(workdir)
    for stage in ("data", "sft", "rl"):
      vr_jax.run(config, workdir, stage)
    print(json.dumps({"benchmark": "input_share", **shares(workdir), "goal": GOAL}))


if __name__ == "__main__":
  main()
