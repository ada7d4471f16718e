"""Checks a whole config before anything runs: each field, then combinations of fields."""

from collections.abc import Callable, Iterator
import functools
import math
import re
from typing import Any

import ml_collections

from vr_jax import config_fields, errors, model_endpoint, optional_sections, schema
from vr_jax.envs import environment as environment_lib
from vr_jax.envs import registry
from vr_jax.parallel import compiler_options
from vr_jax.train import config_changes, paths, profiling, secrets, wandb_log

Problems = Iterator[errors.InputError]


def check(config: ml_collections.ConfigDict) -> None:
  """Raises InputError naming the first field that is invalid, alone or in combination with others.

  It makes the environment as well, so as to find what the environment refuses.
  """
  for problem in problems(config):
    raise problem


def problems(config: ml_collections.ConfigDict) -> Problems:
  """Yields the problems of single fields or, if there are none, those of their combinations."""
  if keys := [*secrets.problems(config), *_endpoints(config)]:
    yield from keys  # alone: other errors might repeat the key
    return
  recipe = registry.environment_class(config.recipe)
  sections = {name: cls for name, cls in optional_sections.OPTIONAL.items() if name in config}
  alone = [
    *schema.problems(config, config_fields.RunConfig, "config"),
    *(
      problem
      for name, section in sections.items()
      for problem in schema.problems(config[name], section, f"config.{name}")
    ),
    *schema.problems(config.env, recipe, "config.env"),
    *_addresses(config),
  ]
  if alone:
    yield from alone
    return
  try:
    environment = registry.make_environment(config)
  except errors.InputError as error:
    yield error
    return
  yield from _check_together(config, environment)
  yield from _check_stored_size(config)
  yield from as_problems(lambda: profiling.parse_steps(config.log.profile_steps))
  yield from as_problems(lambda: recipe.check_config(config))
  yield from as_problems(lambda: compiler_options.check(config.compiler_options))
  if len(config.mesh) != 4 or not all(isinstance(size, int) for size in config.mesh):
    yield errors.InputError(
      f"--config.mesh={config.mesh}: needs four numbers (data, fsdp, sequence, tensor), "
      "at most one -1, or both fsdp and sequence"
    )


def _endpoints(config: ml_collections.ConfigDict) -> Problems:
  """Yields an error for each endpoint's address that is malformed, or holds a user or key."""
  for name, value in config_changes.flatten(config.to_dict()).items():
    if name.endswith(".base_url") and isinstance(value, str) and value:
      section = f"--config.{name.removesuffix('.base_url')}"
      yield from as_problems(functools.partial(model_endpoint.check_url, section, value))


def _addresses(config: ml_collections.ConfigDict) -> Problems:
  """Yields an error for each path that is the address of something elsewhere."""
  for name, value in config_changes.flatten(config.to_dict()).items():
    if isinstance(value, str) and not name.endswith(".base_url"):
      yield from as_problems(functools.partial(errors.check_path, f"--config.{name}", value))


def as_problems(check: Callable[[], object]) -> Problems:
  """Yields the InputError that a check raises, if it does."""
  try:
    check()
  except errors.InputError as error:
    yield error


def check_template(config: ml_collections.ConfigDict, *, told: bool) -> None:
  """Raises InputError if the instruction lacks a tag that the recipe parses in replies.

  told: whether an instruction is required for every model. Otherwise a model that is trained from
    nothing (config.model.architecture) may have an empty one: it learns the tags from the
    reference replies.
  """
  marked_up = "".join(registry.environment_class(config.recipe).tags)
  tags = dict.fromkeys(re.findall(r"</?\w+>", marked_up))
  instruction = config.env.get("instruction", "")
  missing = [tag for tag in tags if tag not in instruction]
  own = bool(config.model.architecture)
  if missing and (told or instruction or not own):
    raise errors.InputError(
      f"--config.env.instruction: does not ask for {', '.join(missing)}, "
      f"by which {config.recipe} reads replies; add it"
    )


