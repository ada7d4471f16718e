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
from jaxtyping import PyTree
import ml_collections

from vr_jax import errors
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.train import clock as clock_lib
from vr_jax.train import console, experience, features, metrics, sft_loop
from vr_jax.train import learner as learner_lib
from vr_jax.train import parts as parts_lib


def train(config: ml_collections.ConfigDict, workdir: Path) -> None:
  """Trains config.rl.steps batches from the warm start, or goes on from the last checkpoint."""
  if not config.rl.steps:
    return
  parts = parts_lib.build(config, workdir)
  rl = parts.config.rl
  mesh_lib.check_batch(rl.prompts, parts.mesh, "config.rl.prompts", parts=rl.microbatches)
  store = parts.checkpoints(workdir / "checkpoints" / "rl")
  if store.latest() == rl.steps:
    console.say(f"rl: complete at step {rl.steps}")
    store.close()
    return
  begun = origin(parts, workdir)
  learner = learner_lib.Learner.begin(parts, initial_params(parts, workdir))
  first, read = 0, None
  if store.latest() is not None:
    restored = store.restore(learner.saved())
    _check_origin(workdir / "checkpoints" / "rl", restored.loop.get("start"), begun)
    first, read = restored.step, restored.loop["iterator"]
    learner.restore(restored.tree)
    parts.environment.set_state(restored.loop["reward"])
  log = metrics.MetricsLog(workdir, "rl", first_step=first + 1)
  with (
    contextlib.closing(store),
    contextlib.closing(log),
    features.cache(parts, learner.params, workdir) as cache,
    contextlib.closing(parts.environment),
    experience.thread() as thread,
    console.progress("rl", rl.steps, done=first) as tick,
  ):
    batches = parts.read("train", rl.prompts, cache=cache, by_length=rl.curriculum == "length")
    if read is not None:
      batches.set_state(read)
    key = jax.random.key(config.seed)
    source = experience.Source(parts=parts, batches=batches, cache=cache, key=key, thread=thread)
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
      sft_loop.check_finite(values, rl.max_skipped, "rl", step)
      if step % rl.checkpoint_every == 0 or step == rl.steps:
        log.wait()
        # What is drawn ahead of the update does not count as read or judged.
        goes_on = {"iterator": made.read, "reward": made.judged().remembered, "start": begun}
        store.save(step, learner.saved(), goes_on)


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


def shown(values: Mapping[str, float]) -> dict[str, float]:
  """What stands beside the progress bar: the means of the rewards, and the length of replies."""
  start = "reward/"
  rewards = {name[len(start) :]: values[name] for name in values if name.startswith(start)}
  return {**rewards, "reply_tokens": values["reply_tokens"]}
