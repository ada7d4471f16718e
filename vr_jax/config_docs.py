"""Prints docs/config.md, the page of all config fields, from their declarations.

python -m vr_jax.config_docs > docs/config.md
"""

from collections.abc import Iterator, Mapping
import dataclasses
import inspect
import sys
import typing
from typing import Any

from vr_jax import config_fields, optional_sections, schema
from vr_jax.envs import registry

# Fields that TRL or verl has too: field -> (TRL's name, verl's name). TRL: GRPOConfig, SFTConfig,
# ModelConfig or, where it says so, an argument of a trainer or PPOConfig.
_POLICY, _ROLLOUT, _MODEL = (f"actor_rollout_ref.{each}" for each in ("actor", "rollout", "model"))
OTHER_NAMES: Mapping[str, tuple[str, str]] = {
  "seed": ("seed", "data.seed"),
  "data.annotations": ("train_dataset (of the trainer)", "data.train_files"),
  "model.pretrained": ("model_name_or_path", f"{_MODEL}.path"),
  "model.dtype": ("dtype", ""),
  "model.remat": ("gradient_checkpointing", f"{_MODEL}.enable_gradient_checkpointing"),
  "model.attention": ("attn_implementation", ""),
  "model.freeze_vision": ("", f"{_POLICY}.freeze_vision_tower"),
  "model.lora.rank": ("lora_r", f"{_MODEL}.lora_rank"),
  "model.lora.alpha": ("lora_alpha", f"{_MODEL}.lora_alpha"),
  "model.lora.text": ("lora_target_modules", f"{_MODEL}.target_modules"),
  "sft.steps": ("max_steps", "trainer.total_training_steps"),
  "sft.batch_size": ("per_device_train_batch_size (a device)", "data.train_batch_size"),
  "sft.microbatches": ("gradient_accumulation_steps", ""),
  "sft.learning_rate": ("learning_rate", "optim.lr"),
  "sft.schedule": ("lr_scheduler_type", "optim.lr_scheduler"),
  "sft.warmup_steps": ("warmup_steps", ""),
  "sft.b1": ("adam_beta1", "optim.betas"),
  "sft.b2": ("adam_beta2", "optim.betas"),
  "sft.weight_decay": ("weight_decay", "optim.weight_decay"),
  "sft.max_grad_norm": ("max_grad_norm", "optim.clip_grad"),
  "sft.max_reply_tokens": ("max_length (with the prompt)", "data.max_length (with the prompt)"),
  "sft.checkpoint_every": ("save_steps", "trainer.save_freq"),
  "sft.validate_every": ("eval_steps", "trainer.test_freq"),
  "sft.patience": ("early_stopping_patience (of a callback)", ""),
  "rl.init_checkpoint": ("model_name_or_path", ""),
  "rl.steps": ("max_steps", "trainer.total_training_steps"),
  "rl.batch_size": ("generation_batch_size / num_generations", "data.train_batch_size"),
  "rl.num_generations": ("num_generations", f"{_ROLLOUT}.n"),
  "rl.num_iterations": ("num_iterations", f"{_POLICY}.ppo_epochs"),
  "rl.microbatches": (
    "gradient_accumulation_steps",
    f"{_POLICY}.ppo_micro_batch_size_per_gpu (a size)",
  ),
  "rl.log_prob_microbatches": ("", f"{_ROLLOUT}.log_prob_micro_batch_size_per_gpu (a size)"),
  "rl.learning_rate": ("learning_rate", f"{_POLICY}.optim.lr"),
  "rl.schedule": ("lr_scheduler_type", f"{_POLICY}.optim.lr_scheduler_type"),
  "rl.warmup_steps": ("warmup_steps", f"{_POLICY}.optim.lr_warmup_steps"),
  "rl.b1": ("adam_beta1", f"{_POLICY}.optim.betas"),
  "rl.b2": ("adam_beta2", f"{_POLICY}.optim.betas"),
  "rl.weight_decay": ("weight_decay", f"{_POLICY}.optim.weight_decay"),
  "rl.max_grad_norm": ("max_grad_norm", f"{_POLICY}.grad_clip"),
  "rl.checkpoint_every": ("save_steps", "trainer.save_freq"),
  "rl.temperature": ("temperature", f"{_ROLLOUT}.temperature"),
  "rl.top_p": ("top_p", f"{_ROLLOUT}.top_p"),
  "rl.top_k": ("top_k", f"{_ROLLOUT}.top_k (-1: all)"),
  "rl.min_p": ("min_p", ""),
  "rl.max_new_tokens": ("max_completion_length", "data.max_response_length"),
  "rl.dynamic_sampling_max_batches": ("", "algorithm.filter_groups.max_num_gen_batches"),
  "rl.one_step_off_policy": ("", "the recipe one_step_off_policy"),
  "rl.normalize_by_std": ("scale_rewards", "algorithm.norm_adv_by_std_in_grpo"),
  "rl.baseline": ("", "algorithm.adv_estimator (rloo)"),
  "rl.aggregation": ("loss_type", f"{_POLICY}.loss_agg_mode"),
  "rl.objective": ("loss_type (cispo)", f"{_POLICY}.policy_loss.loss_mode"),
  "rl.importance_sampling_level": (
    "importance_sampling_level",
    f"{_POLICY}.policy_loss.loss_mode (gspo)",
  ),
  "rl.clip_epsilon_low": ("epsilon", f"{_POLICY}.clip_ratio_low"),
  "rl.clip_epsilon_high": ("epsilon_high", f"{_POLICY}.clip_ratio_high"),
  "rl.dual_clip": ("delta", f"{_POLICY}.clip_ratio_c"),
  "rl.kl_weight": ("beta", f"{_POLICY}.kl_loss_coef"),
  "rl.kl_estimator": ("", f"{_POLICY}.kl_loss_type"),
  "rl.entropy_weight": ("entropy_coef", f"{_POLICY}.entropy_coeff"),
  "rl.advantage_estimator": ("", "algorithm.adv_estimator"),
  "rl.overlong_buffer": ("", "reward_model.overlong_buffer.len"),
  "rl.overlong_weight": ("", "reward_model.overlong_buffer.penalty_factor"),
  "rl.tis_cap": (
    "vllm_importance_sampling_cap",
    "algorithm.rollout_correction.rollout_is_threshold",
  ),
  "rl.eval_every": ("eval_steps", "trainer.test_freq"),
  "rl.eval_split": ("eval_dataset (of the trainer)", "data.val_files"),
  "log.rollouts_every": ("", "trainer.rollout_data_dir (a directory)"),
  "log.completions_every": ("log_completions (of the logging steps)", ""),
  "log.wandb": ("report_to", "trainer.logger"),
  "eval.batch_size": ("per_device_eval_batch_size (a device)", "data.val_batch_size"),
  "eval.temperature": ("", f"{_ROLLOUT}.val_kwargs.temperature"),
  "critic.gamma_token": ("gamma (PPOConfig)", "algorithm.gamma"),
  "critic.gae_lambda": ("lam (PPOConfig)", "algorithm.lam"),
  "critic.kl_weight": ("kl_coef (PPOConfig)", "algorithm.kl_ctrl.kl_coef"),
  "critic.value_clip": ("cliprange_value (PPOConfig)", "critic.cliprange_value"),
  "critic.learning_rate": ("", "critic.optim.lr"),
  "critic.warmup_steps": ("", "critic.optim.lr_warmup_steps"),
  "critic.weight_decay": ("", "critic.optim.weight_decay"),
  "critic.max_grad_norm": ("", "critic.grad_clip"),
  "env.rewards": ("reward_funcs (of the trainer)", "custom_reward_function.path"),
  "env.weights": ("reward_weights", ""),
  "env.turns": ("max_tool_calling_iterations", f"{_ROLLOUT}.multi_turn.max_assistant_turns"),
}