def _check_together(
  config: ml_collections.ConfigDict, environment: environment_lib.Environment
) -> Problems:
  """Yields a problem for a field that has no effect, or a wrong one, together with the others."""
  yield from _check_sources(config)
  yield from as_problems(lambda: check_template(config, told=False))
  if config.sft.patience and not config.sft.validate_every:
    yield errors.InputError("--config.sft.patience: needs --config.sft.validate_every > 0")
  yield from as_problems(lambda: wandb_log.check(config.log.wandb))
  by_validation = config.rl.eval_every and config.rl.eval_split == "validation"
  if by_validation and not config.data.validation_fraction:
    yield errors.InputError(
      f"--config.rl.eval_every={config.rl.eval_every}: needs a validation split, "
      "--config.data.validation_fraction > 0 (or --config.rl.eval_split=test; the best "
      "checkpoint is then chosen by the videos of the last evaluation, whose result is too good)"
    )
  if config.rl.num_shuffled_generations and not environment.compares_shuffled:
    yield errors.InputError(
      f"--config.rl.num_shuffled_generations={config.rl.num_shuffled_generations}: "
      f"{config.recipe} has no reward of temporal order"
    )
  yield from _check_shuffling(config)
  yield from _check_sampling(config)
  if environment.turns == 1:
    yield from _check_carry_over(config.rl)
  if environment.chooses_frames:
    yield from _check_pool(config)
  else:
    yield from _check_frame_buckets(config)
  if environment.turns > 1 or environment.chooses_frames:
    yield from _check_turns(config)
  if "critic" in config:
    yield from _check_critic(config)
  elif config.rl.advantage_estimator == "gae":
    yield errors.InputError(f"--config.rl.advantage_estimator=gae: {config.recipe} has no critic")
  if config.rl.steps and config.rl.num_generations == 1 and config.rl.advantage_estimator != "gae":
    yield errors.InputError(
      f"--config.rl.num_generations=1: rl.advantage_estimator={config.rl.advantage_estimator} "
      "compares the replies of a group, and one alone has no advantage; "
      "set it to 2 or more, or rl.steps=0"
    )
  if config.rl.steps and config.rl.top_k == 1:
    yield errors.InputError(
      "--config.rl.top_k=1: each reply is the most likely one, so nothing is compared or learned; "
      "set it to 0 (all tokens), to 2 or more, or rl.steps=0"
    )
  yield from _check_loss(config.rl)
  yield from _check_tracker(config, environment)
  judge = config.get("judge", {})
  if judge.get("blinded") and judge.kind == "rule":
    yield errors.InputError("--config.judge.blinded: the rule judges by the truth; choose a model")


def _check_tracker(
  config: ml_collections.ConfigDict, environment: environment_lib.Environment
) -> Problems:
  """Yields a problem if there is nothing to track, or no mask of it is known."""
  tracker = config.eval.tracker
  if tracker and not environment.finds_objects:
    yield errors.InputError(
      f"--config.eval.tracker={tracker}: the replies of {config.recipe} give no boxes to follow; "
      "leave it out"
    )
  elif tracker == "exact" and not config.data.simulate.videos:
    yield errors.InputError(
      "--config.eval.tracker=exact: knows the masks of simulated videos alone; give the path of "
      "SAM2's weights (docs/revseg.md)"
    )


def _check_sources(config: ml_collections.ConfigDict) -> Problems:
  """Yields a problem if two sources of data, or of a tokenizer, are set, or half of one."""
  data, model = config.data, config.model
  own = [name for name in ("videos", "annotations") if data[name]]
  if own and data.simulate.videos:
    yield errors.InputError(
      f"--config.data.{own[0]}={data[own[0]]}: would not be read, as "
      f"data.simulate.videos={data.simulate.videos} asks for simulated videos; "
      "set data.simulate.videos=0, or leave out data.videos and data.annotations"
    )
  if len(own) == 1:
    (missing,) = {"videos", "annotations"} - {*own}
    yield errors.InputError(
      f"--config.data.{own[0]}={data[own[0]]}: needs data.{missing} as well (docs/data.md)"
    )
  if model.pretrained and model.tokenizer == paths.TRAINED:
    yield errors.InputError(
      f"--config.model.tokenizer={model.tokenizer}: "
      f"model.pretrained={model.pretrained} knows the tokens of its own tokenizer alone; "
      "leave model.tokenizer empty"
    )


def _check_stored_size(config: ml_collections.ConfigDict) -> Problems:
  """Yields a problem if no stored frame is as large as the model may show it."""
  side, most = config.data.max_side, config.model.max_pixels
  if most > side**2:
    yield errors.InputError(
      f"--config.data.max_side={side}: stored frames have {side**2} pixels at most, and "
      f"model.max_pixels={most} asks for more; lower it, or set "
      f"data.max_side={math.isqrt(most - 1) + 1} or more"
    )


