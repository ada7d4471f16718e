"""Stage `eval`: evaluates the policy before and after RL on held-out videos; writes the report."""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any

import ml_collections
from rich import console as rich_console
from rich import table as rich_table

from vr_jax import atomic
from vr_jax.envs import metric
from vr_jax.eval import evaluate as evaluate_lib
from vr_jax.eval import report
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.train import config_changes, console, initialization, run_context, vision_features


def evaluate(config: ml_collections.ConfigDict, workdir: Path) -> None:
  """Evaluates the policy before RL, and after RL if there is a checkpoint.

  Writes eval/<name>.json and report.html, and prints a table.
  """
  context = run_context.make_run_context(config, workdir)
  mesh_lib.check_batch(config.eval.batch_size, context.mesh, "config.eval.batch_size")
  trained = workdir / "checkpoints" / "rl"
  with contextlib.closing(context.environment):
    results = [
      _evaluate(
        context, workdir, "before_rl", "Before RL", initialization.find_start(context, workdir)
      )
    ]
    if trained.is_dir():
      results.append(_evaluate(context, workdir, "after_rl", "After RL", trained))
    else:  # an earlier evaluation is of checkpoints that were deleted
      (workdir / "eval" / "after_rl.json").unlink(missing_ok=True)
  with console.doing("writing the report", announce=True):
    path = report.write_report(workdir)
  _print_table(results)
  console.print_line(f"report: {path}")


def _evaluate(
  context: run_context.RunContext, workdir: Path, name: str, title: str, where: Path | None
) -> dict[str, Any]:
  """Evaluates the last checkpoint in `where` (None: fresh parameters) and writes eval/<name>.json.

  If the file already has the result of this config and checkpoint, it is read instead.
  """
  step = 0 if where is None else initialization.last_step(context, where)
  path = workdir / "eval" / f"{name}.json"
  made_of = hashlib.sha256(
    json.dumps([_fields(context.config), str(where), step], sort_keys=True).encode()
  ).hexdigest()
  if (result := _read_complete(path, made_of)) is None:
    params = (
      initialization.fresh_params(context)
      if where is None
      else initialization.load_params(context, where)
    )
    stage = "base" if where is None else where.name
    with vision_features.open_cache(context, params, workdir) as cache:
      measured = evaluate_lib.evaluate(context, params, name=title.lower(), cache=cache)
    about = {"name": name, "title": title, "stage": stage, "step": step, "made_of": made_of}
    result = {**about, **measured}
    _write(path, result)
  return result


def _fields(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The fields that an evaluation of a given checkpoint depends on, by dotted name."""
  flat = config_changes.flatten(config.to_dict())
  declared = config_changes.declared_fields(config.recipe)
  later = ("any time", "rounding", "from here on")
  return {
    name: value
    for name, value in flat.items()
    if name.startswith("eval.") or name not in declared or declared[name].change not in later
  }


def _read_complete(path: Path, made_of: str) -> dict[str, Any] | None:
  """Reads an earlier evaluation, if it is of this config and checkpoint."""
  try:
    result = json.loads(path.read_text())
  except (OSError, json.JSONDecodeError):
    return None  # missing or incomplete: evaluate again
  return result if result.get("made_of") == made_of else None


def _write(path: Path, result: dict[str, Any]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  atomic.write_json_lines(path, [result])


def _print_table(results: list[dict[str, Any]]) -> None:
  table = rich_table.Table(title="held-out videos")
  table.add_column("")
  for result in results:
    table.add_column(result["title"], justify="right")
  shown_as = {n: metric.Metric(**each) for r in results for n, each in r["shown_as"].items()}
  named = dict.fromkeys(name for result in results for name in result["metrics"])
  for name in [*(name for name in shown_as if name in named), *named]:
    about, part = metric.by_name(name, shown_as)
    if part or metric.is_about_another(name) or name not in named:
      continue
    del named[name]
    values = [result["metrics"].get(name) for result in results]
    chance = results[-1]["metrics"].get(f"{name}_chance")
    label = f"{about.title} (chance {chance:.3f})" if chance else about.title
    table.add_row(label, *("–" if value is None else f"{value:.3f}" for value in values))
  rich_console.Console().print(table)
