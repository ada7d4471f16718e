"""Stage `rl`: the loop of every reinforcement recipe, in the order in which things happen.

experience (prompts, replies and what they earned) -> advantages (credit, or a critic) -> update

With rl.one_step_off_policy the replies of the next step are drawn before an update, by the policy that it then moves. They are
judged while it runs, and while the replies after them are drawn; truncated importance sampling (rl.truncation) corrects for
the step between.
"""

from collections.abc import Mapping, Sequence
import contextlib
import functools
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree
import ml_collections
import numpy as np

from vr_jax import errors, records
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rl import credit
from vr_jax.train import clock as clock_lib
from vr_jax.train import console, experience, features, metrics, padding, sft_loop, steps
from vr_jax.train import critic as critic_lib
from vr_jax.train import parts as parts_lib
from vr_jax.train import state as state_lib


def train(config: ml_collections.ConfigDict, workdir: Path) -> None:
  """Trains config.rl.steps batches from the warm start, or goes on from the last checkpoint."""
  rl = config.rl
  if not rl.steps:
    return
  parts = parts_lib.build(config, workdir)
  mesh_lib.check_batch(rl.prompts, parts.mesh, "config.rl.prompts", parts=rl.microbatches)
  store = parts.checkpoints(workdir / "checkpoints" / "rl")
  if store.latest() == rl.steps:
    console.say(f"rl: complete at step {rl.steps}")
    store.close()
    return
  optimizer = state_lib.make_optimizer(rl, parts.abstract_params, parts.frozen)
  begun = origin(parts, workdir)
  initial = initial_params(parts, workdir)
  critic = critic_lib.Critic.begin(parts, initial) if rl.credit == "gae" else None
  # Of the reference only what training changes is kept; the rest, with adapters the whole base, it shares.
  anchored = rl.kl_weight or (critic and config.critic.kl_weight)
  anchor = state_lib.split(initial, parts.frozen)[0] if anchored else None
  anchor = jax.tree.map(jnp.copy, anchor)
  state, first, read = state_lib.create(initial, optimizer, parts.mesh), 0, None
  del initial  # the state has them: what an update donates must not be held here
  if store.latest() is not None:
    restored = store.restore(_saved(state, critic))
    _check_origin(workdir / "checkpoints" / "rl", restored.loop.get("start"), begun)
    first = restored.step
    if critic:
      critic.state = restored.tree.pop("critic")
    state = state_lib.TrainState(**restored.tree)
    read = restored.loop["iterator"]
    parts.environment.set_state(restored.loop["reward"])
  step_fn = steps.make_rl_step(parts.graph, optimizer, parts.allowed, rl, frozen=parts.frozen)
  score_fn = steps.make_scorer(parts.graph, parts.allowed, temperature=rl.temperature)
  log = metrics.MetricsLog(workdir, "rl", first_step=first + 1)
  key, layout = jax.random.key(config.seed), mesh_lib.MeshLayout(parts.mesh)
  with (
    contextlib.closing(store),
    contextlib.closing(log),
    features.cache(parts, state.params, workdir) as cache,
    contextlib.closing(parts.environment),
    experience.thread() as thread,
    console.progress("rl", rl.steps, done=first) as tick,
  ):
    iterator = parts.read("train", rl.prompts, cache=cache, by_length=rl.curriculum == "length")
    if read is not None:
      iterator.set_state(read)
    source = experience.Source(parts=parts, batches=iterator, cache=cache, key=key, thread=thread)
    ahead = None
    for step in range(first + 1, rl.steps + 1):
      clock = clock_lib.Clock()
      made, ahead = ahead or source.draw(state.params, step, clock), None
      if rl.one_step_off_policy and step < rl.steps:
        ahead = source.draw(state.params, step + 1, clock)
      fit = padding.shapes(rl, layout, made.lengths, budget=made.rollout.tokens.shape[2])
      rollout = padding.cut(made.rollout, fit.time)
      reference_log_probs, old = None, None
      if anchored:
        reference = state_lib.join(anchor, state_lib.split(state.params, parts.frozen)[1])
        reference_log_probs = score_fn(reference, made.prompt, rollout, packed=fit.packed_whole)
        del reference  # or its share of the state would outlive the update
      if rl.epochs > 1:
        old = score_fn(state.params, made.encoded, rollout, packed=fit.packed_whole)
      judged = made.judged()
      clock.lap("reward", exposed=_idle(reference_log_probs, old))
      scores = mesh_lib.put_batch(judged.scores, parts.mesh)
      advantages, signal, values = assign_credit(
        scores,
        mesh_lib.put_batch(judged.segment[:, :, : fit.time], parts.mesh),
        segments=parts.environment.segments,
        multi_turn=parts.multi_turn,
        whole=rl.credit != "segments",
        normalise=rl.normalise,
        budget=rl.max_new_tokens,
      )
      if critic:
        signal = jnp.ones_like(signal)
        advantages, targets, assessed = critic.advantages(
          made.prompt,
          rollout,
          scores,
          reference=reference_log_probs,
          packed=fit.packed_whole,
        )
        values |= assessed
      updates = []
      for _ in range(rl.epochs):
        state, updated = step_fn(
          state,
          made.prompt,
          rollout,
          advantages,
          signal,
          old,
          reference_log_probs,
          packed=fit.packed,
        )
        updates.append(updated)
      if critic:
        values |= critic.learn(made.prompt, rollout, targets, packed=fit.packed)
      values, updates = jax.device_get((values, updates))
      values = {n: float(v) for n, v in {**values, **over_epochs(updates)}.items()}
      # Of a segment that no reply had, or none was judged of, there is no mean.
      values = {
        n: v
        for n, v in values.items()
        if not (n.startswith(("reward", "critic/explained")) and math.isnan(v))
      }
      clock.lap("update")
      values["padding_share"] = padding.share(
        rl, layout, made, fit, scorers=bool(anchored) + (rl.epochs > 1) + bool(critic)
      )
      values |= (
        made.values | judged.counts | clock.values(values["reply_tokens"] * made.lengths.size)
      )
      log.write(step, values)
      tick(step, rl.steps, shown(values))
      sft_loop.check_finite(values, rl.max_skipped, "rl", step)
      if step % rl.checkpoint_every == 0 or step == rl.steps:
        # What is drawn ahead of the update does not count as read or judged.
        goes_on = {"iterator": made.read, "reward": judged.remembered, "start": begun}
        store.save(step, _saved(state, critic), goes_on)