def _check_frame_buckets(config: ml_collections.ConfigDict) -> Problems:
  """Yields a problem if no bucket holds a clip of the least number of frames."""
  data, largest = config.data, max(config.model.frame_buckets)
  name = {"uniform": "frames", "fps": "min_frames"}.get(data.sampling)
  vision = _vision_shapes(config)
  needed = vision.count_frames(data[name]) if name and vision else 0
  if needed > largest:
    yield errors.InputError(
      f"--config.data.{name}={data[name]}: makes {needed} temporal patches, and "
      f"model.frame_buckets={tuple(config.model.frame_buckets)} holds {largest}; "
      f'add --config.model.frame_buckets="({needed},)", and prompt lengths that hold their tokens '
      "to model.prefix_buckets"
    )


def _vision_shapes(config: ml_collections.ConfigDict) -> Any:
  """The shapes of the vision tower's inputs; None if the model can't be read, which others say."""
  from vr_jax.train import model_setup  # late, since it imports JAX

  try:
    return model_setup.model_of(config).vision_shapes
  except errors.InputError:
    return None


def _check_shuffling(config: ml_collections.ConfigDict) -> Problems:
  """Yields a problem if replies to shuffled frames are asked for, but features have no order."""
  from vr_jax.train import model_setup  # late, since it imports JAX

  try:
    why = model_setup.family_of(config).cannot_shuffle
  except errors.InputError:
    return
  count = config.rl.num_shuffled_generations
  if count and why:
    yield errors.InputError(f"--config.rl.num_shuffled_generations={count}: {why}; set it to 0")


def _check_loss(rl: ml_collections.ConfigDict) -> Problems:
  """Yields a problem for a bad combination of options of advantages, loss and length penalty."""
  if rl.dual_clip and rl.objective == "cispo":
    yield errors.InputError(
      f"--config.rl.dual_clip={rl.dual_clip}: bounds the loss of rl.objective=clip; "
      "cispo has none to bound; set it to 0"
    )
  if rl.dual_clip and rl.dual_clip <= 1 + rl.clip_epsilon_high:
    yield errors.InputError(
      f"--config.rl.dual_clip={rl.dual_clip}: must exceed 1 + rl.clip_epsilon_high = "
      f"{1 + rl.clip_epsilon_high:g}; the paper has 3"
    )
  if rl.objective == "cispo" and rl.importance_sampling_level == "sequence":
    yield errors.InputError(
      "--config.rl.importance_sampling_level=sequence: "
      "cispo weighs each token by its own ratio; set it to token"
    )
  if rl.baseline == "leave_one_out" and rl.advantage_estimator == "gae":
    yield errors.InputError(
      "--config.rl.baseline=leave_one_out: "
      "the baseline of rl.advantage_estimator=gae is its critic; set it to group_mean"
    )
  if rl.advantage_noise and rl.advantage_estimator == "gae":
    yield errors.InputError(
      f"--config.rl.advantage_noise={rl.advantage_noise}: has no effect on the advantages of "
      "rl.advantage_estimator=gae; set it to 0"
    )
  if rl.baseline == "leave_one_out" and rl.normalize_by_std:
    yield errors.InputError(
      "--config.rl.baseline=leave_one_out: "
      "keeps the scale of rewards; set rl.normalize_by_std to False"
    )
  longest = rl.overlong_max_tokens or rl.max_new_tokens
  if rl.overlong_max_tokens > rl.max_new_tokens:
    yield errors.InputError(
      f"--config.rl.overlong_max_tokens={rl.overlong_max_tokens}: "
      f"no reply is longer than rl.max_new_tokens={rl.max_new_tokens}"
    )
  if rl.overlong_buffer > longest:
    yield errors.InputError(
      f"--config.rl.overlong_buffer={rl.overlong_buffer}: "
      f"must be at most the longest reply's {longest} tokens"
    )
  if rl.overlong_max_tokens and not rl.overlong_buffer:
    yield errors.InputError(
      f"--config.rl.overlong_max_tokens={rl.overlong_max_tokens}: needs rl.overlong_buffer > 0"
    )


