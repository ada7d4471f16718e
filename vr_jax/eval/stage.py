"""Stage `eval`: evaluates the policy before and after RL on held-out videos; writes the report.

eval/<name>.json    {"name", "title", "stage", "step", "made_of", "device", "seconds"} and what
                    evaluate.evaluate returns, without the replies
eval/<name>.jsonl   the replies
eval/frames.jsonl   frames of the questions that the report shows
report.html
"""

from collections.abc import Sequence
import contextlib
import hashlib
import json
from pathlib import Path
import time
from typing import Any

import ml_collections
from rich import console as rich_console
from rich import table as rich_table

from vr_jax import atomic, buckets, plain_json
from vr_jax.data import batches, examples, frame_store
from vr_jax.eval import evaluate as evaluate_lib
from vr_jax.eval import (
  evaluated_replies,
  report,
  report_changes,
  report_data,
  report_facts,
  report_table,
)
from vr_jax.parallel import processes
from vr_jax.train import (
  config_changes,
  console,
  export_stage,
  initialization,
  model_setup,
  paths,
  run_context,
  vision_features,
)
from vr_jax.train import workdir as workdir_lib


def evaluate(config: ml_collections.ConfigDict, workdir: Path) -> None:
  """Evaluates the policy before RL, and after RL if there is a checkpoint.

  Writes the files of eval/ and report.html, and prints a table. Several processes play the episodes
  together; the first one writes.
  """
  context = run_context.make_run_context(config, workdir)
  model_setup.check_batch(config, context.mesh, "eval")
  trained, best = workdir / "checkpoints" / "rl", config.eval.checkpoint == "best"
  with contextlib.closing(context.environment):
    start = initialization.find_start(context, workdir)
    _evaluate(context, workdir, "before_rl", "Before RL", start)
    if trained.is_dir():
      where, _ = export_stage.find_checkpoint(context, workdir, "best") if best else (trained, 0)
      _evaluate(context, workdir, "after_rl", "After RL (best)" if best else "After RL", where)
    elif processes.is_first():  # an earlier evaluation is of checkpoints that were deleted
      for suffix in (".json", ".jsonl"):
        (workdir / "eval" / f"after_rl{suffix}").unlink(missing_ok=True)
  processes.first_alone("report", lambda: _write_report(context, workdir))


def _write_report(context: run_context.RunContext, workdir: Path) -> None:
  """Writes report.html from the files of eval/, and prints a table."""
  with console.doing("writing the report", announce=True):
    _write_frames(context, workdir)
    path = report.write_report(workdir)
  run = report_data.read_run(workdir)
  _print_table(run.evaluations)
  if warning := report_facts.warning(run):
    console.print_line(f"rl: {warning}")
  console.print_line(f"report: {path} ({path.stat().st_size / 2**20:.1f} MiB)")


def _evaluate(
  context: run_context.RunContext, workdir: Path, name: str, title: str, where: Path | None
) -> None:
  """Evaluates the last checkpoint in `where` (None: fresh parameters) and writes eval/<name>.json.

  Does nothing if the files already have the result of this config and checkpoint.
  """
  step = 0 if where is None else initialization.last_step(context, where)
  path = workdir / "eval" / f"{name}.json"
  made_of = _made_of(context.config, where, step)
  if processes.all_min(int(_is_complete(path, made_of))):
    return
  begun = time.monotonic()
  run_context.freeze_step_embedder(context, lambda: initialization.initial_params(context, workdir))
  params = (
    initialization.fresh_params(context)
    if where is None
    else initialization.load_params(context, where)
  )
  stage = "base" if where is None else where.name.removesuffix("_best")
  with vision_features.open_cache(context, params, workdir) as cache:
    measured = evaluate_lib.evaluate(context, params, name=title.lower(), cache=cache)
  if not processes.is_first():
    return
  replies = measured.pop("replies")
  about = {"name": name, "title": title, "stage": stage, "step": step, "made_of": made_of}
  about |= {"device": workdir_lib.device(), "seconds": time.monotonic() - begun}
  path.parent.mkdir(parents=True, exist_ok=True)
  atomic.write_json_lines(path.with_suffix(".jsonl"), replies)
  atomic.write_json_lines(path, [{**about, **measured}])


def _made_of(config: ml_collections.ConfigDict, where: Path | None, step: int | None) -> str:
  """A hash of what an evaluation depends on; the same on hosts that mount buckets elsewhere."""
  about = json.dumps([evaluation_fields(config), str(where), step], sort_keys=True)
  return hashlib.sha256(buckets.as_addresses(about).encode()).hexdigest()


def evaluation_fields(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The fields that an evaluation of a given checkpoint depends on, by dotted name."""
  flat = config_changes.flatten(config.to_dict())
  declared = config_changes.declared_fields(config.recipe)
  later = ("any time", "rounding", "from here on")
  return {
    name: value
    for name, value in flat.items()
    if name != "eval.checkpoint"
    and (name.startswith("eval.") or name not in declared or declared[name].change not in later)
  }


def _is_complete(path: Path, made_of: str) -> bool:
  """Whether there is an earlier evaluation of this config and checkpoint, with its replies."""
  try:
    result = plain_json.parse(path.read_bytes())
    replies = path.with_suffix(".jsonl").read_bytes()
  except (OSError, ValueError):
    return False  # missing or incomplete: evaluate again
  if not isinstance(result, dict):
    return False
  return result.get("made_of") == made_of and replies.count(b"\n") == result.get("examples")


def _write_frames(context: run_context.RunContext, workdir: Path) -> None:
  """Chooses the questions that the report shows, and writes the frames that their replies saw."""
  evaluations = report_data.read_run(workdir).evaluations
  asked = {each.id: each for each in examples.ExampleSource(context.data, "test")}
  outcomes = {k: v for k, v in report_changes.outcomes(evaluations).items() if k in asked}
  chosen = report_changes.choose_shown(outcomes, context.config.eval.report_samples)
  store = frame_store.FrameStore(context.data / "frames")
  rule = paths.sampling_rule(context.config.data)
  seen: dict[str, list[int]] = {identity: [] for identity in chosen}
  for reply in (reply for each in evaluations for reply in each.replies if reply.id in seen):
    seen[reply.id] += reply.frames_seen
  atomic.write_json_lines(
    workdir / "eval" / evaluated_replies.FRAMES,
    (
      evaluated_replies.frames_to_json(batches.select_clip(asked[identity], store, rule), frames)
      for identity, frames in seen.items()
    ),
  )


def _print_table(evaluations: Sequence[report_data.Evaluation]) -> None:
  """Prints the metrics of all evaluations, as the report has them, without their parts."""
  table = rich_table.Table(title="held-out videos, with 95 % intervals", title_justify="left")
  table.add_column("")
  for evaluation in evaluations:
    table.add_column(evaluation.title, justify="right")
  if len(evaluations) > 1:
    table.add_column("Change", justify="right")
  for row in report_table.results(evaluations)["rows"]:
    if not row["part"]:
      cells = [*row["cells"], *([row["change"]] if row["change"] else [])]
      label = "\n".join(filter(None, (row["title"], row["chance"])))
      texts = ("\n".join(filter(None, (each["number"], each["interval"]))) for each in cells)
      table.add_row(label, *texts)
  rich_console.Console().print(table)
  for evaluation in evaluations:
    if failed := evaluation.failed:
      console.print_line(
        f"{evaluation.title.lower()}: {len(failed)} of {evaluation.examples} questions failed, "
        f"which counts as wrong; first, {failed[0]}"
      )
