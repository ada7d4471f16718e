"""Fields of a config that have a few possible values, or a range of them, checked before anything runs."""

import operator
import re
from typing import Any

import ml_collections

from vr_jax import errors
from vr_jax.envs import registry

CHOICES = {
  "recipe": tuple(registry.ENVIRONMENTS),
  "data.on_bad": ("stop", "skip"),
  "data.sampling": ("uniform", "fps", "pool"),
  "model.text_follows": ("", "sides", "largest"),
  "model.resampling": ("torchvision", "pillow"),
  "model.dtype": ("float32", "bfloat16", "float16"),
  "model.remat": ("none", "full", "attention", "dots"),
  "model.attention": ("", "xla", "splash", "cudnn"),
  "judge.kind": ("rule", "local", "openai", "anthropic"),
  "traces.writer": ("sampler", "openai"),
  "export.dtype": ("float32", "bfloat16", "float16"),
  "env.moves": ("strict", "jump", "classic"),
  "env.alignment": ("subsequence", "naive"),
  "env.gate": ("none", "format", "accuracy"),
  "env.length": ("segment", "video_r1"),
  "sft.schedule": ("cosine", "constant"),
  "sft.moment_dtype": ("float32", "bfloat16"),
  "rl.schedule": ("cosine", "constant"),
  "rl.moment_dtype": ("float32", "bfloat16"),
  "rl.aggregation": ("sequence_mean", "token_mean", "constant_length"),
  "rl.curriculum": ("none", "length"),
  "rl.kl_estimator": ("k1", "k2", "k3"),
  "rl.credit": ("segments", "joint", "episode", "outcome", "gae"),
  "rl.baseline": ("group_mean", "leave_one_out"),
  "rl.objective": ("clip", "cispo"),
  "rl.importance_sampling_level": ("token", "sequence"),
  "env.invalid": ("rethink", "explain"),
  "env.relevance.variant": ("paper", "code"),
  "env.exploration.variant": ("paper", "code"),
  "critic.placement": ("every", "last"),
  "critic.schedule": ("cosine", "constant"),
  "critic.moment_dtype": ("float32", "bfloat16"),
}

# As in mathematics: [ and ] hold the end, ( and ) do not.
RANGES = {
  "cpu_devices": "[0, inf)",
  "data.threads": "[0, inf)",
  "data.validation_fraction": "[0, 1)",
  "data.test_fraction": "[0, 1)",
  "model.min_pixels": "[1, inf)",
  "model.max_pixels": "[1, inf)",
  "model.logit_chunk": "[1, inf)",
  "model.prefix_buckets": "[1, inf)",
  "model.frame_buckets": "[1, inf)",
  "model.patch_buckets": "[1, inf)",
  "model.feature_cache_gib": "[0, inf)",
  "env.alpha": "(0, inf)",
  "sft.steps": "[0, inf)",
  "sft.target_loss": "[0, inf)",
  "sft.examples": "[0, inf)",
  "sft.batch": "[1, inf)",
  "sft.microbatches": "[1, inf)",
  "sft.learning_rate": "[0, inf)",
  "sft.warmup_steps": "[0, inf)",
  "sft.b1": "[0, 1)",
  "sft.b2": "[0, 1)",
  "sft.weight_decay": "[0, inf)",
  "sft.gradient_norm": "(0, inf)",
  "sft.max_reply_tokens": "[1, inf)",
  "sft.checkpoint_every": "[1, inf)",
  "sft.max_skipped": "[1, inf)",
  "sft.packing": "[0, inf)",
  "sft.validate_every": "[0, inf)",
  "sft.patience": "[0, inf)",
  "rl.steps": "[0, inf)",
  "rl.prompts": "[1, inf)",
  "rl.group": "[1, inf)",
  "rl.epochs": "[1, inf)",
  "rl.microbatches": "[1, inf)",
  "rl.temperature": "(0, inf)",
  "rl.top_p": "(0, 1]",
  "rl.max_new_tokens": "[1, inf)",
  "rl.rungs": "(0, 1)",
  "rl.packing": "[0, inf)",
  "rl.resampling": "[0, inf)",
  "rl.shuffled": "[0, inf)",
  "rl.learning_rate": "[0, inf)",
  "rl.warmup_steps": "[0, inf)",
  "rl.b1": "[0, 1)",
  "rl.b2": "[0, 1)",
  "rl.weight_decay": "[0, inf)",
  "rl.gradient_norm": "(0, inf)",
  "rl.checkpoint_every": "[1, inf)",
  "rl.max_skipped": "[1, inf)",
  "rl.clip_low": "[0, inf)",
  "rl.clip_high": "[0, inf)",
  "rl.dual_clip": "[0, inf)",
  "rl.overlong_buffer": "[0, inf)",
  "rl.overlong_max_tokens": "[0, inf)",
  "rl.overlong_weight": "[0, inf)",
  "rl.kl_weight": "[0, inf)",
  "rl.entropy_weight": "[0, inf)",
  "rl.truncation": "(0, inf)",
  "judge.in_flight": "[1, inf)",
  "judge.requests_per_minute": "[0, inf)",
  "judge.timeout": "(0, inf)",
  "judge.retries": "[0, inf)",
  "judge.budget": "[0, inf)",
  "judge.max_tokens": "[1, inf)",
  "judge.threshold": "[0, 1]",
  "traces.examples": "[0, inf)",
  "traces.threshold": "[0, 1]",
  "traces.batch": "[1, inf)",
  "traces.max_tokens": "[1, inf)",
  "traces.in_flight": "[1, inf)",
  "traces.retries": "[0, inf)",
  "traces.timeout": "(0, inf)",
  "traces.workers": "[0, inf)",
  "env.demonstrated": "[0, 1]",
  "env.relevance.relevance": "[0, inf)",
  "env.relevance.slope": "[0, inf)",
  "env.exploration.patience": "[1, inf)",
  "turns.time_buckets": "[1, inf)",
  "turns.shown_buckets": "[1, inf)",
  "turns.frame_buckets": "[1, inf)",
  "turns.chunk": "[1, inf)",
  "turns.rows": "[1, inf)",
  "critic.gamma_turn": "[0, 1]",
  "critic.gamma_token": "[0, 1]",
  "critic.decay": "[0, 1]",
  "critic.kl_weight": "[0, inf)",
  "critic.value_clip": "(0, inf)",
  "critic.learning_rate": "[0, inf)",
  "critic.warmup_steps": "[0, inf)",
  "critic.b1": "[0, 1)",
  "critic.b2": "[0, 1)",
  "critic.weight_decay": "[0, inf)",
  "critic.gradient_norm": "(0, inf)",
  "eval.examples": "[0, inf)",
  "eval.rollouts": "[0, inf)",
  "eval.batch": "[1, inf)",
  "eval.temperature": "[0, inf)",
}


