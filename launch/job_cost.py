"""What a job costs: chips x hours x a price that the user gives.

No price is written here: published ones differ by region, contract and source.
"""

import argparse
from pathlib import Path
from typing import Any

from launch import job as job_lib
from launch import job_file, slices
from vr_jax import errors, plain_json, recipe_config


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the options of `cost`."""
  parser.add_argument("--price_per_chip_hour", type=float, help="cost: in any currency")
  parser.add_argument("--hours", type=float, help="cost: for how long the slice is there")
  parser.add_argument("--plan", help="cost: or the output of launch/plan.py --json")
  parser.add_argument("--steps", type=int, help="cost: with --plan; default: the job's rl.steps")


def print_cost(read: job_file.ReadJob, options: argparse.Namespace) -> int:
  """Prints chips, hours, chip-hours and price; returns the exit code.

  Raises InputError if price or hours are missing, or the plan is not one of the job's slice.
  """
  read.require("cost", "slice")
  slice_ = slices.parse(read.job.slice, read.where("slice"))
  price = options.price_per_chip_hour
  if price is None or not 0 < price < float("inf"):
    raise errors.InputError("--price_per_chip_hour: needs your price of a chip for an hour")
  if (options.hours is None) == (options.plan is None):
    raise errors.InputError("--hours: needs hours, or --plan=FILE with what plan.py --json printed")
  if options.hours is not None:
    hours, how = options.hours, ""
  else:
    hours, how = _planned(read.job, slice_, options)
  if not 0 < hours < float("inf"):
    raise errors.InputError(f"--hours={hours}: needs a number above 0")
  chip_hours = slice_.chips * hours
  print(f"{slice_.name}: {slice_.chips} chips x {hours:.2f} h{how} = {chip_hours:.1f} chip-hours")
  print(f"{chip_hours:.1f} chip-hours x {price:g} = {chip_hours * price:.2f}")
  if how:
    print(
      "A plan's time is the least that the chips need for RL; the warm start, evaluation, "
      "compiling, saving and waiting for machines come on top."
    )
  return 0


def _planned(
  job: job_lib.TrainingJob, slice_: slices.NamedSlice, options: argparse.Namespace
) -> tuple[float, str]:
  """Hours of all RL steps by a plan, and a text that says where they come from."""
  plan = _read_plan(options.plan)
  if plan["chips"] != slice_.chips:
    raise errors.InputError(
      f"--plan={options.plan}: is for {plan['chips']} chips ({plan['topology']}), "
      f"{slice_.name} has {slice_.chips}"
    )
  if plan["fits"] is None:
    raise errors.InputError(
      f"--plan={options.plan}: is of a part of the step; plan without --layers and --programs"
    )
  if not plan["fits"]:
    raise errors.InputError(f"--plan={options.plan}: says that the job does not fit this slice")
  steps = options.steps
  if steps is None:
    steps = job.fields.get("rl.steps") or recipe_config.read(job.recipe)[0].rl.steps
  try:
    steps = int(steps)
  except ValueError as error:
    raise errors.InputError(f"config.rl.steps={steps}: is no whole number") from error
  if steps < 1:
    raise errors.InputError(f"config.rl.steps={steps}: needs a number above 0")
  seconds = float(plan["step"]["seconds"])
  return steps * seconds / 3600, f" ({steps} steps of {seconds:.1f} s)"


def _read_plan(file: str) -> dict[str, Any]:
  try:
    plan = plain_json.parse(Path(file).read_bytes())
    missing = {"chips", "topology", "fits", "step"} - set(plan)
    if missing or (plan["fits"] and not float(plan["step"]["seconds"]) > 0):
      raise ValueError(missing)
  except OSError as error:
    raise errors.InputError(f"--plan={file}: {error.strerror}") from error
  except (ValueError, KeyError, TypeError) as error:
    raise errors.InputError(
      f"--plan={file}: is not what launch/plan.py --json prints (without --sweep)"
    ) from error
  return plan
