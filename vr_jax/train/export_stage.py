"""Stage `export`: the last checkpoint of a run as a directory that transformers, and `config.model.pretrained`, read."""

import json
from pathlib import Path
from typing import Any

import ml_collections

from vr_jax import errors
from vr_jax.models.common import export as export_lib
from vr_jax.train import console, initialization, paths, run_context

RECORD = "vr_jax.json"  # in an export: which checkpoint it is
STAGES = ("rl", "sft")  # the last comes first


def export(config: ml_collections.ConfigDict, workdir: Path) -> None:
  """Writes config.export.directory (empty: <workdir>/export). One that is there of the same checkpoint is left as it is.

  Adapters are merged into the model, and before that written alone, as PEFT's, into the same directory with `-adapter`
  behind, which is kept likewise: an export that ended between the two goes on. All processes of a run call this;
  process 0 writes.

  Raises:
    InputError: there is no checkpoint, or the directory is there and of something else.
  """
  context = run_context.make_run_context(config, workdir, judged=False)
  target = Path(config.export.directory) if config.export.directory else workdir / "export"
  stage, step = last_stage(context, workdir)
  where = workdir / "checkpoints" / stage
  of = {"checkpoints": str(where.absolute()), "step": step, "dtype": config.export.dtype}
  if _record(target) == of:
    console.print_line(f"export: {target} is that of {stage} step {step}")
    return
  params, record = initialization.load_params(context, where), {RECORD: json.dumps(of) + "\n"}
  alone = target.with_name(f"{target.name}-adapter")
  if context.adapters and _record(alone) != of:
    base = config.model.pretrained
    export_lib.save_adapter(
      params, alone, adapters=context.adapters, base=base, family=context.family, files=record
    )
  export_lib.save_pretrained(
    params,
    target,
    config=context.model,
    family=context.family,
    adapters=context.adapters,
    source=config.model.pretrained or None,
    files={**_tokenizer_files(context, workdir), **record},
    dtype=config.export.dtype,
  )
  console.print_line(f"export: {stage} step {step} -> {target}")


def last_stage(context: run_context.RunContext, workdir: Path) -> tuple[str, int]:
  """The stage that went furthest, and its last complete step. Raises InputError where there is none."""
  for stage in STAGES:
    where = workdir / "checkpoints" / stage
    step = initialization.last_step(context, where) if where.is_dir() else None
    if step is not None:
      return stage, step
  raise errors.InputError(
    f"{workdir / 'checkpoints'}: holds no complete checkpoint; run --mode=sft or --mode=rl first"
  )


def _record(target: Path) -> dict[str, Any] | None:
  """What an export says it is of; None where it says nothing."""
  try:
    return json.loads((target / RECORD).read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return None


def _tokenizer_files(context: run_context.RunContext, workdir: Path) -> dict[str, str]:
  """The tokenizer of a run whose model comes from nowhere else, as transformers reads one."""
  model = context.config.model
  if model.pretrained and not model.tokenizer:
    return {}
  path = paths.tokenizer_path(context.config, workdir)
  path = path / "tokenizer.json" if path.is_dir() else path
  files = {"tokenizer.json": path.read_text(encoding="utf-8")}
  if model.pretrained:
    return files
  end, pad = context.family.end_token, context.family.pad_token
  stop = list(context.processor.stop_tokens)
  about = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end, "pad_token": pad}
  sampling = {"eos_token_id": stop, "pad_token_id": context.processor.pad_token}
  texts = {"tokenizer_config.json": about, "generation_config.json": sampling}
  return files | {name: json.dumps(fields, indent=2) + "\n" for name, fields in texts.items()}