_INTRODUCTION = """\
# Config fields

Written by `python -m vr_jax.config_docs` from the declarations of the fields: change those, not
this page.

Any field can be set on the command line, as in `--config.rl.learning_rate=2e-6`. A value that is
not among the choices or is out of bounds is refused before anything runs. In bounds, `[` and `]`
include the end, `(` and `)` do not; the bounds of a tuple hold for each of its values. The default
is what a recipe gets that does not set the field. What each recipe sets is in its file in
[configs/](../configs).

A workdir has its config: `vr-jax --workdir=runs/mine --mode=eval` reads it from there, and flags
change it. The column "may change" says until when; another change is refused, with the field, both
values and what to do.

{changes}

So `vr-jax --workdir=runs/mine --config.rl.steps=200` extends a run that had 100 steps. With
`rl.schedule=constant` it ends, bit for bit, where a run of 200 steps ends. With `cosine` the
learning rate depends on the number of steps: it rises again at step 101, and the log says from what
to what. To go on at a low rate, set `rl.schedule=constant` and a lower `rl.learning_rate` as well.
The warm start can be extended as long as rl has not begun.

The last two columns give the names in [TRL](https://huggingface.co/docs/trl) and
[verl](https://verl.readthedocs.io). "–" means that they have no such field, or that we know of
none. Brackets say where a name is found, or what it counts differently.
"""


