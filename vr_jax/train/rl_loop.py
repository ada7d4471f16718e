"""Stage `rl`: the training loop of every RL recipe, in the order in which things happen.

    Collector: prompts -> replies -> rewards
    Learner:   rewards -> advantages -> update

The host reads the next batch while the devices compute the update.

With rl.one_step_off_policy the replies of step n + 1 are sampled before update n. Scoring of n + 1
overlaps update n and the sampling of n + 2. When step n + 1 trains, its samples are one update
stale; truncated importance sampling (rl.tis_cap) corrects for that. With rl.disjoint_meshes they
are sampled during update n, on other devices.

With rl.carry_over the replies of step n + 1 begin in slots that the end of sampling n leaves free,
and go on after update n. Their first tokens are one update stale, with their own log-probs.
"""

import contextlib
import json
from pathlib import Path
from typing import Any

import jax
import ml_collections

from vr_jax import buckets, errors
from vr_jax.parallel import preemption
from vr_jax.rollout import written_replies
from vr_jax.train import (
  console,
  divergence,
  experience,
  held_out,
  initialization,
  learning_signal,
  local_copies,
  metrics,
  mismatch_watch,
  model_setup,
  profiling,
  rollout_log,
  run_context,
  sampling_half,
  scoring,
  slow_process,
  step_summary,
  vision_features,
)
from vr_jax.train import learner as learner_lib
from vr_jax.train import step_timer as step_timer_lib


