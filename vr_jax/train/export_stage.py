"""Stage `export`: writes the last checkpoint of a run in the format of transformers.

`config.model.pretrained` reads such a directory as well.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import json
from pathlib import Path
import shutil
from typing import Any

from jaxtyping import PyTree
import ml_collections
import numpy as np

from vr_jax import atomic, buckets, errors, plain_json
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
  context = run_context.make_run_context(config, workdir, judged=False, read=False)
  target = Path(config.export.directory) if config.export.directory else workdir / "export"
  alone = target.with_name(f"{target.name}-adapter")

  def finish_moves() -> None:
    for path in (target, alone):
      atomic.finish_move(path)

  processes.first_alone(f"{target}: moves", finish_moves)
  where, step = find_checkpoint(context, workdir, config.export.checkpoint)
  stage = where.name
  address = buckets.as_addresses(str(where.absolute()))
  checkpoint = {"checkpoints": address, "step": step, "dtype": config.export.dtype}
  if _record(target) == checkpoint:
    console.print_line(f"export: {target} is that of {stage} step {step}")
    return
  params, record = (
    initialization.load_params(context, where),
    {RECORD: json.dumps(checkpoint) + "\n"},
  )
  if context.adapters and _record(alone) != checkpoint:
    base = config.model.pretrained
    with _replace_own(alone, checkpoint) as path:
      export_lib.save_adapter(
        params, path, adapters=context.adapters, base=base, family=context.family, files=record
      )
  with (
    console.doing(f"writing {target}", announce=True),
    console.progress("export") as tick,
    _replace_own(target, checkpoint) as path,
  ):
    write_model(params, path, context, workdir, files=record, progress=tick)
  console.print_line(f"export: {stage} step {step} -> {target}")


def write_model(
  params: PyTree,
  target: Path,
  context: run_context.RunContext,
  workdir: Path,
  *,
  files: Mapping[str, str] | None = None,
  progress: Callable[[int], None] = lambda pieces: None,
) -> None:
  """Writes parameters, and all that transformers needs to reply as the run's evaluation does.

  Adapters are merged into the weights. All processes of a run must call this.

  files: more text files by name.
  progress: as of `common.export.save_pretrained`.

  Raises InputError as `common.export.save_pretrained` does.
  """
  config = context.config
  export_lib.save_pretrained(
    params,
    target,
    config=context.model,
    family=context.family,
    adapters=context.adapters,
    source=config.model.pretrained or None,
    files={**_texts(context, workdir), **(files or {})},
    dtype=config.export.dtype,
    progress=progress,
  )


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
    names = [{path.name for path in directory.iterdir()} for directory in (target, new)]
    if others := sorted(names[0] - names[1]):
      shutil.rmtree(new)
      raise errors.InputError(
        f"{target}: holds {others[0]}, which is not of the export; move it, or give another "
        "config.export.directory"
      )
    shutil.rmtree(target)
    atomic.move_directory(new, target)

  processes.first_alone(f"{new}: done", swap)


def _record(target: Path) -> dict[str, Any] | None:
  """Reads which checkpoint an export is of; None if it has no such record."""
  try:
    text = (target / RECORD).read_text(encoding="utf-8")
    record = plain_json.parse(buckets.as_addresses(text).encode())
  except (OSError, ValueError):
    return None
  return record if isinstance(record, dict) else None


def _texts(context: run_context.RunContext, workdir: Path) -> dict[str, str | None]:
  """Texts of the files by which transformers makes prompts and samples replies as the run does.

  Keys are names of files. None: the pretrained model's file must not be copied.
  """
  model, family = context.config.model, context.family
  texts = {
    **family.processor_files(context.processor, _frame_sampling(context.config.data)),
    "generation_config.json": _json(_generation_fields(context)),
  }
  if model.pretrained and not model.tokenizer:
    return texts
  path = paths.tokenizer_path(context.config, workdir)
  path = path / "tokenizer.json" if path.is_dir() else path
  texts["tokenizer.json"] = path.read_text(encoding="utf-8")
  if not model.pretrained:
    about = {
      "tokenizer_class": "PreTrainedTokenizerFast",
      "eos_token": family.end_token,
      "pad_token": family.pad_token,
      "padding_side": "left",  # replies of a batch start at one index
      "clean_up_tokenization_spaces": False,
    }
    texts["tokenizer_config.json"] = _json(about)
  return texts


def _frame_sampling(data: ml_collections.ConfigDict) -> dict[str, Any]:
  """Fields of transformers' video processors that choose frames of a whole video as `data` does.

  A pool has none: frames are chosen turn by turn.
  """
  if data.sampling == "uniform":
    return {"do_sample_frames": True, "num_frames": data.frames}
  if data.sampling == "fps":
    bounds = {"min_frames": data.min_frames, "max_frames": data.max_frames}
    return {"do_sample_frames": True, "fps": data.sample_fps, **bounds}
  return {}


def _generation_fields(context: run_context.RunContext) -> dict[str, Any]:
  """Fields of generation_config.json: replies are sampled as in the run's evaluation."""
  decoding = context.decoding(temperature=context.config.eval.temperature)
  sampled = {
    "temperature": decoding.temperature,
    "top_p": decoding.top_p,
    "top_k": decoding.top_k,
    **({"min_p": decoding.min_p} if decoding.min_p else {}),
  }
  return {
    "eos_token_id": list(decoding.stop_tokens),
    "pad_token_id": context.processor.pad_token,
    "max_new_tokens": decoding.max_new_tokens,
    "suppress_tokens": np.flatnonzero(~np.asarray(context.allowed_tokens)).tolist(),
    "do_sample": decoding.temperature > 0,
    **(sampled if decoding.temperature > 0 else {}),
  }


def _json(fields: dict[str, Any]) -> str:
  return json.dumps(fields, indent=2) + "\n"
