"""Stage `rl`: the loop of every reinforcement recipe, in the order in which things happen.

experience (prompts, replies and what they earned) -> learner (advantages, update)

The next batch is read while the devices update.

With rl.one_step_off_policy the replies of the next step are drawn before an update, by the policy that it then moves. They are
judged while it runs, and while the replies after them are drawn; truncated importance sampling (rl.tis_cap) corrects for
the step between.
"""

from collections.abc import Mapping
import contextlib
from pathlib import Path
from typing import Any

import jax
import ml_collections

from vr_jax import errors
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.train import (
  console,
  divergence,
  experience,
  initialization,
  metrics,
  run_context,
  scoring,
  vision_features,
)
from vr_jax.train import learner as learner_lib
from vr_jax.train import step_timer as step_timer_lib


def train(config: ml_collections.ConfigDict, workdir: Path) -> None:
  """Trains config.rl.steps batches from the warm start, or goes on from the last checkpoint."""
  if not config.rl.steps:
    return
  context = run_context.make_run_context(config, workdir)
  rl = context.config.rl
  mesh_lib.check_batch(rl.batch_size, context.mesh, "config.rl.batch_size", parts=rl.microbatches)
  store = initialization.open_checkpoints(context, workdir / "checkpoints" / "rl")
  if store.latest() == rl.steps:
    console.print_line(f"rl: complete at step {rl.steps}")
    store.close()
    return
  begun = initialization.describe_start(context, workdir)
  initial = initialization.initial_params(context, workdir)
  learner = learner_lib.Learner.create(context, initial)
  first, read = 0, None
  if store.latest() is not None:
    restored = store.restore(learner.checkpoint_tree())
    _check_origin(workdir / "checkpoints" / "rl", restored.loop.get("start"), begun)
    first, read = restored.step, restored.loop["iterator"]
    learner.restore(restored.tree)
    context.environment.set_state(restored.loop["reward"])
  log = metrics.MetricsLog(workdir, "rl", first_step=first + 1)
  with (
    contextlib.closing(store),
    contextlib.closing(log),
    vision_features.open_cache(context, learner.params, workdir) as cache,
    contextlib.closing(context.environment),
    scoring.scoring_thread() as thread,
    console.progress("rl", rl.steps, done=first) as tick,
  ):
    batches = context.builder.read(
      "train", rl.batch_size, cache=cache, by_length=rl.curriculum == "length"
    )
    if read is not None:
      batches.set_state(read)
    key = jax.random.key(config.seed)
    source = experience.Collector(
      context=context, batches=batches, cache=cache, key=key, thread=thread
    )
    ahead = timer = None
    for step in range(first + 1, rl.steps + 1):
      timer = step_timer_lib.StepTimer(after=timer)
      made, ahead = ahead or source.collect(learner.params, step, timer), None
      if rl.one_step_off_policy and step < rl.steps:
        ahead = source.collect(learner.params, step + 1, timer)
      # Where another batch will be drawn, it is read beside the update.
      more = step + rl.one_step_off_policy < rl.steps
      values = learner.learn(made, timer, source.prefetch if more else None)
      log.write(step, values)
      tick(step, rl.steps, shown(values))
      divergence.check_finite(values, rl.max_consecutive_nonfinite, "rl", step)
      if step % rl.checkpoint_every == 0 or step == rl.steps:
        log.wait()
        # What is drawn ahead of the update does not count as read or judged.
        goes_on = {
          "iterator": made.read,
          "reward": made.wait_for_scores().reward_state,
          "start": begun,
        }
        store.save(step, learner.checkpoint_tree(), goes_on)


def _check_origin(directory: Path, there: dict[str, Any] | None, here: dict[str, Any]) -> None:
  """Raises InputError where a run would go on with another reference than the one it began with."""
  if there != here:
    raise errors.InputError(
      f"{directory}: trained from {there}, but the start is now {here}; restore it or choose another --workdir"
    )


def shown(values: Mapping[str, float]) -> dict[str, float]:
  """What stands beside the progress bar: the means of the rewards, and the length of replies."""
  rewards = {
    name.removeprefix("rewards/").removesuffix("/mean"): value
    for name, value in values.items()
    if name.startswith("rewards/") and name.endswith("/mean")
  }
  return {**rewards, "completions/mean_length": values["completions/mean_length"]}
