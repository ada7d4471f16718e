"""Goes on from a checkpoint of eight devices with other numbers of them, and compares.

    python -m tests.faults.elastic [--stages=sft,rl] [--on=4,16,2x4]

The smallest GRPO with batches of 16: four steps on eight CPU devices of one process; then from the
checkpoint of the second step again on others (2x4: two processes with four devices each). The same
examples have to be learned from in the same order, replies have to be equal, and metrics to agree
to 1e-5 (those that measure rounding: to be below 1e-4). Each result is printed as JSON; exit code 1
if one is not so.
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

from tests.faults import equal, kills, runs, witness
from tests.train import nano
from vr_jax.train import metrics

RECIPE = "configs/grpo.py"
BEGUN, END = 2, 4  # steps
FIRST = "8"
ROUNDING, SMALL = "logp_difference/", 1e-4  # metrics that measure rounding, and how large it may be


def measure(root: Path, stages: Sequence[str], places: Sequence[str]) -> Iterator[dict[str, Any]]:
  """Runs all, and yields what differs, for each stage and each "devices" or "processesxdevices"."""
  data = nano.make_data(root / "data", RECIPE)
  for stage in stages:
    whole = root / stage
    _run(stage, whole, data, FIRST)
    for place in places:
      workdir = shutil.copytree(whole, root / f"{stage}-{place}")
      shutil.rmtree(workdir / "checkpoints" / stage / str(END))
      shutil.rmtree(workdir / witness.DIRECTORY)
      _run(stage, workdir, data, place)
      yield _compare(stage, whole, workdir, place)


def _run(stage: str, workdir: Path, data: Path, place: str) -> None:
  fields = {**nano.OVERRIDES, "data.directory": data, f"{stage}.batch_size": 16}
  fields |= {"sft.steps": 0} if stage == "rl" else {}
  fields |= {f"{stage}.steps": END, f"{stage}.checkpoint_every": BEGUN}
  flags = [f"--config.{name}={value}" for name, value in fields.items()]
  words = [f"--config={RECIPE}:tiny", f"--workdir={workdir}", f"--mode={stage}", *flags]
  count, _, devices = place.rpartition("x")
  texts = {index: {witness.TEXT_ALONE: "1"} for index in range(int(count or 1))}
  run = runs.LocalRun.start(
    words, workdir, processes=len(texts), devices=int(devices), environments=texts
  )
  ended = run.finish()
  if any(ended.codes):
    raise RuntimeError(f"exit codes {ended.codes}:\n" + "\n".join(ended.said)[-4000:])


def _compare(stage: str, whole: Path, other: Path, place: str) -> dict[str, Any]:
  one, two = (metrics.read(each / "metrics.jsonl") for each in (whole, other))
  allowed, rounding, differ = {}, [0.0], set()
  for mine, theirs in zip(one, two, strict=True):
    for name, value in mine["values"].items():
      if name.startswith(kills.DIFFERS):
        continue
      number = theirs["values"][name]
      if number != value:
        differ.add(name)
      if ROUNDING in name:
        rounding += [value, number]
      else:
        allowed[f"{name} of step {mine['step']}"] = equal.difference(value, number)
  largest = max(allowed, key=lambda name: allowed[name])
  replies, scores = (
    [_again(equal.read_replies(each, fields)) for each in (whole, other)]
    for fields in (("text", "tokens"), ("rewards", "advantages"))
  )
  arrays = [kills.last_checkpoint(each / "checkpoints" / stage) for each in (whole, other)]
  params = [{k: v for k, v in each.items() if k.startswith("params")} for each in arrays]
  moved = nano.largest_difference(*params)
  return {
    "stage": stage,
    "devices": [FIRST, place],
    "steps": [line["step"] for line in two],
    "same_examples": kills.order(other, stage) == kills.order(whole, stage)[BEGUN:],
    "replies": len(replies[0]),
    "replies_that_differ": sum(x != y for x, y in zip(*replies, strict=True)),
    "rewards_or_advantages_of_other_bits": sum(x != y for x, y in zip(*scores, strict=True)),
    "largest_difference": {"name": largest, "of_what_is_allowed": allowed[largest]},
    "largest_rounding": max(rounding),
    "metrics_of_other_bits": sorted(differ),
    "metrics_of_the_same_bits": len({name.partition(" of ")[0] for name in allowed} - differ),
    "grad_norm": one[-1]["values"]["grad_norm"],
    "loss": [lines[-1]["values"]["loss"] for lines in (one, two)],
    "largest_difference_of_parameters": {"name": moved.name, "relative": moved.value},
  }


def _again(replies: Sequence[Any]) -> list[Any]:
  """Those of the steps that are done again."""
  return [reply for reply in replies if reply[0] > BEGUN]


def is_right(found: Mapping[str, Any]) -> bool:
  """Whether it is as the module says."""
  return (
    found["steps"] == [*range(1, END + 1)]
    and found["same_examples"]
    and not found["replies_that_differ"]
    and (found["replies"] > 0) == (found["stage"] == "rl")
    and found["grad_norm"] > 0
    and found["largest_difference"]["of_what_is_allowed"] <= 1
    and found["largest_rounding"] < SMALL
  )


def main() -> int:
  """Runs the command; returns the exit code."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--on", default="4,16,2x4")
  parser.add_argument("--stages", default="sft,rl")
  options = parser.parse_args()
  os.environ.update(runs.environment(1))
  right = True
  with tempfile.TemporaryDirectory() as root:
    for found in measure(Path(root), options.stages.split(","), options.on.split(",")):
      sys.stdout.write(json.dumps(found, indent=2) + "\n")
      sys.stdout.flush()
      right &= is_right(found)
  return 0 if right else 1


if __name__ == "__main__":
  sys.exit(main())
