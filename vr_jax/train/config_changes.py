"""Which fields of a run's config may differ from those that its workdir was made with.

Each field declares until when it may change (`schema.CHANGES`). So a run can be extended (more
steps), write checkpoints more often, or go on with smaller batches where its first step did not fit
in memory.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from vr_jax import buckets, config_fields, errors, optional_sections, schema

STAGES = ("sft", "rl")

Flat = Mapping[str, Any]  # dotted names of fields -> their values


@dataclasses.dataclass(frozen=True, kw_only=True)
class Change:
  """A field whose value is not the one that the workdir was made with.

  old, new: None in a version that has no such field.
  """

  name: str
  old: Any
  new: Any

  def __str__(self) -> str:
    old = "nothing" if self.old is None else repr(self.old)
    return f"config.{self.name}={old}, now {'gone' if self.new is None else repr(self.new)}"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """The values of a config by their dotted names."""
  flat = {}
  for name, value in tree.items():
    if isinstance(value, Mapping):
      flat |= flatten(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = value
  return flat


def find_changes(written: Flat, wanted: Flat) -> list[Change]:
  """The fields that differ, sorted by name.

  A field that one version does not have is no difference while the other's value is the default,
  with which a new field leaves everything as it was before. Of a field that is declared no more,
  that is "".
  """
  declared = declared_fields(str(wanted.get("recipe", "")))
  return [
    Change(name=name, old=written.get(name), new=wanted.get(name))
    for name in sorted({*written, *wanted})
    if not _same(name, written, wanted, declared)
  ]


def _same(name: str, written: Flat, wanted: Flat, declared: Mapping[str, schema.Field]) -> bool:
  """Whether a field, which at least one of the versions has, means the same in both."""
  if name in written and name in wanted:
    one, other = (buckets.as_addresses(json.dumps(flat[name])) for flat in (written, wanted))
    return one == other
  value = written.get(name, wanted.get(name))
  if name not in declared:
    return value == ""
  default = declared[name].default
  return default is not schema.REQUIRED and value == json.loads(json.dumps(default))


def refusals(workdir: Path, wanted: Flat, changes: Sequence[Change]) -> list[str]:
  """Says of each change that the workdir does not allow why, and what to do. One line each."""
  steps = {stage: last_step(workdir / "checkpoints" / stage) for stage in STAGES}
  declared = declared_fields(str(wanted.get("recipe", "")))
  lines = []
  for change in changes:
    when = _when(change.name, wanted, declared)
    if problem := _problem(workdir, change, when, wanted, steps):
      lines.append(f"{workdir / 'config.json'}: written with {change}; {problem}")
  return lines


def check(workdir: Path, wanted: Flat, changes: Sequence[Change]) -> None:
  """Raises InputError naming the first change that the workdir does not allow."""
  if lines := refusals(workdir, wanted, changes):
    more = f" ({len(lines) - 1} more fields are refused)" if len(lines) > 1 else ""
    raise errors.InputError(lines[0] + more)


def describe(workdir: Path, written: Flat, wanted: Flat, changes: Sequence[Change]) -> list[str]:
  """Lines for the log: which fields change, and what that does to the learning rate."""
  if not changes:
    return []
  fields = "; ".join(map(str, changes))
  return [
    f"{workdir / 'config.json'}: changes {fields}",
    *_new_learning_rates(workdir, written, wanted),
  ]


def last_step(directory: Path) -> int:
  """The step of the last complete checkpoint of a stage; 0 if there is none.

  directory: of the stage's checkpoints.
  """
  names = [path.name for path in directory.iterdir()] if directory.is_dir() else []
  return max((int(name) for name in names if name.isdigit()), default=0)


def declared_fields(recipe: str) -> dict[str, schema.Field]:
  """The declarations of all fields that a recipe's config may have, by dotted name."""
  from vr_jax.envs import registry  # here, because it imports JAX

  fields = {field.name: field for field in schema.fields(config_fields.RunConfig)}
  for name, section in optional_sections.OPTIONAL.items():
    fields |= {field.name: field for field in schema.fields(section, f"{name}.")}
  if recipe:
    environment = registry.environment_class(recipe)
    fields |= {field.name: field for field in schema.fields(environment, "env.")}
  return fields


