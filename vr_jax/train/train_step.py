"""The jitted train steps: one for supervised replies (SFT), one for all RL recipes."""

from collections.abc import Callable
import functools
import typing

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree
import ml_collections
import numpy as np
import optax

from vr_jax import records
from vr_jax.models import interface
from vr_jax.models import layout as layout_lib
from vr_jax.parallel import data_parts, same_programs
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rl import loss as loss_lib
from vr_jax.rl import sampler_mismatch, update
from vr_jax.rollout import forward
from vr_jax.train import train_state as train_state_lib

Metrics = dict[str, Array]

# What the means of sums over tokens are logged as, where not by their own name.
_MEANS = {
  "clip_ratio/low": "clip_ratio/low_mean",
  "clip_ratio/high": "clip_ratio/high_mean",
  "clip_ratio/dual": "clip_ratio/dual_mean",
  "sampling/tis_capped": "sampling/tis_capped_fraction",
}


def make_sft_step(
  graphdef: nnx.GraphDef,
  optimizer: optax.GradientTransformation,
  allowed_tokens: Bool[Array, "vocab"],
  *,
  microbatches: int,
  frozen: tuple[str, ...] = (),
) -> Callable[..., tuple[train_state_lib.TrainState, Metrics]]:
  """Makes the SFT step: a jitted `step(state, prompt, tokens, valid, packed_length=None)`.

  It returns (state, metrics). The loss is the cross-entropy of the reference replies, in nats, the
  mean over the tokens of all replies. The state is donated.

  tokens, valid: [prompts, 1, time].
  packed_length: tokens a device in the packed buffer of one micro-batch; see
    `forward.reply_log_probs`.
  frozen: names of parameters, or of modules, that get no gradient.
  """

  def loss(params: PyTree, part: PyTree, packed_length: int | None) -> tuple[Array, PyTree]:
    model = nnx.merge(graphdef, params)
    log_probs, entropy = forward.reply_log_probs(
      model,
      part["prompt"],
      part["tokens"],
      part["valid"],
      allowed_tokens,
      packed_length=packed_length,
    )
    return -(part["weights"] * log_probs).sum(), {"entropy": (part["weights"] * entropy).sum()}

  def step(
    state: train_state_lib.TrainState,
    prompt: records.Prompt,
    tokens: Array,
    valid: Array,
    packed_length: int | None = None,
  ) -> tuple[train_state_lib.TrainState, Metrics]:
    weights = loss_lib.token_weights(valid, "token_mean")
    batch = {"prompt": prompt, "tokens": tokens, "valid": valid, "weights": weights}
    parts = split_microbatches(batch, microbatches)
    of_part = functools.partial(loss, packed_length=packed_length)
    layout = nnx.merge(graphdef, state.params).layout
    state, metrics, value, sums = apply_update(of_part, optimizer, state, parts, frozen, layout)
    return state, {
      **metrics,
      "loss": value,
      **sums,
      "completions/mean_length": valid.sum(-1).mean(),
    }

  return same_programs.compared(jax.jit(step, donate_argnums=0, static_argnames="packed_length"))


def make_log_likelihood_fn(
  graphdef: nnx.GraphDef, allowed_tokens: Bool[Array, "vocab"]
) -> Callable[..., Array]:
  """Makes a jitted `log_likelihood(params, prompt, tokens, valid)`.

  It returns [sum of the log-probs (nats) of all reply tokens, number of these tokens].
  """

  def log_likelihood(
    params: PyTree, prompt: records.Prompt, tokens: Array, valid: Array
  ) -> Float[Array, "2"]:
    model = nnx.merge(graphdef, params)
    log_probs, _ = forward.reply_log_probs(model, prompt, tokens, valid, allowed_tokens)
    return jnp.stack([log_probs.sum(), valid.sum().astype(jnp.float32)])

  return same_programs.compared(jax.jit(log_likelihood))


def make_logprob_fn(
  graphdef: nnx.GraphDef,
  allowed_tokens: Bool[Array, "vocab"],
  *,
  temperature: float,
  microbatches: int = 1,
) -> Callable[..., Array]:
  """Makes a jitted `score(params, prompt, rollout, packed_length=None)`, for use without gradient.

  It returns log-probs [prompts, group, time], in nats; 0 for padding and observations.

  microbatches: equal parts that are computed one after the other.
  packed_length: tokens a device in the packed buffer of one micro-batch; see
    `forward.reply_log_probs`.
  """

  def score(
    params: PyTree,
    prompt: records.Prompt,
    rollout: records.Rollout,
    packed_length: int | None = None,
  ) -> Array:
    def score_part(part: tuple[records.Prompt, records.Rollout]) -> Array:
      model = nnx.merge(graphdef, params)
      return _log_probs(model, *part, allowed_tokens, temperature, packed_length)[0]

    return map_microbatches(score_part, (prompt, rollout), microbatches)

  return same_programs.compared(jax.jit(score, static_argnames="packed_length"))