def _saved(state: state_lib.TrainState, critic: critic_lib.Critic | None) -> dict[str, Any]:
  """What a checkpoint holds: the fields of the policy's state, and beside them the critic's."""
  return {**vars(state), **({"critic": critic.state} if critic else {})}


def _idle(*running: Array | None) -> bool:
  """Whether the devices have finished what was to run beside the host's work, or nothing was."""
  return all(x is None or x.is_ready() for x in running)


def start(parts: parts_lib.Parts, workdir: Path) -> Path | None:
  """The checkpoints that RL starts from; None where there was no warm start, and it starts from fresh parameters.

  Raises InputError where there are none, or this workdir's own warm start is not complete.
  """
  config = parts.config
  if not config.rl.initial and not config.sft.steps:
    return None
  where = Path(config.rl.initial) if config.rl.initial else workdir / "checkpoints" / "sft"
  if not where.is_dir():
    raise errors.InputError(f"{where}: no such checkpoints; run --mode=sft first")
  if not config.rl.initial:
    _check_complete(parts, where)
  return where


def _check_complete(parts: parts_lib.Parts, where: Path) -> None:
  store = parts.checkpoints(where)
  step, done = store.latest(), sft_loop.complete(store)
  store.close()
  if not done:
    raise errors.InputError(
      f"{where}: at step {step}, before the warm start was done; finish --mode=sft first"
    )


def origin(parts: parts_lib.Parts, workdir: Path) -> dict[str, Any]:
  """{"path", "step"} of what RL starts from, as its checkpoints remember it (fresh parameters: "", 0)."""
  where = start(parts, workdir)
  if where is None:
    return {"path": "", "step": 0}
  # That of the workdir itself by its place there: a workdir may be moved.
  path = parts.config.rl.initial or where.relative_to(workdir).as_posix()
  return {"path": path, "step": last_step(parts, where)}


def _check_origin(directory: Path, there: dict[str, Any] | None, here: dict[str, Any]) -> None:
  """Raises InputError where a run would go on with another reference than the one it began with."""
  if there != here:
    raise errors.InputError(
      f"{directory}: trained from {there}, but the start is now {here}; restore it or choose another --workdir"
    )


def initial_params(parts: parts_lib.Parts, workdir: Path) -> PyTree:
  """What RL starts from and stays close to."""
  where = start(parts, workdir)
  return parts.fresh_params() if where is None else load_params(parts, where)


