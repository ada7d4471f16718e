"""What learns from experience: a policy, with the reference that it stays close to and the critic of PPO where a recipe has them.

rewards -> advantages (credit, or a critic) -> update
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree
import numpy as np

from vr_jax import records
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rl import advantages as advantages_lib
from vr_jax.train import clock as clock_lib
from vr_jax.train import critic as critic_lib
from vr_jax.train import experience, learner_state, padding, run_context, steps
from vr_jax.train import state as state_lib


@dataclasses.dataclass(kw_only=True)
class Learner:
  """A policy in training. anchor: what the reference has for the parameters that training changes; None without one."""

  context: run_context.RunContext
  state: state_lib.TrainState
  anchor: PyTree | None
  critic: critic_lib.Critic | None
  update: Callable[..., tuple[state_lib.TrainState, steps.Metrics]]
  score: Callable[..., Array]

  @classmethod
  def begin(cls, context: run_context.RunContext, initial: PyTree) -> "Learner":
    """One that begins with these parameters, which it takes over: updates donate them."""
    rl, graph, allowed = context.config.rl, context.graph, context.allowed
    made, critic = learner_state.make_learner_state(context, initial), None
    if made.critic is not None:
      critic = critic_lib.Critic.begin(
        context,
        made.critic_optimizer,
        made.critic,
        answer_reward=context.environment.answer_reward,
      )
    return cls(
      context=context,
      state=made.policy,
      anchor=made.anchor,
      critic=critic,
      update=steps.make_rl_step(graph, made.optimizer, allowed, rl, frozen=context.frozen),
      score=steps.make_scorer(graph, allowed, temperature=rl.temperature),
    )

  @property
  def params(self) -> PyTree:
    """The policy's, until the next update."""
    return self.state.params

  def saved(self) -> dict[str, Any]:
    """What a checkpoint holds: the fields of the policy's state, and beside them the critic's."""
    return {**vars(self.state), **({"critic": self.critic.state} if self.critic else {})}

  def restore(self, tree: Mapping[str, Any]) -> None:
    """Goes back to what `saved` gave."""
    fields = dict(tree)
    if self.critic:
      self.critic.state = fields.pop("critic")
    self.state = state_lib.TrainState(**fields)

  def learn(
    self,
    made: experience.Experience,
    clock: clock_lib.Clock,
    meanwhile: Callable[[PyTree], None] | None = None,
  ) -> dict[str, float]:
    """Updates on experience, once it is judged; gives all that is to be logged of the step.

    meanwhile: what the host does with the new parameters while the devices make them, if they do so by themselves.
    """
    rl, layout = self.context.config.rl, mesh_lib.MeshLayout(self.context.mesh)
    fit = padding.shapes(rl, layout, made.lengths, budget=made.rollout.tokens.shape[2])
    rollout = padding.cut(made.rollout, fit.time)
    reference, old = self._scores(made, rollout, fit)
    if not (reference is None and old is None) and _idle(reference, old):
      clock.lap("update")  # launching has waited for it
    judged = made.judged()
    clock.lap("reward", exposed=_idle(reference, old))
    advantages, signal, targets, values = self._advantages(made, rollout, fit, reference)
    clock.lap("update", exposed=_idle(reference, old, advantages) and not self.critic)
    updates = []
    for _ in range(rl.epochs):
      self.state, updated = self.update(
        self.state,
        made.prompt,
        rollout,
        advantages,
        signal,
        old,
        reference,
        packed=fit.packed,
      )
      updates.append(updated)
    if self.critic:
      values |= self.critic.learn(made.prompt, rollout, targets, packed=fit.packed)
    running = self.state.step, self.critic and self.critic.state.step
    if meanwhile and not _idle(*running):
      clock.lap("update")
      meanwhile(self.params)
      late = _idle(*running)
      clock.lap("data" if late else "update", exposed=late)
    values, updates = jax.device_get((values, updates))
    values = {n: float(v) for n, v in {**values, **over_epochs(updates)}.items()}
    values = {n: v for n, v in values.items() if not _undefined(n, v)}
    clock.lap("update")
    scorers = (self.anchor is not None) + (rl.epochs > 1) + (self.critic is not None)
    values["padding_share"] = padding.share(rl, layout, made, fit, scorers=scorers)
    sampled = values["reply_tokens"] * made.lengths.size
    return values | made.values | judged.counts | clock.values(sampled)

  def _scores(
    self, made: experience.Experience, rollout: records.Rollout, fit: padding.Shapes
  ) -> tuple[Array | None, Array | None]:
    """Log-probs of the reference, and of the policy before its update; None where they are not needed."""
    reference, old = None, None
    if self.anchor is not None:
      shared = state_lib.split(self.params, self.context.frozen)[1]
      frozen = state_lib.join(self.anchor, shared)
      reference = self.score(frozen, made.prompt, rollout, packed=fit.packed_whole)
    rl = self.context.config.rl
    if rl.epochs > 1:
      # Off policy the tower has moved on since it made the features.
      prompt = made.prompt if rl.one_step_off_policy else made.encoded
      old = self.score(self.params, prompt, rollout, packed=fit.packed_whole)
    return reference, old

  def _advantages(
    self,
    made: experience.Experience,
    rollout: records.Rollout,
    fit: padding.Shapes,
    reference: Array | None,
  ) -> tuple[Array, Array, critic_lib.Targets | None, dict[str, Array]]:
    """(advantages [prompts, group, time], signal [prompts], what a critic learns from, metrics)."""
    context, rl, judged = self.context, self.context.config.rl, made.judged()
    scores = mesh_lib.put_batch(judged.scores, context.mesh)
    advantages, signal, values = advantages_lib.compute_advantages(
      scores,
      mesh_lib.put_batch(judged.segment[:, :, : fit.time], context.mesh),
      segments=context.environment.segments,
      multi_turn=context.environment.turns > 1,
      credit=rl.credit,
      baseline=rl.baseline,
      normalise=rl.normalise,
      max_tokens=rl.max_new_tokens,
    )
    if self.critic is None:
      return advantages, signal, None, values
    advantages, targets, assessed = self.critic.advantages(
      made.prompt,
      rollout,
      scores,
      reference=reference,
      packed=fit.packed_whole,
    )
    return advantages, jnp.ones_like(signal), targets, values | assessed


def _idle(*running: Array | None) -> bool:
  """Whether the devices have finished what was to run beside the host's work, or nothing was."""
  return all(x is None or x.is_ready() for x in running)


def _undefined(name: str, value: float) -> bool:
  """Whether there is no such mean: of a segment that no reply had, or none was judged of."""
  return name.startswith(("reward", "critic/explained")) and math.isnan(value)


def over_epochs(updates: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """The metrics of a batch's updates as one: their means, but the largest of the counts of void updates."""
  return {
    name: float((np.max if name.startswith("skipped") else np.mean)([u[name] for u in updates]))
    for name in updates[0]
  }