def make_rl_step(
  graphdef: nnx.GraphDef,
  optimizer: optax.GradientTransformation,
  allowed_tokens: Bool[Array, "vocab"],
  config: ml_collections.ConfigDict,
  *,
  frozen: tuple[str, ...] = (),
) -> Callable[..., tuple[train_state_lib.TrainState, Metrics]]:
  """Makes the jitted RL step.

  It is called as `step(state, prompt, rollout, advantages, group_mask, old_log_probs,
  ref_log_probs, packed_length=None)` and returns (state, metrics). The state is donated.

  config: the section `rl`.
  frozen: names of parameters, or of modules, that get no gradient.
  advantages: [prompts, group, time].
  group_mask: [prompts], bool; False takes the group out of loss, KL, entropy bonus and token count.
  old_log_probs: log-probs before the first update on this batch. None: those of this forward pass.
  ref_log_probs: log-probs of the frozen reference; None where kl_weight is 0.
  packed_length: tokens a device in the packed buffer of one micro-batch; see
    `forward.reply_log_probs`.
  """

  def loss(params: PyTree, part: PyTree, packed_length: int | None) -> tuple[Array, PyTree]:
    model = nnx.merge(graphdef, params)
    rollout = part["rollout"]
    log_probs, entropy = _log_probs(
      model, part["prompt"], rollout, allowed_tokens, config.temperature, packed_length
    )
    old_log_probs = part["old_log_probs"]
    if old_log_probs is None:
      old_log_probs = jax.lax.stop_gradient(log_probs)
    value, sums = loss_lib.policy_loss(
      log_probs,
      old_log_probs,
      part["advantages"],
      part["weights"],
      clip_epsilon_low=config.clip_epsilon_low,
      clip_epsilon_high=config.clip_epsilon_high,
      importance_sampling_level=config.importance_sampling_level,
      objective=config.objective,
      dual_clip=config.dual_clip or None,
      sampler_log_probs=rollout.log_probs,
      tis_cap=config.tis_cap,
      reference_log_probs=part["ref_log_probs"],
      kl_weight=config.kl_weight,
      kl_estimator=config.kl_estimator,
      kl_clamp=config.kl_clamp or None,
    )
    if config.entropy_weight:
      value -= config.entropy_weight * (part["weights"] * entropy).sum()
    sums["entropy"] = entropy.sum()
    mismatch = sampler_mismatch.mismatch_sums(
      old_log_probs, rollout.log_probs, action_mask(rollout)
    )
    return value, (sums, mismatch)

  def step(
    state: train_state_lib.TrainState,
    prompt: records.Prompt,
    rollout: records.Rollout,
    advantages: Array,
    group_mask: Array,
    old_log_probs: Array | None,
    ref_log_probs: Array | None,
    packed_length: int | None = None,
  ) -> tuple[train_state_lib.TrainState, Metrics]:
    mask = action_mask(rollout)
    weights = loss_lib.token_weights(
      mask & group_mask[:, None, None],
      config.aggregation,
      constant_length=config.max_new_tokens,
    )
    batch = {
      "prompt": prompt,
      "rollout": rollout,
      "advantages": advantages,
      "weights": weights,
      "old_log_probs": old_log_probs,
      "ref_log_probs": ref_log_probs,
    }
    parts = split_microbatches(batch, config.microbatches)
    of_part = functools.partial(loss, packed_length=packed_length)
    layout = nnx.merge(graphdef, state.params).layout
    state, metrics, value, (sums, mismatch) = apply_update(
      of_part, optimizer, state, parts, frozen, layout
    )
    return state, {
      **metrics,
      "loss": value,
      **_per_token(sums, mask.sum()),
      **sampler_mismatch.mismatch_metrics(mismatch),
    }

  return same_programs.compared(jax.jit(step, donate_argnums=0, static_argnames="packed_length"))


