"""The learner: computes advantages from rewards and updates the policy, and the critic of PPO.

scored replies -> advantages (rl/advantages.py, or a critic) -> update
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree
import numpy as np

from vr_jax import records
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rl import advantages as advantages_lib
from vr_jax.rollout import repetition
from vr_jax.train import console, experience, learner_state, reply_shapes, run_context, train_step
from vr_jax.train import critic as critic_lib
from vr_jax.train import step_timer as step_timer_lib
from vr_jax.train import train_state as train_state_lib

_NOISE_SALT = 2**21  # folded into the run's key: other numbers than those of sampling


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaunchedUpdate:
  """The updates on a batch of replies, which the devices may still be computing.

  metrics: of the step. updates: metrics of each update.
  """

  collected: experience.Experience
  shapes: reply_shapes.ReplyShapes
  metrics: dict[str, Array]
  updates: list[train_step.Metrics]


@dataclasses.dataclass(kw_only=True)
class Learner:
  """A policy in training, with its reference and its critic where the recipe has them.

  reference_params: the reference's values of the parameters that are trained; the frozen ones are
    shared with the policy. None without a reference. No checkpoint holds them: they are the run's
    initial parameters, that `create` gets.
  update: the jitted step of `train_step.make_rl_step`.
  log_prob_fn: the jitted function of `train_step.make_logprob_fn`.
  learning_rate: see `train_state.make_last_learning_rate_fn`.
  last_advantages: of the tokens of the last step, [prompts, group, time], with time as
    `reply_shapes.truncate` leaves it; None before the first.
  """

  context: run_context.RunContext
  state: train_state_lib.TrainState
  reference_params: PyTree | None
  critic: critic_lib.Critic | None
  update: Callable[..., tuple[train_state_lib.TrainState, train_step.Metrics]]
  log_prob_fn: Callable[..., Array]
  learning_rate: Callable[[train_state_lib.TrainState], Array]
  last_advantages: Array | None = None

  @classmethod
  def create(cls, context: run_context.RunContext, initial_params: PyTree) -> "Learner":
    """Makes a learner that starts from these parameters, which are the reference's, too.

    It owns them: updates donate them. A run that goes on from a checkpoint gives its initial
    parameters here, too, and then calls `restore`.
    """
    rl, graphdef, allowed_tokens = context.config.rl, context.graphdef, context.allowed_tokens
    start, critic = learner_state.make_learner_state(context, initial_params), None
    if start.critic is not None and start.critic_optimizer is not None:
      critic = critic_lib.Critic.create(
        context,
        start.critic_optimizer,
        start.critic,
        answer_reward=context.environment.answer_reward,
      )
    return cls(
      context=context,
      state=start.policy,
      reference_params=start.reference_params,
      critic=critic,
      update=train_step.make_rl_step(
        context.update_graphdef, start.optimizer, allowed_tokens, rl, frozen=context.frozen
      ),
      log_prob_fn=train_step.make_logprob_fn(
        graphdef,
        allowed_tokens,
        temperature=rl.temperature,
        microbatches=rl.log_prob_microbatches,
      ),
      learning_rate=train_state_lib.make_last_learning_rate_fn(rl),
    )

  @property
  def params(self) -> PyTree:
    """The policy's parameters; valid until the next update."""
    return self.state.params

  def checkpoint_tree(self) -> dict[str, Any]:
    """The tree that a checkpoint saves: the fields of the policy's state, and the critic's."""
    return {**vars(self.state), **({"critic": self.critic.state} if self.critic else {})}

  def restore(self, tree: Mapping[str, Any]) -> None:
    """Takes over the state that `checkpoint_tree` gave."""
    fields = dict(tree)
    if self.critic:
      self.critic.state = fields.pop("critic")
    self.state = train_state_lib.TrainState(**fields)

  def learn(
    self,
    collected: experience.Experience,
    timer: step_timer_lib.StepTimer,
    overlap: Callable[[PyTree], None] | None = None,
  ) -> dict[str, float]:
    """Waits for the rewards, updates policy and critic, and returns the metrics of the step.

    overlap: see `finish`.
    """
    return self.finish(self.launch(collected, timer), timer, overlap)

  def launch(
    self, collected: experience.Experience, timer: step_timer_lib.StepTimer
  ) -> LaunchedUpdate:
    """Waits for the rewards, and launches the updates of policy and critic.

    `params` are the new ones from then on; the devices still compute them.
    """
    rl, layout = self.context.config.rl, mesh_lib.MeshLayout(self.context.mesh)
    shapes = reply_shapes.choose_reply_shapes(
      rl, layout, collected.lengths, budget=collected.rollout.tokens.shape[2]
    )
    rollout = reply_shapes.truncate(collected.rollout, shapes.time)
    ref_log_probs, old_log_probs = self._log_probs(collected, rollout, shapes)
    if not (ref_log_probs is None and old_log_probs is None) and _idle(
      ref_log_probs, old_log_probs
    ):
      timer.record("update")  # launching was not asynchronous
    with console.doing("scoring replies"):
      collected.wait_for_scores()
    timer.record("reward", device_idle=_idle(ref_log_probs, old_log_probs))
    advantages, group_mask, targets, metrics = self._advantages(
      collected, rollout, shapes, ref_log_probs
    )
    self.last_advantages = advantages
    timer.record(
      "update", device_idle=_idle(ref_log_probs, old_log_probs, advantages) and not self.critic
    )
    updates = []
    for _ in range(rl.num_iterations):
      self.state, updated = self.update(
        self.state,
        collected.prompt,
        rollout,
        advantages,
        group_mask,
        old_log_probs=old_log_probs,
        ref_log_probs=ref_log_probs,
        packed_length=shapes.packed_length,
      )
      updates.append(updated)
    if self.critic and targets is not None:
      metrics |= self.critic.learn(
        collected.prompt, rollout, targets, packed_length=shapes.packed_length
      )
    metrics["learning_rate"] = self.learning_rate(self.state)
    timer.record("update")
    return LaunchedUpdate(collected=collected, shapes=shapes, metrics=metrics, updates=updates)

  def finish(
    self,
    launched: LaunchedUpdate,
    timer: step_timer_lib.StepTimer,
    overlap: Callable[[PyTree], None] | None = None,
  ) -> dict[str, float]:
    """Waits for the updates; returns the metrics of the step.

    overlap: called with the new parameters while the devices still compute them. A single process
      does not call it if they are done by then, as on backends that launch programs synchronously.
      Several may differ in that, so all call it: it may exchange something with the others.
    """
    rl, collected = self.context.config.rl, launched.collected
    running = self.state.step, self.critic and self.critic.state.step
    if overlap and (jax.process_count() > 1 or not _idle(*running)):
      overlap(self.params)
      late = _idle(*running)
      timer.record("data" if late else "update", device_idle=late)
    metrics, updates = jax.device_get((launched.metrics, launched.updates))
    metrics = {n: float(v) for n, v in {**metrics, **combine_updates(updates)}.items()}
    metrics = {n: v for n, v in metrics.items() if not _undefined(n, v)}
    timer.record("update")
    log_prob_passes = (
      (self.reference_params is not None) + (rl.num_iterations > 1) + (self.critic is not None)
    )
    metrics["padding_fraction"] = reply_shapes.padding_fraction(
      rl,
      mesh_lib.MeshLayout(self.context.mesh),
      collected,
      launched.shapes,
      scorers=log_prob_passes,
    )
    sampled = metrics["completions/mean_length"] * collected.lengths.size
    counts = collected.wait_for_scores().counts
    return {**metrics, **collected.metrics, **counts, **timer.metrics(sampled)}

  def _log_probs(
    self,
    collected: experience.Experience,
    rollout: records.Rollout,
    shapes: reply_shapes.ReplyShapes,
  ) -> tuple[Array | None, Array | None]:
    """Log-probs of the reference and of the policy before its update; None where not needed.

    The second are those that a batch's updates are clipped around, and the first of its updates
    computes them itself. The policy that sampled has its own in `rollout.log_probs`.
    """
    ref_log_probs, old_log_probs = None, None
    if self.reference_params is not None:
      shared = train_state_lib.split(self.params, self.context.frozen)[1]
      reference = train_state_lib.join(self.reference_params, shared)
      ref_log_probs = self.log_prob_fn(
        reference, collected.prompt, rollout, packed_length=shapes.packed_length_of_scorers
      )
    rl = self.context.config.rl
    if rl.num_iterations > 1:
      # The features are those of the tower that sampled. One step off policy it has been updated
      # since, so they are computed anew.
      prompt = collected.prompt if rl.one_step_off_policy else collected.prompt_with_features
      old_log_probs = self.log_prob_fn(
        self.params, prompt, rollout, packed_length=shapes.packed_length_of_scorers
      )
    return ref_log_probs, old_log_probs

  def _advantages(
    self,
    collected: experience.Experience,
    rollout: records.Rollout,
    shapes: reply_shapes.ReplyShapes,
    ref_log_probs: Array | None,
  ) -> tuple[Array, Array, critic_lib.ValueTargets | None, dict[str, Array]]:
    """Returns advantages of the tokens, group_mask [prompts], the critic's targets, metrics."""
    context, rl, scored = self.context, self.context.config.rl, collected.wait_for_scores()
    scores = mesh_lib.put_batch(scored.scores, context.mesh)
    advantages, group_mask, metrics = advantages_lib.compute_advantages(
      scores,
      mesh_lib.put_batch(scored.segment[:, :, : shapes.time], context.mesh),
      segments=context.environment.segments,
      multi_turn=context.environment.turns > 1,
      estimator=rl.advantage_estimator,
      baseline=rl.baseline,
      normalize_by_std=rl.normalize_by_std,
      noise=rl.advantage_noise,
      key=self._noise_key(),
      max_tokens=rl.max_new_tokens,
    )
    if rl.repetition_window:
      stopped = repetition.stopped_fraction(
        rollout, stop_tokens=context.stop_tokens, max_new_tokens=rl.max_new_tokens
      )
      metrics["completions/repetition_ratio"] = stopped
      metrics["completions/clipped_ratio"] += stopped
    if self.critic is None:
      return advantages, group_mask, None, metrics
    # Of the group's advantages, only the metrics of rewards are used. The critic judges single
    # replies, so a group whose rewards are all equal is learned from, too.
    advantages, targets, critic_metrics = self.critic.advantages(
      collected.prompt,
      rollout,
      scores,
      ref_log_probs=ref_log_probs,
      packed_length=shapes.packed_length_of_scorers,
    )
    return advantages, jnp.ones_like(group_mask), targets, metrics | critic_metrics

  def _noise_key(self) -> Array | None:
    """The key of a step's noise on advantages, by seed and step; None without noise."""
    config = self.context.config
    if not config.rl.advantage_noise:
      return None
    key = jax.random.fold_in(jax.random.key(config.seed), _NOISE_SALT)
    return jax.random.fold_in(key, jnp.asarray(self.state.step))


def _idle(*running: Array | None) -> bool:
  """Whether the devices have finished computing these arrays; None stands for no computation."""
  # A cast, since the stub of jax.Array lacks is_ready.
  return all(x is None or cast(Any, x).is_ready() for x in running)


def _undefined(name: str, value: float) -> bool:
  """Whether a metric has no value: a mean over no replies, or over none with that reward.

  A reward function that returns NaN for a reply that it was asked about is an error before this.
  """
  return name.startswith(("reward", "critic/explained")) and math.isnan(value)


def combine_updates(updates: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """Combines the metrics of a batch's updates: means, but maxima of the nonfinite counts."""
  return {
    name: float((np.max if "nonfinite" in name else np.mean)([u[name] for u in updates]))
    for name in updates[0]
  }
