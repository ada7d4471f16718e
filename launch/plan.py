"""Plans a recipe on a TPU slice before one is rented: compiles it without weights or a TPU.

    python launch/plan.py --config=configs/moss_chatv.py:7b --topology=v5p:4x4x4 \\
      [--quick] [--sweep | --options-sweep] [--programs=rollout] [--json] [--config.x=y …]

Prints for each program its bytes on a chip, its FLOPs, the bytes that it moves in memory and
between chips, and its time by the roofline. --sweep searches for the fastest mesh and the largest
load that fit. --options-sweep compares compiler options. --layers=2 compiles a shallow model,
--programs="rollout,train step" these alone: then there is no total of a step. With --quick the
compiler takes about half as long; memory and seconds are then upper bounds (docs/pods.md). The
programs are those of an RL step (launch/programs.py); the compiler is that of TPUs (libtpu). Exit
codes: 0 fits, or what was compiled of it does; 1 does not; 2 bad input.
"""

import argparse
from collections.abc import Sequence
import json
import pathlib
import sys

if __name__ == "__main__":  # as a script it stands in its own directory
  sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from launch import topology
from vr_jax import errors
from vr_jax import main as vr_jax


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line (default: this process's) and returns its exit code."""
  try:
    return _run(list(sys.argv[1:] if argv is None else argv))
  except errors.InputError as error:
    print(f"plan: {error}", file=sys.stderr)
    return 2


def _run(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(
    prog="launch/plan.py",
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
    exit_on_error=False,
  )
  parser.add_argument("--topology", help=topology.known())
  parser.add_argument("--json", action="store_true", help="print one JSON object")
  parser.add_argument(
    "--sweep", action="store_true", help="find the fastest mesh and the largest load"
  )
  parser.add_argument(
    "--options-sweep", action="store_true", help="compile with each candidate of compiler options"
  )
  parser.add_argument("--layers", type=int, default=0, help="text layers, to save time; 0: all")
  parser.add_argument("--programs", default="", help="names, with commas between; empty: all")
  parser.add_argument("--quick", action="store_true", help="compile with little effort")
  try:
    options, rest = parser.parse_known_args(argv)
  except argparse.ArgumentError as error:
    raise errors.InputError(str(error)) from error
  if not options.topology or not any(word.startswith("--config=") for word in rest):
    raise errors.InputError(
      "needs --config=configs/<recipe>.py:<size> and --topology=<slice>, as v5p-16 or v5p:2x2x2"
    )
  if options.sweep and options.options_sweep:
    raise errors.InputError("--options-sweep: not with --sweep; give one of them")
  if (options.layers or options.programs) and options.sweep:
    raise errors.InputError("--layers, --programs: not with --sweep, which compiles all")
  # A plan has no workdir; the entry point's own parser reads the rest and checks each field.
  config, _, _ = vr_jax.parse_flags(["launch/plan.py", "--workdir=.", *rest])
  topology.prepare(quick=options.quick)
  from launch import (
    analysis,
    options_sweep,
    report,
    sweep,
  )  # import only now: `prepare` comes before jax starts
  from vr_jax.train import config_checks, model_setup

  config_checks.check(config)
  if config.rl.disjoint_meshes:
    raise errors.InputError(
      "--config.rl.disjoint_meshes: a plan is of one mesh; leave it out, and give the slice of one "
      "half (python -m benchmarks.disjoint_meshes compares both)"
    )
  where = topology.find(options.topology)
  if options.sweep:
    found = sweep.search(config, where, progress=_say)
    print(json.dumps(sweep.as_json(found)) if options.json else sweep.as_text(found))
    return 0 if found.best is not None else 1
  config = model_setup.clamp_microbatches(config, model_setup.make_mesh(config, where.devices))
  names = [name.strip() for name in options.programs.split(",") if name.strip()]
  if options.options_sweep:
    outcomes = options_sweep.compare(
      config, where, layers=options.layers, names=names, progress=_say
    )
    print(
      json.dumps(options_sweep.as_json(outcomes))
      if options.json
      else options_sweep.as_text(outcomes)
    )
    return 0 if any(one.fits for one in outcomes) else 1
  plan = analysis.analyse(config, where, names=names, layers=options.layers, progress=_say)
  print(json.dumps(report.as_json(plan)) if options.json else report.as_text(plan))
  return 0 if plan.fits else 1


def _say(line: str) -> None:
  print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
  sys.exit(main())
