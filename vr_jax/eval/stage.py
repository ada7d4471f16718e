"""Stage `eval`: the policy before and after RL on held-out videos, a table, and the report."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import ml_collections
from rich import console as rich_console
from rich import table as rich_table

from vr_jax.eval import evaluate as evaluate_lib
from vr_jax.eval import report
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.train import console, rl_loop
from vr_jax.train import parts as parts_lib

ROWS = (
  ("accuracy", "accuracy"),
  ("process reward", "process_reward"),
  ("trace consistency", "trace_consistency"),
  ("think-answer mismatch", "think_answer_mismatch"),
  ("format", "format"),
  ("blind accuracy", "blind_accuracy"),
  ("shuffled accuracy", "shuffled_accuracy"),
  ("reply tokens", "reply_tokens"),
)


def evaluate(config: ml_collections.ConfigDict, workdir: Path) -> None:
  """Evaluates what each stage left, writes eval/<name>.json and report.html, and prints the table."""
  parts = parts_lib.build(config, workdir)
  mesh_lib.check_batch(config.eval.batch, parts.mesh, "config.eval.batch")
  stages = [
    ("before_rl", "Before RL", "sft", Path(config.rl.initial or workdir / "checkpoints" / "sft")),
    ("after_rl", "After RL", "rl", workdir / "checkpoints" / "rl"),
  ]
  results = []
  for name, title, stage, where in stages:
    if not where.is_dir():
      continue
    step = rl_loop.last_step(parts, where)
    path = workdir / "eval" / f"{name}.json"
    made_of = _fingerprint(config, where, step)
    if (found := _complete(path, made_of)) is None:
      params = rl_loop.load_params(parts, where)
      result = evaluate_lib.evaluate(parts, params, name=title.lower())
      found = {"name": name, "title": title, "stage": stage, "step": step, **made_of, **result}
      _write(path, found)
    results.append(found)
  path = report.write_report(workdir)
  _print_table(results)
  console.say(f"report: {path}")


def _fingerprint(config: ml_collections.ConfigDict, where: Path, step: int) -> dict[str, Any]:
  text = json.dumps([config.to_dict(), str(where), step], sort_keys=True)
  return {"made_of": hashlib.sha256(text.encode()).hexdigest()}


def _complete(path: Path, made_of: dict[str, Any]) -> dict[str, Any] | None:
  """The evaluation that is there already, if it is of this config and checkpoint."""
  try:
    found = json.loads(path.read_text())
  except (OSError, json.JSONDecodeError):
    return None  # absent, or not whole: it is made again
  return found if found.get("made_of") == made_of["made_of"] else None


def _write(path: Path, result: dict[str, Any]) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  aside = path.with_suffix(".partial")
  aside.write_text(json.dumps(result) + "\n")
  os.replace(aside, path)


def _print_table(results: list[dict[str, Any]]) -> None:
  table = rich_table.Table(title="held-out videos")
  table.add_column("")
  for result in results:
    table.add_column(result["title"], justify="right")
  for label, name in ROWS:
    values = [result["metrics"].get(name) for result in results]
    if any(value is not None for value in values):
      table.add_row(label, *("–" if value is None else f"{value:.3f}" for value in values))
  rich_console.Console().print(table)
