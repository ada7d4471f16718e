"""The critic of PPO: a network of the policy's architecture with a value head.

    advantages, targets, metrics = critic.advantages(
      prompt, rollout, scores, ref_log_probs=ref_log_probs, packed_length=None
    )
    metrics = critic.learn(prompt, rollout, targets, packed_length=None)

`advantages` computes the values before the update, and from them advantages and returns by bi-level
GAE (rl/gae.py). `learn` updates the critic with these values and returns.

Its parameters are {"model": as the policy's, "head": forward.ValueHead}, in a
`train_state.TrainState` of their own, and it shares none of them with the policy. Where prompts and
observations come with features it does not run its tower; a frozen tower's features serve both.

Source: Video-MTR, arXiv 2508.20478, section 3.3, and its released code.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, cast

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree
import ml_collections
import optax

from vr_jax import records
from vr_jax.parallel import same_programs
from vr_jax.rl import gae
from vr_jax.rl import loss as loss_lib
from vr_jax.rollout import forward
from vr_jax.train import model_setup, train_step
from vr_jax.train import train_state as train_state_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class ValueTargets:
  """What a critic learns from on one batch.

  old_values: values before the update: of the state before each token is sampled, 0 for padding.
  returns: what the values should become; the old values where nothing is learned (padding,
    observations, turns that are not scored).
  """

  old_values: Float[Array, "prompts group time"]
  returns: Float[Array, "prompts group time"]


@dataclasses.dataclass(kw_only=True)
class Critic:
  """A critic in training.

  num_iterations: updates on each batch.
  value: see `make_value_fn`.
  compute_advantages: see `gae.make_advantage_fn`.
  step: see `make_critic_step`.
  """

  state: train_state_lib.TrainState
  num_iterations: int
  value: Callable[..., Array]
  compute_advantages: Callable[..., tuple[Array, Array, train_step.Metrics]]
  step: Callable[..., tuple[train_state_lib.TrainState, train_step.Metrics]]

  @classmethod
  def create(
    cls,
    net: model_setup.ModelSetup,
    optimizer: optax.GradientTransformation,
    state: train_state_lib.TrainState,
    *,
    answer_reward: str,
  ) -> "Critic":
    """Makes a critic that starts from this state.

    answer_reward: see `gae.make_advantage_fn`.
    """
    section, rl = net.config.critic, net.config.rl
    return cls(
      state=state,
      num_iterations=rl.num_iterations,
      value=make_value_fn(net.graphdef, microbatches=rl.log_prob_microbatches),
      compute_advantages=gae.make_advantage_fn(section, answer_reward=answer_reward),
      step=make_critic_step(
        net.update_graphdef,
        optimizer,
        clip=section.value_clip,
        microbatches=rl.microbatches,
        frozen=frozen_names(net.frozen),
      ),
    )

  def advantages(
    self,
    prompt: records.Prompt,
    rollout: records.Rollout,
    scores: records.Scores,
    *,
    ref_log_probs: Array | None,
    packed_length: int | None,
  ) -> tuple[Array, ValueTargets, train_step.Metrics]:
    """Computes advantages, and the targets of `learn`.

    Returns (advantages [prompts, group, time], targets, metrics).

    ref_log_probs: see `gae.make_advantage_fn`.
    packed_length: tokens a device in the packed buffer; see `make_value_fn`.
    """
    values = self.value(self.state.params, prompt, rollout, packed_length=packed_length)
    advantages, returns, metrics = self.compute_advantages(scores, rollout, values, ref_log_probs)
    return advantages, ValueTargets(old_values=values, returns=returns), metrics

  def learn(
    self,
    prompt: records.Prompt,
    rollout: records.Rollout,
    targets: ValueTargets,
    *,
    packed_length: int | None,
  ) -> train_step.Metrics:
    """Updates the critic on a batch; returns the metrics of the last update.

    targets: from `advantages`.
    packed_length: tokens a device in the packed buffer of one micro-batch.
    """
    for _ in range(self.num_iterations):
      self.state, metrics = self.step(
        self.state,
        prompt,
        rollout,
        targets.old_values,
        targets.returns,
        packed_length=packed_length,
      )
    return metrics


def init_critic_params(policy: PyTree, *, embed: int) -> dict[str, Any]:
  """Makes the parameters of a critic that starts from a copy of the policy.

  It must be a copy, since updates donate the parameters. The head's weight and bias are 0, so all
  values are 0 until the first update, and advantages are the returns.

  embed: width of the hidden states.

  Reconstruction: the released code draws the weight at random, which makes the first advantages
  noisy.
  """
  head = forward.ValueHead(
    weight=nnx.Param(jnp.zeros(embed), axes=(None,)), bias=nnx.Param(jnp.zeros(()), axes=())
  )
  return {"model": jax.tree.map(jnp.copy, policy), "head": head}


def frozen_names(names: tuple[str, ...]) -> tuple[str, ...]:
  """The critic's names of parameters that are frozen in the policy under `names`."""
  return tuple(f"model.{name}" for name in names)


