"""Parameters that a stage starts with: fresh ones, or those of a checkpoint."""

import functools
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from vr_jax import errors
from vr_jax.models.common import checkpoint as pretrained
from vr_jax.models.common import lora, weight_mapping
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.train import checkpoints as checkpoints_lib
from vr_jax.train import model_setup


def fresh_params(net: model_setup.ModelSetup) -> PyTree:
  """The weights of config.model.pretrained, or random ones drawn from config.seed.

  With config.model.lora these are the base, with adapters that change nothing yet.
  """
  shardings = jax.tree.map(lambda x: x.sharding, net.abstract_params)
  if net.config.model.pretrained:
    _, base = pretrained.from_pretrained(
      net.config.model.pretrained,
      dtype=net.config.model.lora.base_dtype if net.adapters else "float32",
      shardings=functools.partial(mesh_lib.param_shardings, mesh=net.mesh),
      family=net.family,
    )
    return _add_adapters(net, base, shardings) if net.adapters else base
  return jax.jit(net.random_params, out_shardings=shardings)()


def _add_adapters(net: model_setup.ModelSetup, base: PyTree, shardings: PyTree) -> PyTree:
  """The base and fresh adapters in one tree."""
  placed = {
    n: v.get_value() for n, v in weight_mapping.flat(shardings).items() if lora.is_adapter(n)
  }

  def draw() -> dict[str, jax.Array]:
    drawn = weight_mapping.flat(net.random_params())
    return {name: drawn[name].get_value() for name in placed}

  values, of_base = jax.jit(draw, out_shardings=placed)(), weight_mapping.flat(base)
  abstract = weight_mapping.flat(net.abstract_params)
  return weight_mapping.unflat(
    {n: v.replace(values[n]) if n in values else of_base[n] for n, v in abstract.items()}
  )


def open_checkpoints(net: model_setup.ModelSetup, directory: Path) -> checkpoints_lib.Checkpoints:
  """The checkpoints of a stage. With adapters they leave out the base, which `fresh_params` gives."""
  fixed = net.frozen if net.adapters else ()
  left_out = tuple(f"{of}.{name}" for of in ("params", "critic.params.model") for name in fixed)
  return checkpoints_lib.Checkpoints(directory, architecture=net.architecture, left_out=left_out)


def load_params(net: model_setup.ModelSetup, directory: Path) -> PyTree:
  """The parameters of the last checkpoint of a stage."""
  store = open_checkpoints(net, directory)
  # Adapters lie beside a base that the checkpoint leaves out.
  like = fresh_params(net) if net.adapters else net.abstract_params
  params = store.restore({"params": like}).tree["params"]
  store.close()
  return params


def last_step(net: model_setup.ModelSetup, directory: Path) -> int | None:
  """The step of the last complete checkpoint of a stage."""
  store = open_checkpoints(net, directory)
  step = store.latest()
  store.close()
  return step


def is_complete(store: checkpoints_lib.Checkpoints) -> bool:
  """Whether the last checkpoint is that of a warm start that was done."""
  return store.latest() is not None and store.loop(store.latest())["complete"]


def find_start(net: model_setup.ModelSetup, workdir: Path) -> Path | None:
  """The checkpoints that RL starts from; None if it starts from fresh parameters, without a warm start.

  Raises InputError where there are none, or this workdir's own warm start is not complete.
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
  """{"path", "step"} of what RL starts from, as its checkpoints remember it (fresh parameters: "", 0)."""
  directory = find_start(net, workdir)
  if directory is None:
    return {"path": "", "step": 0}
  # That of the workdir itself by its place there: a workdir may be moved.
  path = net.config.rl.init_checkpoint or directory.relative_to(workdir).as_posix()
  return {"path": path, "step": last_step(net, directory)}


def initial_params(net: model_setup.ModelSetup, workdir: Path) -> PyTree:
  """What RL starts from and stays close to."""
  directory = find_start(net, workdir)
  return fresh_params(net) if directory is None else load_params(net, directory)


def _check_complete(net: model_setup.ModelSetup, directory: Path) -> None:
  store = open_checkpoints(net, directory)
  step, done = store.latest(), is_complete(store)
  store.close()
  if not done:
    raise errors.InputError(
      f"{directory}: at step {step}, before the warm start was done; finish --mode=sft first"
    )
