"""The critic of PPO: a network of the policy's architecture with a value head.

    values              = value(critic.params, prompt, rollout)          before the update
    advantages, returns = credit(scores, rollout, values, reference)     bi-level GAE: rl/gae.py
    critic              = step(critic, prompt, rollout, values, returns)

`Critic` holds the critic's state and these three functions.

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
from vr_jax.rl import gae
from vr_jax.rl import loss as loss_lib
from vr_jax.rollout import forward
from vr_jax.train import model_setup, train_step
from vr_jax.train import train_state as train_state_lib

Targets = tuple[Array, Array]  # (values before the update, returns)


@dataclasses.dataclass(kw_only=True)
class Critic:
  """A critic in training.

  epochs: updates on each batch.
  value: see `make_value_fn`.
  credit: see `gae.make_credit`.
  step: see `make_critic_step`.
  """

  state: train_state_lib.TrainState
  epochs: int
  value: Callable[..., Array]
  credit: Callable[..., tuple[Array, Array, train_step.Metrics]]
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

    answer_reward: see `gae.make_credit`.
    """
    section, rl = net.config.critic, net.config.rl
    return cls(
      state=state,
      epochs=rl.num_iterations,
      value=make_value_fn(net.graphdef),
      credit=gae.make_credit(section, answer_reward=answer_reward),
      step=make_critic_step(
        net.graphdef,
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
    reference: Array | None,
    packed: int | None,
  ) -> tuple[Array, Targets, train_step.Metrics]:
    """Computes advantages, and the targets of `learn`.

    Returns (advantages [prompts, group, time], targets, metrics).

    reference: see `gae.make_credit`.
    packed: see `make_value_fn`.
    """
    values = self.value(self.state.params, prompt, rollout, packed=packed)
    advantages, returns, metrics = self.credit(scores, rollout, values, reference)
    return advantages, (values, returns), metrics

  def learn(
    self,
    prompt: records.Prompt,
    rollout: records.Rollout,
    targets: Targets,
    *,
    packed: int | None,
  ) -> train_step.Metrics:
    """Updates the critic on a batch; returns the metrics of the last update.

    targets: from `advantages`.
    packed: of one micro-batch.
    """
    for _ in range(self.epochs):
      self.state, metrics = self.step(self.state, prompt, rollout, *targets, packed=packed)
    return metrics


def fresh_params(policy: PyTree, *, embed: int) -> dict[str, Any]:
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


def make_value_fn(graphdef: nnx.GraphDef) -> Callable[..., Array]:
  """Makes a jitted `value(params, prompt, rollout, packed=None)`, for use without gradient.

  It returns values [prompts, group, time].

  graphdef: that of the policy's model.
  packed: see `forward.reply_log_probs`.
  """
  return jax.jit(functools.partial(_values, graphdef), static_argnames="packed")


def make_critic_step(
  graphdef: nnx.GraphDef,
  optimizer: optax.GradientTransformation,
  *,
  clip: float,
  microbatches: int,
  frozen: tuple[str, ...] = (),
) -> Callable[..., tuple[train_state_lib.TrainState, train_step.Metrics]]:
  """Makes a jitted `step(state, prompt, rollout, old, returns, packed=None)`.

  It returns (state, metrics). The loss is `gae.value_loss`, the mean over the tokens that the model
  wrote. The state is donated.

  clip: config.critic.value_clip.
  frozen: see `frozen_names`.
  old: [prompts, group, time], values before the first update on this batch.
  returns: [prompts, group, time], the targets of the values.
  packed: of one micro-batch.

  Metrics, all under `critic/`:
    loss, grad_norm;
    value, return: means;
    value_clipped: fraction of tokens where the clipped loss is the larger one;
    explained_variance: 1 - var(return - value) / var(return) before this update; nan where all
      returns are the same;
    nonfinite_updates, consecutive_nonfinite_updates: updates skipped so far, and in a row.
  """

  def loss(params: PyTree, part: PyTree, packed: int | None) -> tuple[Array, PyTree]:
    values = _values(graphdef, params, part["prompt"], part["rollout"], packed)
    return gae.value_loss(values, part["old"], part["returns"], part["weights"], clip=clip)

  def step(
    state: train_state_lib.TrainState,
    prompt: records.Prompt,
    rollout: records.Rollout,
    old: Array,
    returns: Array,
    packed: int | None = None,
  ) -> tuple[train_state_lib.TrainState, train_step.Metrics]:
    mask = train_step.action_mask(rollout)
    weights = loss_lib.token_weights(mask, "token_mean")
    batch = {"prompt": prompt, "rollout": rollout, "old": old, "returns": returns}
    parts = train_step.split_microbatches({**batch, "weights": weights}, microbatches)
    of_part = functools.partial(loss, packed=packed)
    state, metrics, value, sums = train_step.apply_update(of_part, optimizer, state, parts, frozen)
    means = {name: x / jnp.maximum(sums["mask"], 1) for name, x in sums.items() if name != "mask"}
    unexplained = means.pop("squared_error") - (means["return"] - means["value"]) ** 2
    variance = returns.var(where=mask)
    explained = jnp.where(variance > 0, 1 - unexplained / variance, jnp.nan)
    metrics |= {"loss": value, **means, "explained_variance": explained}
    return state, {f"critic/{name}": x for name, x in metrics.items()}

  return jax.jit(step, donate_argnums=0, static_argnames="packed")


def _values(
  graphdef: nnx.GraphDef,
  params: PyTree,
  prompt: records.Prompt,
  rollout: records.Rollout,
  packed: int | None = None,
) -> Float[Array, "prompts group time"]:
  return forward.reply_values(
    nnx.merge(graphdef, params["model"]),
    params["head"],
    prompt,
    cast(Array, rollout.tokens),
    train_step.token_mask(rollout),
    packed=packed,
    episode_inputs=rollout.episode_inputs,
  )