def load_params(parts: parts_lib.Parts, where: Path) -> PyTree:
  """The parameters of the last checkpoint of a stage."""
  store = parts.checkpoints(where)
  # Adapters lie beside a base that the checkpoint leaves out.
  like = parts.fresh_params() if parts.adapters else parts.abstract_params
  params = store.restore({"params": like}).tree["params"]
  store.close()
  return params


def last_step(parts: parts_lib.Parts, where: Path) -> int | None:
  """The step of the last complete checkpoint of a stage."""
  store = parts.checkpoints(where)
  step = store.latest()
  store.close()
  return step


@functools.partial(
  jax.jit, static_argnames=("segments", "multi_turn", "whole", "normalise", "budget")
)
def assign_credit(
  scores: records.Scores,
  segment: Int[Array, "prompts group time"],
  *,
  segments: tuple[str, ...],
  multi_turn: bool = False,
  whole: bool = False,
  normalise: bool,
  budget: int,
) -> tuple[Array, Array, dict[str, Array]]:
  """What scores mean for each sampled token, on the mesh.

  segment: which one each token belongs to, -1 where none; segments: their names; multi_turn: each is a reply of its own;
  whole: what all of them earn together is the advantage of every token; budget: tokens that a reply may have.

  Returns:
    (advantages [prompts, group, time], signal [prompts]: whether the replies of a prompt differ in reward, metrics of
    the rewards by name).
  """
  total, valid, owner = scores.total, scores.valid, segment
  if whole:
    total = jnp.where(valid, total, 0).sum(axis=-1, keepdims=True)
    valid, owner = valid.any(axis=-1, keepdims=True), jnp.minimum(segment, 0)
  advantages = credit.group_advantages(total, valid, normalise=normalise)
  signal = credit.has_signal(total, valid)
  values = {"no_signal_share": 1 - signal.mean(), **_lengths(segment, segments, multi_turn, budget)}
  of_all = {**scores.rewards, "total": scores.total}
  if len(segments) == 1:
    values |= _reward_values(of_all, scores.valid)
    return credit.token_advantages(advantages, owner), signal.any(axis=-1), values
  for number, name in enumerate(segments):
    of_segment = {f"{name}/{reward}": value[..., number] for reward, value in of_all.items()}
    values |= _reward_values(of_segment, scores.valid[..., number])
    if not multi_turn:
      values[f"unjudged_share/{name}"] = 1 - scores.valid[..., number].mean()
    if not whole:
      values[f"no_signal_share/{name}"] = 1 - signal[:, number].mean()
  return credit.token_advantages(advantages, owner), signal.any(axis=-1), values


def _lengths(
  segment: Int[Array, "prompts group time"],
  segments: tuple[str, ...],
  multi_turn: bool,
  budget: int,
) -> dict[str, Array]:
  """Tokens of replies, and how many of them used up their budget."""
  each = jnp.stack([(segment == number).sum(-1) for number in range(len(segments))], axis=-1)
  reply = each if multi_turn else each.sum(-1)
  values = {
    "reply_tokens": each.sum(-1).mean(),
    "cut_off_share": (reply == budget).sum() / jnp.maximum((reply > 0).sum(), 1),
  }
  named = {f"tokens/{name}": each[..., number].mean() for number, name in enumerate(segments)}
  return {**values, **(named if len(segments) > 1 else {})}


def _reward_values(rewards: Mapping[str, Array], valid: Array) -> dict[str, Array]:
  """Mean and standard deviation of rewards, and how many are 0, over those that are valid."""
  values = {}
  for name, reward in rewards.items():
    values[f"reward/{name}"] = reward.mean(where=valid)
    values[f"reward_std/{name}"] = reward.std(where=valid)
    values[f"reward_zero/{name}"] = (reward == 0).mean(where=valid)
  return values


def over_epochs(updates: Sequence[Mapping[str, Any]]) -> dict[str, float]:
  """The metrics of a batch's updates as one: their means, but the largest of the counts of void updates."""
  return {
    name: float((np.max if name.startswith("skipped") else np.mean)([u[name] for u in updates]))
    for name in updates[0]
  }


def shown(values: Mapping[str, float]) -> dict[str, float]:
  """What stands beside the progress bar: the means of the rewards, and the length of replies."""
  start = "reward/"
  rewards = {name[len(start) :]: values[name] for name in values if name.startswith(start)}
  return {**rewards, "reply_tokens": values["reply_tokens"]}
