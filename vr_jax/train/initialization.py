"""The parameters that a stage starts from: fresh ones, or those of a checkpoint."""

from collections.abc import Sequence
import functools
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree
import ml_collections

from vr_jax import buckets, errors
from vr_jax.models.common import checkpoint as pretrained
from vr_jax.models.common import lora, weight_mapping
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.train import checkpoints as checkpoints_lib
from vr_jax.train import console, model_setup

RECENT_LOSSES = 10  # updates whose mean loss is compared with config.sft.target_loss


def fresh_params(net: model_setup.ModelSetup) -> PyTree:
  """Loads the weights of config.model.pretrained, or draws random ones, seeded by config.seed.

  With config.model.lora these weights are the base; its fresh adapters don't change the output yet.
  """
  if directory := net.config.model.pretrained:
    with console.doing(f"loading the weights of {directory}", announce=True):
      _, base = pretrained.from_pretrained(
        directory,
        dtype=net.config.model.lora.base_dtype if net.adapters else "float32",
        shardings=functools.partial(mesh_lib.param_shardings, mesh=net.mesh),
        family=net.family,
      )
    return _add_adapters(net, base) if net.adapters else base
  return net.draw_params()


def _add_adapters(net: model_setup.ModelSetup, base: PyTree) -> PyTree:
  """Adds fresh adapters to the base; returns one tree."""
  shardings = jax.tree.map(lambda x: x.sharding, net.abstract_params)
  placed = {
    n: v.get_value() for n, v in weight_mapping.flat(shardings).items() if lora.is_adapter(n)
  }

  def draw() -> dict[str, jax.Array]:
    drawn = weight_mapping.flat(net.random_params())
    return {name: drawn[name].get_value() for name in placed}

  values, base_variables = jax.jit(draw, out_shardings=placed)(), weight_mapping.flat(base)
  abstract = weight_mapping.flat(net.abstract_params)
  return weight_mapping.unflat(
    {n: v.replace(values[n]) if n in values else base_variables[n] for n, v in abstract.items()}
  )


def open_checkpoints(
  net: model_setup.ModelSetup, directory: Path, *, keep: int = 2
) -> checkpoints_lib.Checkpoints:
  """Opens the checkpoints of a stage. With adapters they leave out the base; see `fresh_params`."""
  fixed = net.frozen if net.adapters else ()
  trees = ("params", "critic.params.model")
  left_out = tuple(f"{tree}.{name}" for tree in trees for name in fixed)
  return checkpoints_lib.Checkpoints(
    directory, architecture=net.architecture, left_out=left_out, keep=keep
  )


_damage: dict[Path, dict[int, str]] = {}  # found so far, by directory and step


def _open_whole(net: model_setup.ModelSetup, directory: Path) -> checkpoints_lib.Checkpoints:
  """Opens the checkpoints of a stage; the last one is the last that is not damaged."""
  store = open_checkpoints(net, directory)
  store.pass_over_damaged(_damage.setdefault(directory.absolute(), {}))
  return store


def load_params(net: model_setup.ModelSetup, directory: Path) -> PyTree:
  """Loads the parameters of a stage's last checkpoint; of the one before, if it is damaged."""
  store = _open_whole(net, directory)
  # With adapters, the checkpoint leaves out the base.
  like = fresh_params(net) if net.adapters else net.abstract_params
  params = store.restore({"params": like}).tree["params"]
  store.close()
  return params


def last_step(net: model_setup.ModelSetup, directory: Path) -> int | None:
  """The step of the checkpoint that `load_params` reads; None if there is none."""
  store = _open_whole(net, directory)
  step = store.latest()
  store.close()
  return step


def is_warm(sft: ml_collections.ConfigDict, step: int, recent: Sequence[float], since: int) -> bool:
  """Whether a warm start that has made `step` updates is done.

  recent: losses of the last updates, at most RECENT_LOSSES.
  since: measurements of the validation loss in a row without a new minimum.
  """
  mean = sum(recent) / RECENT_LOSSES
  reached = len(recent) == RECENT_LOSSES and mean <= sft.target_loss
  return reached or 0 < sft.patience <= since or step >= sft.steps


def is_complete(store: checkpoints_lib.Checkpoints, sft: ml_collections.ConfigDict) -> bool:
  """Whether the last checkpoint is that of a finished warm start, by the config as it is now."""
  step = store.latest()
  if step is None:
    return False
  loop = store.loop(step)
  return is_warm(sft, step, loop["recent"], loop["validation"][1])


def find_start(net: model_setup.ModelSetup, workdir: Path) -> Path | None:
  """The directory of the checkpoints that RL starts from; None if RL starts from fresh parameters.

  Raises InputError if the directory is missing, or this workdir's own warm start is not complete.
  """
  config = net.config
  if not config.rl.init_checkpoint and not config.sft.steps:
    return None
  directory = (
    Path(config.rl.init_checkpoint)
    if config.rl.init_checkpoint
    else workdir / "checkpoints" / "sft"
  )
  if not directory.is_dir():
    raise errors.InputError(f"{directory}: no such checkpoints; run --mode=sft first")
  if not config.rl.init_checkpoint:
    _check_complete(net, directory)
  return directory


def describe_start(net: model_setup.ModelSetup, workdir: Path) -> dict[str, Any]:
  """The "path" and "step" that RL starts from, for its checkpoints. Fresh parameters: "" and 0.

  A path in a mounted bucket is its address, as another host may have its mounts elsewhere.
  """
  directory = find_start(net, workdir)
  if directory is None:
    return {"path": "", "step": 0}
  # The path of the own warm start is relative: a workdir may be moved.
  path = buckets.as_addresses(net.config.rl.init_checkpoint)
  path = path or directory.relative_to(workdir).as_posix()
  return {"path": path, "step": last_step(net, directory)}


def initial_params(net: model_setup.ModelSetup, workdir: Path) -> PyTree:
  """Loads the parameters that RL starts from. They are those of the reference, too."""
  directory = find_start(net, workdir)
  return fresh_params(net) if directory is None else load_params(net, directory)


def _check_complete(net: model_setup.ModelSetup, directory: Path) -> None:
  store = _open_whole(net, directory)
  step, done = store.latest(), is_complete(store, net.config.sft)
  store.close()
  if not done:
    raise errors.InputError(
      f"{directory}: at step {step}, before the warm start was done; finish --mode=sft first"
    )
