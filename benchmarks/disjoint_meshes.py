"""Says by plan whether rl.disjoint_meshes pays: halves of a slice that sample and train at once.

    python -m benchmarks.disjoint_meshes --whole=v6e-8 --half=v6e-4 --whole_mesh="(2,4,1,1)" \\
      --config=configs/moss_chatv.py:3b [--quick] [--config.x=y ...]

Plans an RL step on both slices (launch/plan.py). On the whole slice a step takes its sampling and
its update (with the log-probs before it), one after the other; on halves the longer of the two on a
half, and the copy of the weights from chip to neighbouring chip, over one link. Times are lower
bounds, by the roofline; the host's work is left out.

`at_best` is the speedup if the update took as many times its bound as makes both halves end
together. Below 1, halves lose whatever the update really takes. The whole slice deserves its best
mesh: --whole_mesh is its config.mesh, as two of the half's. A plan that was printed by
`launch/plan.py --json` before is read with --plans=WHOLE.json,HALF.json instead of compiling.

Prints one JSON line.
"""

import argparse
import json
import math
from pathlib import Path
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp

from launch import chips, slices
from vr_jax import main as vr_jax
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.train import learner_state, model_setup

SAMPLING = ("encoder", "rollout", "prefill", "decode", "append observations")


def compare(whole: dict[str, Any], half: dict[str, Any], weights: int) -> dict[str, Any]:
  """The fields of the JSON line that the plans of both slices give.

  weights: bytes of all parameters that move.
  """
  one, each = _seconds(whole), _seconds(half)
  chip = next(chip for chip in chips.CHIPS.values() if chip.name == half["chip"])
  ways = math.prod(size for axis, size in half["mesh"].items() if axis != "data")
  copy = weights / ways / chip.link
  sequential = one["sampling"] + one["update"]
  beside = max(each.values()) + copy
  # The update takes `slower` times its bound.
  slower = each["sampling"] / each["update"]
  at_best = (one["sampling"] + slower * one["update"]) / (each["sampling"] + copy)
  return {
    "whole": {**_slice(whole), **_rounded(one, step=sequential)},
    "halves": {**_slice(half), **_rounded(each, copy=copy, step=beside)},
    "fits_half": half["fits"],
    "speedup": round(sequential / beside, 2),
    "at_best": round(at_best, 2),
    "at_best_update_times": round(slower, 2),
  }


def _slice(plan: dict[str, Any]) -> dict[str, Any]:
  return {"slice": plan["topology"], "mesh": [*plan["mesh"].values()]}


def _seconds(plan: dict[str, Any]) -> dict[str, float]:
  """Seconds of the programs of sampling and of the update, by the roofline."""
  spent = {"sampling": 0.0, "update": 0.0}
  for program in plan["programs"]:
    part = "sampling" if program["name"] in SAMPLING else "update"
    spent[part] += program["runs"] * sum(max(p["seconds"].values()) for p in program["parts"])
  return spent


def _rounded(*groups: dict[str, float], **more: float) -> dict[str, float]:
  return {name: round(value, 3) for group in (*groups, more) for name, value in group.items()}


def moved_bytes(flags: list[str]) -> int:
  """Bytes of the parameters that are trained, in the dtypes in which they move."""
  config, _, _ = vr_jax.parse_flags(["benchmarks", "--workdir=.", *flags])
  model = model_setup.model_of(config)
  net = model_setup.ModelSetup(
    config=config,
    mesh=mesh_lib.make_mesh((1, 1, 1, 1), devices=jax.devices()[:1]),
    model=model,
    allowed_tokens=jnp.ones(model.vocab_size, bool),
    stop_tokens=(0,),
  )
  moved = learner_state.make_reference(net, net.abstract_params, abstract=True)
  return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(moved))


def _plan(name: str, flags: list[str]) -> dict[str, Any]:
  command = [sys.executable, "launch/plan.py", "--json", f"--topology={name}", *flags]
  done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
  if done.returncode not in (0, 1):
    sys.exit(done.returncode)
  return json.loads(done.stdout)


def main() -> None:
  """Runs the command line and prints the line."""
  parser = argparse.ArgumentParser(allow_abbrev=False)
  parser.add_argument("--whole", default="")
  parser.add_argument("--half", default="")
  parser.add_argument("--whole_mesh", default="")
  parser.add_argument("--plans", default="")
  parser.add_argument("--quick", action="store_true")
  options, flags = parser.parse_known_args()
  if options.plans:
    whole, half = (json.loads(Path(path).read_text()) for path in options.plans.split(","))
  else:
    if slices.parse(options.whole).chips != 2 * slices.parse(options.half).chips:
      sys.exit("--whole: needs twice the chips of --half")
    quick = ["--quick"] * options.quick
    mesh = [f"--config.mesh={options.whole_mesh}"] if options.whole_mesh else []
    whole = _plan(options.whole, [*quick, *flags, *mesh])
    half = _plan(options.half, [*quick, *flags])
  found = compare(whole, half, moved_bytes(flags))
  print(json.dumps({"benchmark": "disjoint_meshes", "config": flags, **found}))


if __name__ == "__main__":
  main()