def make_optimizer(
  config: ml_collections.ConfigDict, params: PyTree, frozen: tuple[str, ...]
) -> optax.GradientTransformation:
  """Makes the optimizer of the section `critic`, for as many updates as the section `rl` has."""
  updates = {"steps": config.rl.steps, "num_iterations": config.rl.num_iterations}
  section = ml_collections.ConfigDict({**config.critic.to_dict(), **updates})
  return train_state_lib.make_optimizer(section, params, frozen)


def make_value_fn(graphdef: nnx.GraphDef, *, microbatches: int = 1) -> Callable[..., Array]:
  """Makes a jitted `value(params, prompt, rollout, packed_length=None)`, for use without gradient.

  It returns values [prompts, group, time]. The value at token t is that of the state before t is
  sampled; at padding it is 0.

  graphdef: that of the policy's model.
  microbatches: equal parts that are computed one after the other.
  packed_length: tokens a device in the packed buffer of one micro-batch; see
    `forward.reply_log_probs`.
  """

  def value(
    params: PyTree,
    prompt: records.Prompt,
    rollout: records.Rollout,
    packed_length: int | None = None,
  ) -> Array:
    def value_part(part: tuple[records.Prompt, records.Rollout]) -> Array:
      return _values(graphdef, params, *part, packed_length)

    return train_step.map_microbatches(value_part, (prompt, rollout), microbatches)

  return same_programs.compared(jax.jit(value, static_argnames="packed_length"))


def make_critic_step(
  graphdef: nnx.GraphDef,
  optimizer: optax.GradientTransformation,
  *,
  clip: float,
  microbatches: int,
  frozen: tuple[str, ...] = (),
) -> Callable[..., tuple[train_state_lib.TrainState, train_step.Metrics]]:
  """Makes a jitted `step(state, prompt, rollout, old_values, returns, packed_length=None)`.

  It returns (state, metrics). The loss is `gae.value_loss`, the mean over the tokens that the model
  wrote. The state is donated.

  clip: config.critic.value_clip.
  frozen: see `frozen_names`.
  old_values, returns: [prompts, group, time]; see `ValueTargets`.
  packed_length: tokens a device in the packed buffer of one micro-batch.

  Metrics, all under `critic/`:
    loss, grad_norm;
    value, return: means;
    value_clip_ratio: fraction of tokens where the clipped loss is the larger one;
    explained_variance: 1 - var(return - value) / var(return) before this update; nan where all
      returns are the same;
    nonfinite_updates, consecutive_nonfinite_updates: updates skipped so far, and in a row.
  """

  def loss(params: PyTree, part: PyTree, packed_length: int | None) -> tuple[Array, PyTree]:
    values = _values(graphdef, params, part["prompt"], part["rollout"], packed_length)
    return gae.value_loss(values, part["old_values"], part["returns"], part["weights"], clip=clip)

  def step(
    state: train_state_lib.TrainState,
    prompt: records.Prompt,
    rollout: records.Rollout,
    old_values: Array,
    returns: Array,
    packed_length: int | None = None,
  ) -> tuple[train_state_lib.TrainState, train_step.Metrics]:
    mask = train_step.action_mask(rollout)
    weights = loss_lib.token_weights(mask, "token_mean")
    batch = {
      "prompt": prompt,
      "rollout": rollout,
      "old_values": old_values,
      "returns": returns,
      "weights": weights,
    }
    parts = train_step.split_microbatches(batch, microbatches)
    of_part = functools.partial(loss, packed_length=packed_length)
    layout = nnx.merge(graphdef, state.params["model"]).layout
    state, metrics, value, sums = train_step.apply_update(
      of_part, optimizer, state, parts, frozen, layout
    )
    means = {name: x / jnp.maximum(sums["mask"], 1) for name, x in sums.items() if name != "mask"}
    unexplained = means.pop("squared_error") - (means["return"] - means["value"]) ** 2
    variance = returns.var(where=mask)
    explained = jnp.where(variance > 0, 1 - unexplained / variance, jnp.nan)
    metrics |= {"loss": value, **means, "explained_variance": explained}
    return state, {f"critic/{name}": x for name, x in metrics.items()}

  return same_programs.compared(jax.jit(step, donate_argnums=0, static_argnames="packed_length"))


def _values(
  graphdef: nnx.GraphDef,
  params: PyTree,
  prompt: records.Prompt,
  rollout: records.Rollout,
  packed_length: int | None = None,
) -> Float[Array, "prompts group time"]:
  return forward.reply_values(
    nnx.merge(graphdef, params["model"]),
    params["head"],
    prompt,
    cast(Array, rollout.tokens),
    train_step.token_mask(rollout),
    packed_length=packed_length,
    episode_inputs=rollout.episode_inputs,
  )
