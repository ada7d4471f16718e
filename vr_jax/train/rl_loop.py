"""Stage `rl`: the loop of every reinforcement recipe, in the order in which things happen.

experience (prompts, replies and what they earned) -> learner (advantages, update)

The next batch is read while the devices update.

With rl.one_step_off_policy the replies of the next step are drawn before an update, by the policy that it then moves. They are
judged while it runs, and while the replies after them are drawn; truncated importance sampling (rl.truncation) corrects for
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
from vr_jax.train import clock as clock_lib
from vr_jax.train import (
  console,
  divergence,
  experience,
  features,
  initialization,
  metrics,
  run_context,
  scoring,
)
from vr_jax.train import learner as learner_lib


def train(config: ml_collections.ConfigDict, workdir: Path) -> None:
  """Trains config.rl.steps batches from the warm start, or goes on from the last checkpoint."""
  if not config.rl.steps:
    return
  context = run_context.make_run_context(config, workdir)
  rl = context.config.rl
  mesh_lib.check_batch(rl.prompts, context.mesh, "config.rl.prompts", parts=rl.microbatches)
  store = initialization.open_checkpoints(context, workdir / "checkpoints" / "rl")
  if store.latest() == rl.steps:
    console.say(f"rl: complete at step {rl.steps}")
    store.close()
    return
  begun = initialization.describe_start(context, workdir)
  initial = initialization.initial_params(context, workdir)
  learner = learner_lib.Learner.begin(context, initial)
  first, read = 0, None
  if store.latest() is not None:
    restored = store.restore(learner.saved())
    _check_origin(workdir / "checkpoints" / "rl", restored.loop.get("start"), begun)
    first, read = restored.step, restored.loop["iterator"]
    learner.restore(restored.tree)
    context.environment.set_state(restored.loop["reward"])
  log = metrics.MetricsLog(workdir, "rl", first_step=first + 1)
  with (
    contextlib.closing(store),
    contextlib.closing(log),
    features.cache(context, learner.params, workdir) as cache,
    contextlib.closing(context.environment),
    scoring.scoring_thread() as thread,
    console.progress("rl", rl.steps, done=first) as tick,
  ):
    batches = context.builder.read(
      "train", rl.prompts, cache=cache, by_length=rl.curriculum == "length"
    )
    if read is not None:
      batches.set_state(read)
    key = jax.random.key(config.seed)
    source = experience.Source(
      context=context, batches=batches, cache=cache, key=key, thread=thread
    )
    ahead = clock = None
    for step in range(first + 1, rl.steps + 1):
      clock = clock_lib.Clock(after=clock)
      made, ahead = ahead or source.draw(learner.params, step, clock), None
      if rl.one_step_off_policy and step < rl.steps:
        ahead = source.draw(learner.params, step + 1, clock)
      # Where another batch will be drawn, it is read beside the update.
      more = step + rl.one_step_off_policy < rl.steps
      values = learner.learn(made, clock, source.read_ahead if more else None)
      log.write(step, values)
      tick(step, rl.steps, shown(values))
      divergence.check_finite(values, rl.max_skipped, "rl", step)
      if step % rl.checkpoint_every == 0 or step == rl.steps:
        log.wait()
        # What is drawn ahead of the update does not count as read or judged.
        goes_on = {"iterator": made.read, "reward": made.judged().remembered, "start": begun}
        store.save(step, learner.saved(), goes_on)


def _check_origin(directory: Path, there: dict[str, Any] | None, here: dict[str, Any]) -> None:
  """Raises InputError where a run would go on with another reference than the one it began with."""
  if there != here:
    raise errors.InputError(
      f"{directory}: trained from {there}, but the start is now {here}; restore it or choose another --workdir"
    )


def shown(values: Mapping[str, float]) -> dict[str, float]:
  """What stands beside the progress bar: the means of the rewards, and the length of replies."""
  start = "reward/"
  rewards = {name[len(start) :]: values[name] for name in values if name.startswith(start)}
  return {**rewards, "reply_tokens": values["reply_tokens"]}
