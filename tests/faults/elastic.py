"""Goes on from a checkpoint of eight devices with other numbers of them, and compares.

    python -m tests.faults.elastic [--stages=sft,rl] [--devices=4,16]

The smallest MOSS-ChatV with batches of 16, two steps on eight CPU devices and two more on eight and
on the others. The same examples have to be learned from in the same order, replies have to be
equal, and metrics to agree to 1e-4 (those that measure rounding: to be below 1e-4). Each result is
printed as JSON; exit code 1 if one is not so.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
import json
import os
from pathlib import Path
import shutil
import sys
import tempfile
from typing import Any

from tests.faults import equal, kills, runs
from tests.train import nano
from vr_jax.train import metrics

BEGUN, END = 2, 4  # steps
FIRST = 8  # devices
CLOSE, ROUNDING = 1e-4, "logp_difference/"


def measure(root: Path, stages: Sequence[str], devices: Sequence[int]) -> Iterator[dict[str, Any]]:
  """Runs all, and yields what differs, for each stage and number of devices."""
  data = nano.make_data(root / "data")
  for stage in stages:
    begun = root / stage
    _run(stage, begun, data, FIRST, BEGUN)
    workdirs = {}
    for count in (FIRST, *devices):
      workdirs[count] = shutil.copytree(begun, root / f"{stage}-{count}")
      _run(stage, workdirs[count], data, count, END)
      if count != FIRST:
        yield _compare(stage, workdirs[FIRST], workdirs[count], count)


def _run(stage: str, workdir: Path, data: Path, devices: int, steps: int) -> None:
  fields = {**nano.OVERRIDES, "data.directory": data, f"{stage}.batch_size": 16}
  fields |= {"sft.steps": 0} if stage == "rl" else {}
  fields |= {f"{stage}.steps": steps}
  flags = [f"--config.{name}={value}" for name, value in fields.items()]
  words = [f"--config={nano.RECIPE}:tiny", f"--workdir={workdir}", f"--mode={stage}", *flags]
  ended = runs.LocalRun.start(words, workdir, devices=devices).finish()
  if any(ended.codes):
    raise RuntimeError(f"exit codes {ended.codes}:\n" + "\n".join(ended.said)[-4000:])


def _compare(stage: str, same: Path, other: Path, devices: int) -> dict[str, Any]:
  one, two = (metrics.read(each / "metrics.jsonl") for each in (same, other))
  differences, rounding = {}, [0.0]
  for mine, theirs in zip(one, two, strict=True):
    for name, value in mine["values"].items():
      number = theirs["values"][name]
      if ROUNDING in name:
        rounding += [value, number]
      elif not name.startswith(kills.DIFFERS):
        scale = max(abs(value), 1e-2)
        differences[f"{name} of step {mine['step']}"] = abs(number - value) / scale
  largest = max(differences, key=lambda name: differences[name])
  replies = [equal.read_replies(each) for each in (same, other)]
  return {
    "stage": stage,
    "devices": [FIRST, devices],
    "steps": [line["step"] for line in two],
    "same_examples": kills.order(same, stage) == kills.order(other, stage),
    "replies": len(replies[0]),
    "replies_that_differ": sum(x != y for x, y in zip(*replies, strict=True)),
    "largest_relative_difference": {"name": largest, "value": differences[largest]},
    "largest_rounding": max(rounding),
    "loss": [lines[-1]["values"]["loss"] for lines in (one, two)],
  }


def is_right(found: Mapping[str, Any]) -> bool:
  """Whether it is as the module says."""
  return (
    found["steps"] == [*range(1, END + 1)]
    and found["same_examples"]
    and not found["replies_that_differ"]
    and (found["replies"] > 0) == (found["stage"] == "rl")
    and found["largest_relative_difference"]["value"] <= CLOSE
    and found["largest_rounding"] < CLOSE
  )


def main() -> int:
  """Runs the command; returns the exit code."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--devices", default="4,16")
  parser.add_argument("--stages", default="sft,rl")
  options = parser.parse_args()
  os.environ.update(runs.environment(1))
  devices, right = [int(count) for count in options.devices.split(",")], True
  with tempfile.TemporaryDirectory() as root:
    for found in measure(Path(root), options.stages.split(","), devices):
      sys.stdout.write(json.dumps(found, indent=2) + "\n")
      sys.stdout.flush()
      right &= is_right(found)
  return 0 if right else 1


if __name__ == "__main__":
  sys.exit(main())