def check(config: ml_collections.ConfigDict) -> None:
  """Raises InputError naming the first field whose value is none of its choices or out of its range.

  The same of a mesh that is not four numbers.
  """
  for name, choices in CHOICES.items():
    value = _value(config, name)
    if value is not None and value not in choices:
      raise errors.InputError(
        f"--config.{name}={value}: not one of {', '.join(filter(None, choices))}"
      )
  check_ranges(config)
  _check_together(config)
  if len(config.mesh) != 4 or not all(isinstance(size, int) for size in config.mesh):
    raise errors.InputError(
      f"--config.mesh={config.mesh}: needs four numbers (data, fsdp, sequence, tensor), at most one -1"
    )


def check_ranges(config: ml_collections.ConfigDict) -> None:
  """Raises InputError naming the first field out of its range; of sections that are not there nothing is said."""
  for name, interval in RANGES.items():
    value = _value(config, name)
    values = () if value is None else value if isinstance(value, tuple) else (value,)
    if not all(_inside(value, interval) for value in values):
      raise errors.InputError(f"--config.{name}={value}: not in {interval}")
    if name.endswith("_buckets") and value == ():
      raise errors.InputError(f"--config.{name}=(): needs a size or more")


def check_template(config: ml_collections.ConfigDict, *, told: bool) -> None:
  """Raises InputError where the instruction does not ask for all tags by which the recipe reads replies.

  told: whether it has to, whatever the model. A network of this project's own may know no words and be told nothing: what it
  was trained on says which tags it writes.
  """
  marked_up = "".join(registry.ENVIRONMENTS[config.recipe].tags)
  tags = dict.fromkeys(re.findall(r"</?\w+>", marked_up))
  missing = [tag for tag in tags if tag not in config.env.instruction]
  own = bool(config.model.architecture)
  if missing and (told or config.env.instruction or not own):
    raise errors.InputError(
      f"--config.env.instruction: does not ask for {', '.join(missing)}, by which {config.recipe} reads replies; add it"
    )


def _check_together(config: ml_collections.ConfigDict) -> None:
  """Raises InputError for a field that does nothing beside the others, or not what is asked of it."""
  check_template(config, told=False)
  if config.sft.patience and not config.sft.validate_every:
    raise errors.InputError("--config.sft.patience: needs --config.sft.validate_every > 0")
  if config.rl.shuffled and "temporal" not in config.env.get("weights", {}):
    raise errors.InputError(
      f"--config.rl.shuffled={config.rl.shuffled}: {config.recipe} has no reward of temporal order"
    )
  if "turns" in config:
    _check_turns(config)
  elif config.rl.credit == "gae":
    raise errors.InputError(f"--config.rl.credit=gae: {config.recipe} has no critic")
  if config.rl.steps and config.rl.group == 1 and config.rl.credit != "gae":
    raise errors.InputError(
      f"--config.rl.group=1: rl.credit={config.rl.credit} compares the replies of a group, and one alone has no advantage; "
      "set it to 2 or more, or rl.steps=0"
    )
  _check_loss(config.rl)
  judge = config.get("judge", {})
  if judge.get("blinded") and judge.kind == "rule":
    raise errors.InputError("--config.judge.blinded: the rule judges by the truth; choose a model")


