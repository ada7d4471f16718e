"""A run whose policy has learnt nothing, for commands that load one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_collections
import tokenizers

from vr_jax.models.qwen2_5_vl import tokenizer as tokenizer_lib
from vr_jax.train import initialization, paths, run_context
from vr_jax.train import workdir as workdir_lib


def make_run(
  workdir: Path,
  config: ml_collections.ConfigDict,
  *,
  change: Callable[[Any], Any] = lambda params: params,
  tokenizer: tokenizers.Tokenizer | None = None,
) -> Path:
  """Makes a run that got as far as its third supervised step; nothing is learnt, no data left.

  change: changes the random parameters.
  tokenizer: None: one that has a token for each byte.
  """
  workdir_lib.claim(workdir, config, "sft")
  where = paths.tokenizer_path(config, workdir)
  where.parent.mkdir(parents=True)
  size = config.model.architecture.text_config.vocab_size
  (tokenizer or tokenizer_lib.train_tokenizer([], size)).save(str(where))
  context = run_context.make_run_context(config, workdir, judged=False, read=False)
  store = initialization.open_checkpoints(context, workdir / "checkpoints" / "sft")
  store.save(
    3,
    {"params": change(initialization.fresh_params(context))},
    {"recent": [], "validation": [1.0, 0]},
  )
  store.close()
  return workdir
