"""Compares RL of several processes with that of one process with as many devices.

    python -m tests.faults.equal --recipe=videop2r --processes=4

Both start from the same random weights, and earn what depends on the text of a reply (witness.py).
The result is printed as JSON; exit code 1 unless all metrics agree to 1e-5 and all replies are
equal.
"""

import argparse
from collections.abc import Mapping, Sequence
import json
import math
import operator
import os
from pathlib import Path
import sys
import tempfile
from typing import Any

from tests.faults import kills, runs, witness
from tests.train import nano
from vr_jax.train import metrics

CLOSE = 1e-5  # relative; metrics below 1e-2 are compared absolutely, to 1e-7
_OWN: Mapping[str, Mapping[str, Any]] = {
  "revseg": {name.replace("__", "."): value for name, value in nano.SHORT_GROUNDING.items()},
}


def measure(recipe: str, root: Path, *, processes: int, steps: int = 1) -> dict[str, Any]:
  """Runs both, and returns what differs."""
  fields = {**nano.OVERRIDES, **kills.FIELDS[recipe], **_OWN.get(recipe, {}), "sft.steps": 0}
  fields |= {"rl.steps": steps, "rl.checkpoint_every": steps}
  own = {name.replace(".", "__"): value for name, value in fields.items()}
  fields["data.directory"] = nano.make_data(root / "data", f"configs/{recipe}.py", **own)
  flags = [f"--config.{name}={value}" for name, value in fields.items()]
  found = []
  for count in (1, processes):
    workdir = root / str(count)
    words = [f"--config=configs/{recipe}.py:tiny", f"--workdir={workdir}", "--mode=rl", *flags]
    texts = {index: {witness.TEXT_ALONE: "1"} for index in range(count)}
    run = runs.LocalRun.start(
      words, workdir, processes=count, devices=processes // count, environments=texts
    )
    ended = run.finish()
    if any(ended.codes):
      raise RuntimeError(f"exit codes {ended.codes}:\n" + "\n".join(ended.said)[-4000:])
    found.append((metrics.read(workdir / "metrics.jsonl"), read_replies(workdir)))
  (one, replies), (several, others) = found
  ratios = {
    f"{name} of step {mine['step']}": difference(mine["values"][name], theirs["values"].get(name))
    for mine, theirs in zip(one, several, strict=True)
    for name in mine["values"]
    if not name.startswith(kills.DIFFERS)
  }
  name = max(ratios, key=lambda each: ratios[each])
  return {
    "recipe": recipe,
    "processes": processes,
    "steps": steps,
    "grad_norm": one[-1]["values"]["grad_norm"],
    "loss": [lines[-1]["values"]["loss"] for lines in (one, several)],
    "metrics": len(ratios),
    "largest_difference": {"name": name, "of_what_is_allowed": ratios[name]},
    "replies": len(replies),
    "replies_that_differ": sum(x != y for x, y in zip(replies, others, strict=True)),
  }


def is_right(found: Mapping[str, Any]) -> bool:
  """Whether there was something to compare, and it agrees."""
  moved = found["grad_norm"] > 0 and found["replies"] > 0
  close = found["largest_difference"]["of_what_is_allowed"] <= 1
  return moved and close and not found["replies_that_differ"]


def difference(one: float | None, other: float | None) -> float:
  """The difference of two metrics, as a part of what is allowed: right up to 1."""
  if one is None or other is None:
    return 0.0 if one is other else math.inf
  return abs(one - other) / max(CLOSE * abs(one), 1e-7)


def read_replies(workdir: Path, fields: Sequence[str] = ("text", "tokens")) -> list[Any]:
  """These fields of all replies, in an order that does not depend on processes."""
  lines = [
    json.loads(line)
    for path in (workdir / "rollouts").glob("*.jsonl")
    for line in path.read_text().splitlines()
  ]
  return [
    (line["step"], line["example"], *(reply[name] for name in fields))
    for line in sorted(lines, key=operator.itemgetter("step", "example", "prompt"))
    for reply in line["replies"]
  ]


def main() -> int:
  """Runs the command; returns the exit code."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--recipe", choices=kills.FIELDS, required=True)
  parser.add_argument("--processes", type=int, default=2)
  parser.add_argument("--steps", type=int, default=1)
  options = parser.parse_args()
  os.environ.update(runs.environment(1))
  with tempfile.TemporaryDirectory() as root:
    found = measure(options.recipe, Path(root), processes=options.processes, steps=options.steps)
  sys.stdout.write(json.dumps(found, indent=2) + "\n")
  return 0 if is_right(found) else 1


if __name__ == "__main__":
  sys.exit(main())
