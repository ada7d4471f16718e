"""Which weights a policy has: replies of others must not mix with its own."""

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from vr_jax.train import run_context

_PIECE = 1 << 16  # bytes of a file of weights at its start and end


def find(
  context: "run_context.RunContext", workdir: Path | None, *, before_rl: bool
) -> Path | None:
  """Where the weights of a policy are; None if they are random. The arguments: ask.load_policy."""
  # As in main.run: a mistyped flag should not wait until JAX has been imported.
  from vr_jax.train import export_stage, initialization

  where = None
  if workdir is not None and before_rl:
    where = initialization.find_start(context, workdir)
  elif workdir is not None:
    where, _ = export_stage.find_checkpoint(context, workdir, context.config.eval.checkpoint)
  if where is None:
    pretrained = context.config.model.pretrained
    return Path(pretrained) if pretrained else None
  return where / str(initialization.last_step(context, where))


def fingerprint(place: Path | None) -> str:
  """A hash of a file of weights, or those of a directory: names, sizes, bytes at start and end.

  None: the weights are random, and the seed says which.
  """
  digest = hashlib.sha256()
  if place is None:
    return ""
  files = [place] if place.is_file() else place.rglob("*")
  for path in sorted(path for path in files if path.is_file()):
    with path.open("rb") as file:
      size = file.seek(0, os.SEEK_END)
      digest.update(f"{path.relative_to(place)} {size} ".encode())
      for start in (0, max(0, size - _PIECE)):
        file.seek(start)
        digest.update(file.read(_PIECE))
  return digest.hexdigest()[:16]