def train(config: ml_collections.ConfigDict, workdir: Path) -> None:
  """Trains for config.rl.steps steps, from the warm start or this run's last checkpoint."""
  if not config.rl.steps:
    return
  context = run_context.make_run_context(config, workdir)
  rl = context.config.rl
  model_setup.check_batch(config, context.mesh, "rl")
  store = initialization.open_checkpoints(context, workdir / "checkpoints" / "rl")
  store.set_damaged_aside()
  if (store.latest() or 0) >= rl.steps:
    console.print_line(f"rl: complete at step {store.latest()}")
    store.close()
    return
  copies = local_copies.LocalCopies(store, workdir, "rl", every=rl.copy_every)
  origin = initialization.describe_start(context, workdir)
  initial = initialization.initial_params(context, workdir)
  run_context.freeze_step_embedder(context, lambda: initial)
  learner = learner_lib.Learner.create(context, initial)
  last_step, iterator_state, num_tokens, begun = 0, None, 0, None
  if store.latest() is not None:
    like = learner.checkpoint_tree()
    restored = copies.newest(like) or store.restore(like)
    check_origin(workdir / "checkpoints" / "rl", restored.loop.get("start"), origin)
    last_step, iterator_state = restored.step, restored.loop["iterator"]
    num_tokens = restored.loop.get("num_tokens", 0)  # older checkpoints lack it
    learner.restore(restored.tree)
    context.environment.set_state(restored.loop["reward"])
    begun = restored.loop.get("begun")
  log = metrics.MetricsLog(workdir, "rl", first_step=last_step + 1, config=config)
  rollouts = rollout_log.RolloutLog(context, workdir, log, first_step=last_step + 1)
  best = None
  if rl.eval_every:
    best = held_out.BestCheckpoint(context, workdir, first_step=last_step + 1)
  with (
    contextlib.closing(store),
    contextlib.closing(copies),
    contextlib.closing(log),
    contextlib.closing(rollouts),
    contextlib.closing(best) if best else contextlib.nullcontext(),
    vision_features.open_cache(context, learner.params, workdir) as cache,
    contextlib.closing(context.environment),
    preemption.stops_between_steps(),
    sampling_half.open_half(context) as half,
    scoring.scoring_thread() as thread,
    profiling.profiler(workdir, "rl", config.log.profile_steps) as profile,
    console.progress("rl", rl.steps, done=last_step) as tick,
  ):
    sampling = half.context if half else context
    batches = sampling.builder.read(
      "train", rl.batch_size, cache=cache, by_length=rl.curriculum == "length"
    )
    if iterator_state is not None:
      batches.set_state(iterator_state)
    evaluation = held_out.HeldOut(context=context, cache=cache, thread=thread)
    if best:
      evaluation.check()
    key = jax.random.key(config.seed)
    source = experience.Collector(
      context=sampling, batches=batches, cache=cache, key=key, scoring_thread=thread
    )
    if begun is not None and rl.carry_over:
      source.begun = written_replies.WrittenReplies.from_json(
        begun, prompts=rl.batch_size, group=rl.num_generations, time=rl.max_new_tokens
      )
    signal = learning_signal.SignalWatch(rl.advantage_estimator)
    mismatch = mismatch_watch.MismatchWatch(
      rl.mismatch_warning, context.samples_int8, off_policy=mismatch_watch.off_policy_option(rl)
    )
    slow = slow_process.SlowProcessWatch("rl")
    ahead = timer = None
    for step in range(last_step + 1, rl.steps + 1):
      profile.begin(step)
      timer = step_timer_lib.StepTimer(after=timer)
      policy = half.refresh(learner.params) if half else learner.params
      if ahead is None:
        collected = source.collect(policy, step, timer)
      else:
        collected, ahead = ahead, None
      samples_ahead, launched = rl.one_step_off_policy and step < rl.steps, None
      if half:  # the update starts first; the next replies get a copy of the policy before it
        collected = half.hand_over(collected)
        launched = learner.launch(collected, timer)
      if samples_ahead:
        ahead = source.collect(policy, step + 1, timer)
      # If another batch is needed, the host reads it during the update.
      prefetch = None
      if step + max(rl.one_step_off_policy, rl.carry_over) < rl.steps:
        prefetch = (lambda _: source.prefetch(half.params)) if half else source.prefetch
      with console.doing("updating the policy"):
        launched = launched or learner.launch(collected, timer)
        values = learner.finish(launched, timer, prefetch)
      profile.end(step)
      num_tokens += round(collected.useful_tokens)
      values["num_tokens"] = num_tokens
      if best and (step % rl.eval_every == 0 or step == rl.steps):
        with console.doing("evaluating on held-out videos"):
          found = evaluation.evaluate(learner.params)
        best.offer(step, learner.params, found)
        timer.record("evaluation")
        tokens = values["perf/tokens_per_second"] * values["perf/time/step"]
        values |= {**found, **timer.metrics(tokens)}
      values |= slow.note(step, timer)
      log.write(step, values)
      rollouts.write(step, collected, learner.last_advantages)
      tick(step, rl.steps, step_summary.summarize(values))
      signal.note(step, values)
      mismatch.note(step, values)
      divergence.check_finite(values, rl.max_consecutive_nonfinite, "rl", step)
      preempted = preemption.stops_after()
      saves = preempted or step % rl.checkpoint_every == 0 or step == rl.steps
      if saves or copies.is_due(step):
        for writer in (rollouts, log, best):
          if writer:
            writer.wait()
        # A batch that was sampled ahead is sampled again on resuming, so its state is not saved.
        # The restored policy samples it, so an interrupted off-policy run is not bit-equal to an
        # uninterrupted one.
        loop_state = {
          "iterator": collected.iterator_state,
          "reward": collected.wait_for_scores().reward_state,
          "start": origin,
          "num_tokens": num_tokens,
          "begun": collected.begun and collected.begun.to_json(),
        }
        (store if saves else copies).save(step, learner.checkpoint_tree(), loop_state)
      if preempted:
        store.wait()
        raise errors.Preempted(f"rl is saved at step {step}")
  learning_signal.print_summary(workdir, rl.advantage_estimator)


def check_origin(directory: Path, saved: dict[str, Any] | None, current: dict[str, Any]) -> None:
  """Raises InputError if the run would resume with a reference other than its first one."""
  saved = json.loads(buckets.as_addresses(json.dumps(saved)))  # of older runs it has the mount
  if saved != current:
    raise errors.InputError(
      f"{directory}: trained from {saved}, but the start is now {current}; "
      "restore it or choose another --workdir"
    )