def _when(name: str, wanted: Flat, declared: Mapping[str, schema.Field]) -> str:
  """Until when a field may change: one of schema.CHANGES."""
  parts = name.split(".")
  # A mapping, such as model.architecture, is one field.
  owners = [".".join(parts[:count]) for count in range(len(parts), 0, -1)]
  when = next((declared[owner].change for owner in owners if owner in declared), "never")
  # A tokenizer that the data stage trains has read the environment's texts: they must not change.
  reads_env = wanted.get("model.tokenizer") == "trained" and name.startswith("env.")
  return "never" if reads_env and when == "before sft" else when


def _problem(
  workdir: Path, change: Change, when: str, wanted: Flat, steps: Mapping[str, int]
) -> str:
  """Why the change is refused, and what to do; empty if it is allowed."""
  checkpoints, stage = workdir / "checkpoints", change.name.split(".")[0]
  other = "or choose another --workdir"
  if when not in schema.CHANGES:
    raise ValueError(f"config.{change.name}: declared to change {when!r}, not in {schema.CHANGES}")
  one_has_it = None in (change.old, change.new)
  give = "go on with the version that wrote it" if one_has_it else "give that value"
  if when == "never":
    return f"the data were made with it: {give}, {other}"
  if when == "before rl" and steps["rl"]:
    return (
      f"rl has been trained with it for {steps['rl']} steps: {give}, delete "
      f"{checkpoints / 'rl'} to train anew, {other}"
    )
  if when == "before sft" and any(steps.values()):
    return f"it was trained with: {give}, delete {checkpoints} to train anew, {other}"
  if when == "from here on":
    if stage == "sft" and steps["rl"] and not wanted.get("rl.init_checkpoint"):
      return (
        f"rl has started from the warm start as it is: {give}, delete "
        f"{checkpoints / 'rl'} to train it anew, {other}"
      )
    if change.name in ("sft.steps", "rl.steps") and int(wanted[change.name]) < steps[stage]:
      return f"{steps[stage]} steps are done: give {steps[stage]} or more, {other}"
  return ""


def _new_learning_rates(workdir: Path, written: Flat, wanted: Flat) -> list[str]:
  """A line for each stage that has begun and whose next step gets another learning rate."""
  from vr_jax.train import train_state  # here, because it imports JAX

  lines = []
  for section in (*STAGES, "critic"):
    stage = "rl" if section == "critic" else section
    done = last_step(workdir / "checkpoints" / stage)
    if not done or any(f"{section}.learning_rate" not in flat for flat in (written, wanted)):
      continue
    updates = done * int(written.get(f"{stage}.num_iterations", 1))  # that have been made
    schedules = (
      train_state.learning_rate_schedule(_schedule_fields(flat, section, stage))
      for flat in (written, wanted)
    )
    before, after = (float(np.asarray(schedule(updates))) for schedule in schedules)
    if before != after:
      steps = wanted[f"{stage}.steps"]
      lines.append(
        f"{section}: step {done + 1} has a learning rate of {after:.3g} instead of {before:.3g} "
        f"({section}.schedule={wanted[f'{section}.schedule']}, {steps} steps)"
      )
  return lines


def _schedule_fields(flat: Flat, section: str, stage: str) -> ml_collections.ConfigDict:
  """The fields that a learning rate schedule reads."""
  names = ("learning_rate", "schedule", "warmup_steps")
  return ml_collections.ConfigDict(
    {
      **{name: flat[f"{section}.{name}"] for name in names},
      "steps": flat[f"{stage}.steps"],
      "num_iterations": flat.get(f"{stage}.num_iterations", 1),
    }
  )
