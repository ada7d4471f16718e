"""Fields of a config that have a few possible values, checked before anything runs."""

import ml_collections

from vr_jax import errors

CHOICES = {
  "data.on_bad": ("stop", "skip"),
  "data.sampling": ("uniform", "fps"),
  "model.dtype": ("float32", "bfloat16", "float16"),
  "env.moves": ("strict", "jump", "classic"),
  "env.alignment": ("subsequence", "naive"),
  "env.gate": ("none", "format", "accuracy"),
  "sft.schedule": ("cosine", "constant"),
  "rl.schedule": ("cosine", "constant"),
  "rl.aggregation": ("sequence_mean", "token_mean", "constant_length"),
  "rl.kl_estimator": ("k1", "k2", "k3"),
}


def check(config: ml_collections.ConfigDict) -> None:
  """Raises InputError naming the first field whose value is none of its choices, or a mesh that is not three numbers."""
  for name, choices in CHOICES.items():
    section, field = name.split(".")
    value = config[section].get(field, choices[0])
    if value not in choices:
      raise errors.InputError(f"--config.{name}={value}: not one of {', '.join(choices)}")
  if len(config.mesh) != 3 or not all(isinstance(size, int) for size in config.mesh):
    raise errors.InputError(
      f"--config.mesh={config.mesh}: needs three numbers (data, fsdp, tensor), at most one -1"
    )
