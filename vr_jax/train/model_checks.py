"""Checks the model of a run before anything takes long: its directory, tokenizer and weights."""

from pathlib import Path

import ml_collections

from vr_jax import errors
from vr_jax.models import registry
from vr_jax.models.common import checkpoint, layers, weight_mapping
from vr_jax.models.sam2 import checkpoint as sam2_checkpoint
from vr_jax.train import config_changes, config_checks, mask_filter, model_setup, paths

# Modes that load the weights of config.model.pretrained.
_LOADING = ("sft", "rl", "eval", "all", "check")


def check(config: ml_collections.ConfigDict, workdir: Path, mode: str) -> None:
  """Raises InputError for the first problem that the stages of `mode` would meet with the model."""
  for problem in problems(config, workdir, mode):
    raise problem


def problems(config: ml_collections.ConfigDict, workdir: Path, mode: str) -> config_checks.Problems:
  """Yields the problems that the stages of `mode` would meet with the model.

  Weights are needed until the workdir has a checkpoint of its own, and with adapters always. Only
  their names and shapes are read.
  """
  if config.rl.init_checkpoint and config.rl.steps:
    yield from config_checks.as_problems(lambda: _check_start(Path(config.rl.init_checkpoint)))
  for field, given in _sam2_weights(config, mode).items():
    yield from config_checks.as_problems(lambda field=field, given=given: _check_sam2(field, given))
  pretrained = config.model.pretrained
  sizes = list(config_checks.as_problems(lambda: _check_sizes(config)))
  yield from sizes
  if sizes:
    return  # what follows depends on them
  yield from config_checks.as_problems(
    lambda: model_setup.check_context(config, model_setup.model_of(config))
  )
  yield from config_checks.as_problems(lambda: _check_int8(config))
  family = model_setup.family_of(config)
  if config.model.tokenizer != paths.TRAINED:
    yield from config_checks.as_problems(
      lambda: family.load_tokenizer(paths.tokenizer_path(config, workdir))
    )
  if pretrained and _loads_weights(config, workdir, mode):
    yield from config_checks.as_problems(lambda: checkpoint.check_files(pretrained, family=family))


def _sam2_weights(config: ml_collections.ConfigDict, mode: str) -> dict[str, str]:
  """Paths of SAM2's weights that the stages of `mode` load, by field."""
  found = {}
  if mode in ("eval", "all", "check") and config.eval.tracker not in ("", "exact"):
    found["eval.tracker"] = config.eval.tracker
  if mode in ("filter", "all", "check") and mask_filter.is_wanted(config):
    found["mask_filter.sam2"] = config.mask_filter.sam2
  return found


def _check_sam2(field: str, given: str) -> None:
  try:
    sam2_checkpoint.check(given)
  except errors.InputError as error:
    raise errors.InputError(f"--config.{field}: {error}") from error


def _check_sizes(config: ml_collections.ConfigDict) -> None:
  """Raises InputError if the model's directory or its config.json is missing or can't be used."""
  if pretrained := config.model.pretrained:
    registry.check_directory(pretrained, "config.model.pretrained")
    registry.family_in(pretrained).read_config(Path(pretrained) / "config.json")
  model_setup.model_of(config)


def _check_int8(config: ml_collections.ConfigDict) -> None:
  """Raises InputError if it is not known which axes of a matrix would have one scale."""
  if config.rl.sampler_weights != "int8":
    return
  family = model_setup.family_of(config)
  known = {f"text.layers.{name}" for name in family.lora_targets.text}
  params = family.abstract_params(model_setup.model_of(config))
  for name, variable in weight_mapping.flat(params).items():
    if not name.startswith("text.layers.") or not layers.is_matrix(name, variable.get_value()):
      continue
    if name not in known or family.weights.inputs(name) != layers.input_axes(name):
      raise errors.InputError(
        f"--config.rl.sampler_weights=int8: which axes of {name} are inputs is not known, since it "
        f"is none of the projections that {family.model_type} declares (lora_targets.text); set it "
        "to as_trained"
      )


def _loads_weights(config: ml_collections.ConfigDict, workdir: Path, mode: str) -> bool:
  stages = (workdir / "checkpoints" / stage for stage in config_changes.STAGES)
  trained = any(map(config_changes.last_step, stages))
  needed = config.model.lora.rank or not trained
  # For --mode=data, the directory may have the tokenizer alone.
  return bool(needed and (mode in _LOADING or checkpoint.has_weights(config.model.pretrained)))


def _check_start(directory: Path) -> None:
  if not config_changes.last_step(directory):
    raise errors.InputError(
      f"config.rl.init_checkpoint={directory}: holds no checkpoint; give the directory of a stage, "
      "such as runs/mine/checkpoints/sft"
    )
