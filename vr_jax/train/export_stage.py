"""Stage `export`: writes the last checkpoint of a run in the format of transformers.

`config.model.pretrained` reads such a directory as well.
"""

from collections.abc import Iterator, Mapping
import contextlib
import json
from pathlib import Path
import shutil
from typing import Any

import ml_collections

from vr_jax import errors
from vr_jax.models.common import export as export_lib
from vr_jax.parallel import processes
from vr_jax.train import console, initialization, paths, run_context

RECORD = "vr_jax.json"  # file of an export that says which checkpoint it is of
STAGES = ("rl", "sft")  # the later stage first


def export(config: ml_collections.ConfigDict, workdir: Path) -> None:
  """Writes config.export.directory (empty: <workdir>/export).

  A directory that exists and is of the same checkpoint is left as it is; one of an earlier
  checkpoint of this workdir is replaced.

  Adapters are first written alone, in PEFT's format, to a directory with the suffix `-adapter`;
  then they are merged into the model. All processes of a run must call this; process 0 writes.

  Raises:
    InputError: there is no checkpoint, or the directory exists and is no export of this workdir.
  """
  context = run_context.make_run_context(config, workdir, judged=False)
  target = Path(config.export.directory) if config.export.directory else workdir / "export"
  where, step = find_checkpoint(context, workdir, config.export.checkpoint)
  stage = where.name
  checkpoint = {"checkpoints": str(where.absolute()), "step": step, "dtype": config.export.dtype}
  if _record(target) == checkpoint:
    console.print_line(f"export: {target} is that of {stage} step {step}")
    return
  params, record = (
    initialization.load_params(context, where),
    {RECORD: json.dumps(checkpoint) + "\n"},
  )
  alone = target.with_name(f"{target.name}-adapter")
  if context.adapters and _record(alone) != checkpoint:
    base = config.model.pretrained
    with _replace_own(alone, checkpoint) as path:
      export_lib.save_adapter(
        params, path, adapters=context.adapters, base=base, family=context.family, files=record
      )
  with (
    console.doing(f"writing {target}", announce=True),
    _replace_own(target, checkpoint) as path,
  ):
    export_lib.save_pretrained(
      params,
      path,
      config=context.model,
      family=context.family,
      adapters=context.adapters,
      source=config.model.pretrained or None,
      files={**_tokenizer_files(context, workdir), **record},
      dtype=config.export.dtype,
    )
  console.print_line(f"export: {stage} step {step} -> {target}")


def find_checkpoint(context: run_context.RunContext, workdir: Path, which: str) -> tuple[Path, int]:
  """Finds the directory of the checkpoints to use, and the step of the last one in it.

  which: "last" is the last checkpoint of the latest stage that has one; "best" the one that RL kept
    by rl.eval_every.

  Raises InputError if there is none.
  """
  names = ("rl_best",) if which == "best" else STAGES
  for name in names:
    where = workdir / "checkpoints" / name
    step = initialization.last_step(context, where) if where.is_dir() else None
    if step is not None:
      return where, step
  todo = "train with --config.rl.eval_every" if which == "best" else "run --mode=sft or --mode=rl"
  raise errors.InputError(
    f"{workdir / 'checkpoints'}: holds no {which if which == 'best' else 'complete'} checkpoint; "
    f"{todo} first"
  )


@contextlib.contextmanager
def _replace_own(target: Path, checkpoint: Mapping[str, Any]) -> Iterator[Path]:
  """Yields the directory to write: `target`, or another one that takes the place of `target`.

  The latter where `target` is the export of another checkpoint of the same workdir. It stays until
  the new one is complete. All processes of a run must call this.

  checkpoint: the record of the new export.
  """
  there = _record(target) or {}
  of, new_of = (Path(str(record.get("checkpoints", ""))) for record in (there, checkpoint))
  if of.parent != new_of.parent or (of, there["step"]) == (new_of, checkpoint["step"]):
    yield target
    return
  new = target.with_name(f"{target.name}-new")
  processes.first_alone(f"{new}: old", lambda: shutil.rmtree(new, ignore_errors=True))
  yield new

  def swap() -> None:
    shutil.rmtree(target)
    new.rename(target)

  processes.first_alone(f"{new}: done", swap)


def _record(target: Path) -> dict[str, Any] | None:
  """Reads which checkpoint an export is of; None if it has no such record."""
  try:
    return json.loads((target / RECORD).read_text(encoding="utf-8"))
  except (OSError, ValueError):
    return None


def _tokenizer_files(context: run_context.RunContext, workdir: Path) -> dict[str, str]:
  """The tokenizer's files, by name; none if those of the pretrained model are copied."""
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
