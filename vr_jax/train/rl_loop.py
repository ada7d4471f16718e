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

from collections.abc import Mapping
from concurrent import futures
import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree
import ml_collections

from vr_jax import buckets, errors
from vr_jax.parallel import preemption
from vr_jax.rollout import written_replies
from vr_jax.train import (
  checkpoints,
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResumePoint:
  """Where a run goes on, after its last step.

  iterator: the state of the input pipeline; None: from the start.
  num_tokens: computed so far, padding not counted.
  begun: the replies of the next step that have tokens already, as JSON.
  """

  step: int = 0
  iterator: Any = None
  num_tokens: int = 0
  begun: list[dict[str, Any]] | None = None


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
  resumed = _resume(context, workdir, store, copies, learner, origin)
  num_tokens, first_step = resumed.num_tokens, resumed.step + 1
  log = metrics.MetricsLog(workdir, "rl", first_step=first_step, config=config)
  rollouts = rollout_log.RolloutLog(context, workdir, log, first_step=first_step)
  best = held_out.BestCheckpoint(context, workdir, first_step=first_step) if rl.eval_every else None
  with (
    store.closing(),
    contextlib.closing(copies),
    contextlib.closing(log),
    contextlib.closing(rollouts),
    best.closing() if best else contextlib.nullcontext(),
    vision_features.open_cache(context, learner.params, workdir) as cache,
    contextlib.closing(context.environment),
    preemption.stops_between_steps(),
    sampling_half.open_half(context) as half,
    scoring.scoring_thread() as thread,
    profiling.profiler(workdir, "rl", config.log.profile_steps) as profile,
    console.progress("rl", rl.steps, done=resumed.step) as tick,
  ):
    source = _open_source(half.context if half else context, cache, thread, resumed)
    evaluation = held_out.HeldOut(context=context, cache=cache, thread=thread)
    if best:
      evaluation.check()
    signal = learning_signal.SignalWatch(rl.advantage_estimator)
    mismatch = mismatch_watch.MismatchWatch(
      rl.mismatch_warning, context.samples_int8, off_policy=mismatch_watch.off_policy_option(rl)
    )
    slow = slow_process.SlowProcessWatch("rl")
    ahead = timer = None
    for step in range(first_step, rl.steps + 1):
      profile.begin(step)
      timer = step_timer_lib.StepTimer(after=timer)
      policy = half.refresh(learner.params) if half else learner.params
      if ahead is None:
        ahead = source.collect(policy, step, timer)
      # No name may keep what the half that samples has of these replies during the update.
      collected, ahead = half.hand_over(ahead) if half else ahead, None
      ahead, values = _update(learner, half, collected, source, policy, step, timer)
      profile.end(step)
      num_tokens += round(collected.useful_tokens)
      values["num_tokens"] = num_tokens
      if best and (step % rl.eval_every == 0 or step == rl.steps):
        values |= _evaluate(best, evaluation, learner, step, values, timer)
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
        loop_state = _loop_state(collected, origin, num_tokens)
        (store if saves else copies).save(step, learner.checkpoint_tree(), loop_state)
      if preempted:
        store.wait()
        raise errors.Preempted(f"rl is saved at step {step}")
  learning_signal.print_summary(workdir, rl.advantage_estimator)


def _resume(
  context: run_context.RunContext,
  workdir: Path,
  store: checkpoints.Checkpoints,
  copies: local_copies.LocalCopies,
  learner: learner_lib.Learner,
  origin: dict[str, Any],
) -> ResumePoint:
  """Restores the learner and the rewards' state from the last checkpoint, if there is one."""
  if store.latest() is None:
    return ResumePoint()
  like = learner.checkpoint_tree()
  restored = copies.newest(like) or store.restore(like)
  check_origin(workdir / "checkpoints" / "rl", restored.loop.get("start"), origin)
  learner.restore(restored.tree)
  context.environment.set_state(restored.loop["reward"])
  return ResumePoint(
    step=restored.step,
    iterator=restored.loop["iterator"],
    num_tokens=restored.loop.get("num_tokens", 0),  # older checkpoints lack it
    begun=restored.loop.get("begun"),
  )


def _open_source(
  context: run_context.RunContext,
  cache: vision_features.Cache,
  thread: futures.ThreadPoolExecutor,
  resumed: ResumePoint,
) -> experience.Collector:
  """Collects replies to prompts, from where the run stopped. context: of the mesh that samples."""
  config = context.config
  rl = config.rl
  batches = context.builder.read(
    "train", rl.batch_size, cache=cache, by_length=rl.curriculum == "length"
  )
  if resumed.iterator is not None:
    batches.set_state(resumed.iterator)
  source = experience.Collector(
    context=context,
    batches=batches,
    cache=cache,
    key=jax.random.key(config.seed),
    scoring_thread=thread,
  )
  if resumed.begun is not None and rl.carry_over:
    source.begun = written_replies.WrittenReplies.from_json(
      resumed.begun, prompts=rl.batch_size, group=rl.num_generations, time=rl.max_new_tokens
    )
  return source


def _update(
  learner: learner_lib.Learner,
  half: sampling_half.SamplingHalf | None,
  collected: experience.Experience,
  source: experience.Collector,
  policy: PyTree,
  step: int,
  timer: step_timer_lib.StepTimer,
) -> tuple[experience.Experience | None, dict[str, float]]:
  """Updates the policy with a step's replies. One step off policy, the next are sampled first.

  policy: the parameters that sample, from before the update.

  Returns the replies of the next step, if they are sampled, and the metrics.
  """
  rl = learner.context.config.rl
  # With a half of its own the update starts first, since `policy` is a copy.
  launched = learner.launch(collected, timer) if half else None
  ahead = None
  if rl.one_step_off_policy and step < rl.steps:
    ahead = source.collect(policy, step + 1, timer)
  # If another batch is needed, the host reads it during the update.
  prefetch = None
  if step + max(rl.one_step_off_policy, rl.carry_over) < rl.steps:
    prefetch = (lambda _: source.prefetch(half.params)) if half else source.prefetch
  with console.doing("updating the policy"):
    launched = launched or learner.launch(collected, timer)
    return ahead, learner.finish(launched, timer, prefetch)


def _evaluate(
  best: held_out.BestCheckpoint,
  evaluation: held_out.HeldOut,
  learner: learner_lib.Learner,
  step: int,
  values: Mapping[str, Any],
  timer: step_timer_lib.StepTimer,
) -> dict[str, Any]:
  """Metrics of held-out videos, and the step's times with the evaluation in them.

  Keeps the policy if it is the best one so far. values: metrics of the step.
  """
  with console.doing("evaluating on held-out videos"):
    found = evaluation.evaluate(learner.params)
  best.offer(step, learner.params, found)
  timer.record("evaluation")
  tokens = values["perf/tokens_per_second"] * values["perf/time/step"]
  return {**found, **timer.metrics(tokens)}


def _loop_state(
  collected: experience.Experience, origin: dict[str, Any], num_tokens: int
) -> dict[str, Any]:
  """What a checkpoint keeps beside the learner's state. collected: of the step that it follows.

  A batch that was sampled ahead is sampled again on resuming, so its state is not saved. The
  restored policy samples it, so an interrupted off-policy run is not bit-equal to an uninterrupted
  one.
  """
  return {
    "iterator": collected.iterator_state,
    "reward": collected.wait_for_scores().reward_state,
    "start": origin,
    "num_tokens": num_tokens,
    "begun": collected.begun and collected.begun.to_json(),
  }


def check_origin(directory: Path, saved: dict[str, Any] | None, current: dict[str, Any]) -> None:
  """Raises InputError if the run would resume with a reference other than its first one."""
  saved = json.loads(buckets.as_addresses(json.dumps(saved)))  # of older runs it has the mount
  if saved != current:
    raise errors.InputError(
      f"{directory}: trained from {saved}, but the start is now {current}; "
      "restore it or choose another --workdir"
    )