def _check_loss(rl: ml_collections.ConfigDict) -> None:
  """Raises InputError for options of advantages, loss and length penalty that don't go together."""
  if rl.dual_clip and rl.objective == "cispo":
    raise errors.InputError(
      f"--config.rl.dual_clip={rl.dual_clip}: bounds the loss of rl.objective=clip; cispo has none to bound; set it to 0"
    )
  if rl.dual_clip and rl.dual_clip <= 1 + rl.clip_high:
    raise errors.InputError(
      f"--config.rl.dual_clip={rl.dual_clip}: must exceed 1 + rl.clip_high = {1 + rl.clip_high:g}; the paper has 3"
    )
  if rl.objective == "cispo" and rl.importance_sampling_level == "sequence":
    raise errors.InputError(
      "--config.rl.importance_sampling_level=sequence: cispo weighs each token by its own ratio; set it to token"
    )
  if rl.baseline == "leave_one_out" and rl.credit == "gae":
    raise errors.InputError(
      "--config.rl.baseline=leave_one_out: the baseline of rl.credit=gae is its critic; set it to group_mean"
    )
  if rl.baseline == "leave_one_out" and rl.normalise:
    raise errors.InputError(
      "--config.rl.baseline=leave_one_out: keeps the scale of rewards; set rl.normalise to False"
    )
  longest = rl.overlong_max_tokens or rl.max_new_tokens
  if rl.overlong_max_tokens > rl.max_new_tokens:
    raise errors.InputError(
      f"--config.rl.overlong_max_tokens={rl.overlong_max_tokens}: no reply is longer than rl.max_new_tokens={rl.max_new_tokens}"
    )
  if rl.overlong_buffer > longest:
    raise errors.InputError(
      f"--config.rl.overlong_buffer={rl.overlong_buffer}: must be at most the longest reply's {longest} tokens"
    )
  if rl.overlong_max_tokens and not rl.overlong_buffer:
    raise errors.InputError(
      f"--config.rl.overlong_max_tokens={rl.overlong_max_tokens}: needs rl.overlong_buffer > 0"
    )


def _check_turns(config: ml_collections.ConfigDict) -> None:
  """Raises InputError for what recipes of several turns do without."""
  if config.env.window < config.env.turns - 1:
    raise errors.InputError(
      f"--config.env.window={config.env.window}: replies are computed with all turns before them; with "
      f"{config.env.turns} turns it must be {config.env.turns - 1} or more"
    )
  if config.data.sampling != "pool":
    raise errors.InputError(f"--config.data.sampling={config.data.sampling}: turns need a pool")
  if config.rl.credit not in ("episode", "gae"):
    raise errors.InputError(
      f"--config.rl.credit={config.rl.credit}: turns are credited by episode or gae"
    )
  if config.rl.credit != "gae" and config.critic.kl_weight:
    raise errors.InputError(
      f"--config.critic.kl_weight={config.critic.kl_weight}: there is no critic with "
      f"rl.credit={config.rl.credit}; set it to 0, and rl.kl_weight to what the loss is to have"
    )
  if config.rl.kl_weight and config.critic.kl_weight:
    raise errors.InputError(
      f"--config.rl.kl_weight={config.rl.kl_weight}: the penalty is a reward already (critic.kl_weight); set one to 0"
    )
  if config.sft.steps and not config.env.demonstrated:
    raise errors.InputError(
      "--config.sft.steps: needs episodes to learn from, env.demonstrated > 0"
    )
  _check_room(config)
  stages = config.env.exploration.stages
  if not all(isinstance(stage, tuple) and len(stage) == 2 for stage in stages):
    raise errors.InputError(f"--config.env.exploration.stages={stages}: needs pairs (rate, bonus)")
  if config.model.feature_cache_gib:
    raise errors.InputError(
      f"--config.model.feature_cache_gib={config.model.feature_cache_gib}: features of clips that turns show a few frames of "
      "are not kept; set it to 0"
    )
  for name in ("eval.blind", "eval.shuffled", "rl.resampling", "rl.shuffled"):
    if _value(config, name):
      raise errors.InputError(f"--config.{name}: not in recipes of several turns")


def _check_room(config: ml_collections.ConfigDict) -> None:
  """Raises InputError where an episode could outgrow what is compiled for it."""
  env, section = config.env, config.turns
  between, reply = env.turns - 1, config.rl.max_new_tokens
  for name, needed in (
    ("frame_buckets", between * max(1, env.budget // 4)),
    ("time_buckets", env.turns * reply + between * max(section.shown_buckets)),
  ):
    if max(section[name]) < needed:
      raise errors.InputError(
        f"--config.turns.{name}={section[name]}: {env.turns} turns need up to {needed}; add it"
      )


def _value(config: ml_collections.ConfigDict, name: str) -> Any:
  """A field's value, None where the recipe has none of that name."""
  for part in name.split("."):
    config = config.get(part) if isinstance(config, ml_collections.ConfigDict) else None
  return config


def _inside(value: Any, interval: str) -> bool:
  if not isinstance(value, int | float):
    return False
  low, high = map(float, interval[1:-1].split(", "))
  above = operator.ge if interval[0] == "[" else operator.gt
  below = operator.le if interval[-1] == "]" else operator.lt
  return above(value, low) and below(value, high)