def _log_probs(
  model: interface.LanguageModel,
  prompt: records.Prompt,
  rollout: records.Rollout,
  allowed_tokens: Bool[Array, "vocab"],
  temperature: float,
  packed_length: int | None,
) -> tuple[Array, Array]:
  """Log-probs and entropies of the sampled tokens. Observations between turns are context only."""
  return forward.reply_log_probs(
    model,
    prompt,
    typing.cast(Array, rollout.tokens),
    token_mask(rollout),
    allowed_tokens,
    temperature,
    packed_length=packed_length,
    scored=action_mask(rollout),
    episode_inputs=rollout.episode_inputs,
  )


def token_mask(rollout: records.Rollout) -> Bool[Array, "prompts group time"]:
  """Positions that are not padding: sampled tokens, and observations between turns."""
  return rollout.kind != int(records.Kind.PAD)


def action_mask(rollout: records.Rollout) -> Bool[Array, "prompts group time"]:
  """Positions whose tokens the model sampled: those that count in the loss."""
  return rollout.kind == int(records.Kind.MODEL)


def reply_lengths(
  valid: Bool[Array, "prompts group time"], mesh: jax.sharding.Mesh
) -> Int[np.ndarray, "prompts group"]:
  """Number of tokens of each reply, of all processes, on the host."""
  return jax.device_get(_lengths(valid, mesh))


@functools.partial(jax.jit, static_argnames="mesh")
def _lengths(
  valid: Bool[Array, "prompts group time"], mesh: jax.sharding.Mesh
) -> Int[Array, "prompts group"]:
  return jax.lax.with_sharding_constraint(valid.sum(axis=-1), mesh_lib.replicated(mesh))


def split_microbatches(batch: PyTree, parts: int) -> PyTree:
  """Reshapes every leaf from [prompts, …] to [parts, prompts / parts, …].

  Row i goes to part i mod parts, so every part has rows of every device, and none has to move.
  """

  def split(x: Array) -> Array:
    return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)

  return jax.tree.map(split, batch)


def map_microbatches(function: Callable[..., Array], batch: PyTree, parts: int) -> Array:
  """Applies a function to one micro-batch after the other, with the memory of one.

  function: from a part of the batch to an array [prompts of the part, …].
  Returns the results in the order of the batch.
  """
  if parts == 1:
    return function(batch)
  x = jax.lax.map(function, split_microbatches(batch, parts))
  return jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:])


def apply_update(
  loss: Callable[[PyTree, PyTree], tuple[Array, PyTree]],
  optimizer: optax.GradientTransformation,
  state: train_state_lib.TrainState,
  parts: PyTree,
  frozen: tuple[str, ...],
  layout: layout_lib.Layout,
) -> tuple[train_state_lib.TrainState, Metrics, Array, PyTree]:
  """Makes one update with the gradients of `loss(params, part)`, summed over the micro-batches.

  layout: of the models in the loss; see `data_parts.sum_of_parts`.

  Returns (state, metrics of the update, loss, auxiliary sums).
  """

  def gradients_of(params: PyTree, parts: PyTree) -> tuple[Array, PyTree, PyTree]:
    trained, fixed = params
    return update.accumulated_gradients(
      lambda trained, part: loss(train_state_lib.join(trained, fixed), part), trained, parts
    )

  trained, fixed = train_state_lib.split(state.params, frozen)
  value, sums, gradients = data_parts.sum_of_parts(gradients_of, (trained, fixed), parts, layout)
  trained, optimizer_state, applied, norm = update.guarded_update(
    optimizer, gradients, state.optimizer_state, trained, value
  )
  state = train_state_lib.TrainState(
    step=state.step + 1,
    params=train_state_lib.join(trained, fixed),
    optimizer_state=optimizer_state,
    skipped=state.skipped + ~applied,
    skipped_in_a_row=jnp.where(applied, 0, state.skipped_in_a_row + 1),
  )
  metrics = {
    "grad_norm": norm,
    "nonfinite_updates": state.skipped,
    "consecutive_nonfinite_updates": state.skipped_in_a_row,
  }
  return state, metrics, value, sums


def _per_token(sums: Metrics, tokens: Array) -> Metrics:
  """Turns sums into means: terms of the loss over its own tokens, the entropy over all tokens."""
  in_loss = jnp.maximum(sums["mask"], 1)
  means = {
    _MEANS.get(name, name): value / (jnp.maximum(tokens, 1) if name == "entropy" else in_loss)
    for name, value in sums.items()
    if name != "mask"
  }
  return {**means, "loss_tokens": sums["mask"]}