def page() -> str:
  """Returns docs/config.md."""
  changes = "\n".join(f"- {name}: {meaning}" for name, meaning in schema.CHANGES.items())
  return "\n".join([_INTRODUCTION.replace("{changes}", changes), *_lines()])


def _lines() -> Iterator[str]:
  yield from _section("config", config_fields.RunConfig)
  for name, cls in _sections():
    yield from _section(f"config.{name}", cls, prefix=f"{name}.")
  for name, cls in registry.ENVIRONMENTS.items():
    about = f"Fields of the environment {cls.__name__} ({cls.__module__.replace('.', '/')}.py)."
    yield from _section(f"config.env of {name}", cls, prefix="env.", about=about)


def _sections() -> Iterator[tuple[str, type]]:
  """Names and classes of all sections, those of every recipe first."""
  hints = typing.get_type_hints(config_fields.RunConfig)
  for name, cls in hints.items():
    if dataclasses.is_dataclass(cls) and isinstance(cls, type):
      yield name, cls
  yield from optional_sections.OPTIONAL.items()


def _section(title: str, cls: type, *, prefix: str = "", about: str = "") -> Iterator[str]:
  """A heading, a sentence (`about`, or the docstring of the class), and a table of the fields."""
  whole_run = cls is config_fields.RunConfig
  yield f"## {title}\n"
  yield f"{about or inspect.getdoc(cls)}\n"
  yield "| field | type | default | meaning | may change | TRL | verl |"
  yield "|---|---|---|---|---|---|---|"
  for field in schema.fields(cls, prefix):
    if not whole_run or "." not in field.name:  # the sections have tables of their own
      yield _row(field)
  yield ""


def _row(field: schema.Field) -> str:
  default = "none; a recipe sets it" if field.default is schema.REQUIRED else _code(field.default)
  trl, verl = (name or "–" for name in OTHER_NAMES.get(field.name, ("", "")))
  meaning = field.help.replace("<", "&lt;").replace("|", "\\|")
  cells = (f"`{field.name}`", _values(field), default, meaning, field.change, trl, verl)
  return f"| {' | '.join(cells)} |"


def _values(field: schema.Field) -> str:
  """The choices of a field, or its type and its bounds."""
  if field.choices:
    return ", ".join(_code(choice) for choice in field.choices)
  kind = f"`{_type_name(field.type)}`"
  return f"{kind} in `{field.bounds}`" if field.bounds else kind


def _type_name(kind: Any) -> str:
  """A type as it is written: int, tuple[float, ...], Mapping[str, Any]."""
  origin, inside = typing.get_origin(kind), typing.get_args(kind)
  if origin is None:
    return "..." if kind is Ellipsis else getattr(kind, "__name__", str(kind))
  return f"{origin.__name__}[{', '.join(map(_type_name, inside))}]"


def _code(value: Any) -> str:
  return '`""`' if value == "" else f"`{value}`"


if __name__ == "__main__":
  sys.stdout.write(page())