def _check_sampling(config: ml_collections.ConfigDict) -> Problems:
  """Yields a problem for options of sampling that make others wrong or have no effect."""
  rl = config.rl
  if rl.sampler_log_probs == "kept":
    if rl.top_p == 1 and not rl.top_k and not rl.min_p:
      yield errors.InputError(
        "--config.rl.sampler_log_probs=kept: rl.top_p=1, rl.top_k=0 and rl.min_p=0 keep all "
        "tokens; set one of them, or all"
      )
    if rl.mismatch_warning:
      yield errors.InputError(
        "--config.rl.sampler_log_probs=kept: its log-probs differ from the trainer's by the mass "
        "that is kept; set rl.mismatch_warning to 0"
      )
    if "critic" in config and config.critic.kl_weight:
      yield errors.InputError(
        "--config.rl.sampler_log_probs=kept: the reference's log-probs, which critic.kl_weight "
        "compares with the sampler's, are among all tokens; set it to all"
      )
  if rl.sampler_weights == "int8" and "critic" in config and config.critic.kl_weight:
    yield errors.InputError(
      "--config.rl.sampler_weights=int8: critic.kl_weight compares the reference's log-probs with "
      "the sampler's, and would penalise rounding; set it to as_trained, or critic.kl_weight to 0"
    )
  if rl.repetition_window and rl.repetition_window < rl.repetition_count:
    yield errors.InputError(
      f"--config.rl.repetition_window={rl.repetition_window}: has no room for "
      f"rl.repetition_count={rl.repetition_count} repetitions; raise it"
    )
  if rl.repetition_window > rl.max_new_tokens:
    yield errors.InputError(
      f"--config.rl.repetition_window={rl.repetition_window}: "
      f"no reply is longer than rl.max_new_tokens={rl.max_new_tokens}"
    )
  if rl.repetition_window and rl.overlong_buffer:
    yield errors.InputError(
      f"--config.rl.repetition_window={rl.repetition_window}: ends replies before they are long, "
      "so that rl.overlong_buffer would not penalise them; set one of the two to 0"
    )


def _check_carry_over(rl: ml_collections.ConfigDict) -> Problems:
  """Yields a problem if no slot of a step's end could begin the next step's replies, or two do."""
  replies = rl.batch_size * rl.num_generations
  if not rl.carry_over:
    return
  if not 0 < rl.decode_slots <= replies:
    yield errors.InputError(
      f"--config.rl.carry_over=True: needs rl.decode_slots from 1 to the {replies} replies of a "
      f"step, not {rl.decode_slots}; set it to {replies}"
    )
  for name in ("one_step_off_policy", "dynamic_sampling_max_batches"):
    if rl[name]:
      yield errors.InputError(
        f"--config.rl.carry_over=True: is for steps that sample one batch and then learn from it; "
        f"leave out rl.{name}={rl[name]}"
      )


def _check_pool(config: ml_collections.ConfigDict) -> Problems:
  """Yields a problem for fields that don't work with turns that choose frames."""
  if config.data.sampling != "pool":
    yield errors.InputError(f"--config.data.sampling={config.data.sampling}: turns need a pool")
  if config.model.feature_cache_gib:
    yield errors.InputError(
      f"--config.model.feature_cache_gib={config.model.feature_cache_gib}: "
      "features of clips that turns show a few frames of are not kept; set it to 0"
    )


def _check_turns(config: ml_collections.ConfigDict) -> Problems:
  """Yields a problem for fields that don't work with several turns."""
  if config.rl.advantage_estimator not in ("episode", "gae"):
    yield errors.InputError(
      f"--config.rl.advantage_estimator={config.rl.advantage_estimator}: "
      "turns are credited by episode or gae"
    )
  for section, name in (
    ("eval", "blind"),
    ("eval", "shuffled_frames"),
    ("rl", "carry_over"),
    ("rl", "decode_slots"),
    ("rl", "dynamic_sampling_max_batches"),
    ("rl", "num_shuffled_generations"),
  ):
    if config[section][name]:
      yield errors.InputError(f"--config.{section}.{name}: not in recipes of several turns")


def _check_critic(config: ml_collections.ConfigDict) -> Problems:
  """Yields a problem if the critic's KL penalty has no effect, or is applied twice."""
  if config.rl.advantage_estimator != "gae" and config.critic.kl_weight:
    yield errors.InputError(
      f"--config.critic.kl_weight={config.critic.kl_weight}: there is no critic with "
      f"rl.advantage_estimator={config.rl.advantage_estimator}; "
      "set it to 0, and rl.kl_weight to what the loss is to have"
    )
  if config.rl.kl_weight and config.critic.kl_weight:
    yield errors.InputError(
      f"--config.rl.kl_weight={config.rl.kl_weight}: "
      "the penalty is a reward already (critic.kl_weight); set one to 0"
    )
