"""Sends what a run logs to Weights & Biases, where config.log.wandb names a project.

The key comes from the environment (WANDB_API_KEY) or from `wandb login`; WANDB_MODE=offline keeps
everything in <workdir>/wandb. All stages of a workdir, and all its restarts, are one run. Its name
is that of the workdir; WANDB_ENTITY and the package's other variables apply.
"""

from collections.abc import Mapping
import contextlib
import importlib
import importlib.util
import math
from pathlib import Path
import sys
from typing import Any
import uuid

from jaxtyping import UInt8
import ml_collections
import numpy as np

from vr_jax import errors
from vr_jax.train import rollout_samples


def check(project: str) -> None:
  """Raises InputError if a project is given and the package is missing."""
  found = importlib.util.find_spec("wandb") if project else None
  # A directory of that name, as a run makes one, counts as a package without origin.
  if project and (found is None or found.origin is None):
    raise errors.InputError(
      f"--config.log.wandb={project}: needs the package wandb; pip install 'vr_jax[wandb]'"
    )


class WandbLog:
  """One stage of a run. Metrics are called <stage>/<name>, over <stage>/step."""

  def __init__(self, workdir: Path, stage: str, config: ml_collections.ConfigDict) -> None:
    """Starts or resumes the run of a workdir.

    Raises InputError if Weights & Biases refuses it: no key, no such entity, no connection.
    """
    project = config.log.wandb
    check(project)
    self._wandb, self._stage = importlib.import_module("wandb"), stage
    try:
      self._run = self._wandb.init(
        project=project,
        id=_run_id(workdir),
        resume="allow",
        name=workdir.absolute().name,
        dir=str(workdir),
        config=config.to_dict(),
        settings=self._wandb.Settings(console="off"),
      )
    except self._wandb.Error as error:
      reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
      raise errors.InputError(
        f"--config.log.wandb={project}: {reason}; set WANDB_API_KEY, or WANDB_MODE=offline"
      ) from error
    self._run.define_metric(f"{stage}/step")
    self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")

  def write_scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Sends the values of a step, those that are finite."""
    self._log(step, {name: value for name, value in values.items() if math.isfinite(value)})

  def write_samples(
    self,
    step: int,
    pair: rollout_samples.SampledPair,
    frames: UInt8[np.ndarray, "height width 3"] | None,
  ) -> None:
    """Sends two replies of a step as a table, and the frames that they were about."""
    line = pair.line
    rows = [
      [
        *(step, which, line["example"], line["prompt"], line["answer"]),
        *(rollout_samples.reply_text(reply), str(reply["rewards"]), str(reply["advantages"])),
      ]
      for which, reply in pair.replies().items()
    ]
    columns = ["step", "which", "example", "prompt", "answer", "reply", "rewards", "advantages"]
    shown: dict[str, Any] = {"completions": self._wandb.Table(columns=columns, data=rows)}
    if frames is not None:
      shown["frames"] = self._wandb.Image(frames)
    self._log(step, shown)

  def close(self) -> None:
    """Sends the rest, and marks the run as failed if an error is on its way."""
    self._run.finish(exit_code=int(sys.exc_info()[0] is not None))

  def _log(self, step: int, values: Mapping[str, Any]) -> None:
    named = {f"{self._stage}/{name}": value for name, value in values.items()}
    self._run.log({f"{self._stage}/step": step, **named})


def _run_id(workdir: Path) -> str:
  """The id of a workdir's run: random, and kept in a file."""
  path = workdir / "wandb" / "run_id"
  with contextlib.suppress(OSError):
    return path.read_text().strip()
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(f"{uuid.uuid4().hex[:12]}\n")
  return path.read_text().strip()
