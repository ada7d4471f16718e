"""Stage `sft`: supervised warm start on the reference traces."""

import collections
import contextlib
from pathlib import Path
import time

import jax
import ml_collections

from vr_jax import errors
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.train import checkpoints as checkpoints_lib
from vr_jax.train import console, features, metrics, steps
from vr_jax.train import parts as parts_lib
from vr_jax.train import state as state_lib

_RECENT = 10  # updates whose mean loss is held against config.sft.target_loss


def train(config: ml_collections.ConfigDict, workdir: Path) -> None:
  """Trains config.sft.steps updates from fresh parameters, or goes on from the last checkpoint.

  It ends sooner where the mean loss of the last 10 updates reaches config.sft.target_loss.
  """
  sft = config.sft
  if not sft.steps:
    return
  parts = parts_lib.build(config, workdir)
  mesh_lib.check_batch(sft.batch, parts.mesh, "config.sft.batch", parts=sft.microbatches)
  store = parts.checkpoints(workdir / "checkpoints" / "sft")
  if complete(store):
    console.say(f"sft: complete at step {store.latest()}")
    store.close()
    return
  optimizer = state_lib.make_optimizer(sft, parts.abstract_params, parts.frozen)
  state, read = state_lib.create(parts.fresh_params(), optimizer, parts.mesh), None
  recent = collections.deque(maxlen=_RECENT)
  if store.latest() is not None:
    restored = store.restore(state)
    state, read = restored.tree, restored.loop["iterator"]
    recent.extend(restored.loop["recent"])
  first = int(state.step)
  step_fn = steps.make_sft_step(
    parts.graph, optimizer, parts.allowed, microbatches=sft.microbatches, frozen=parts.frozen
  )
  log = metrics.MetricsLog(workdir, "sft", first_step=first + 1)
  with (
    contextlib.closing(store),
    contextlib.closing(log),
    features.cache(parts, state.params, workdir) as cache,
    console.progress("sft", sft.steps, done=first) as tick,
  ):
    iterator = parts.read("train", sft.batch, limit=sft.examples, cache=cache)
    if read is not None:
      iterator.set_state(read)
    for step in range(first + 1, sft.steps + 1):
      begun = time.perf_counter()
      batch = next(iterator)
      items = batch.items
      prompt, seen = features.prompt(parts, state.params, batch, cache)
      tokens, valid = mesh_lib.put_batch(
        parts_lib.reply_arrays(items, sft.max_reply_tokens), parts.mesh
      )
      ready = time.perf_counter()
      state, values = step_fn(state, prompt, tokens, valid)
      values = {name: float(value) for name, value in jax.device_get(values).items()}
      updated = time.perf_counter()
      values |= seen | {
        "time/data": ready - begun,
        "time/update": updated - ready,
        "time/tokens_per_second": sft.batch * values["reply_tokens"] / (updated - begun),
        **metrics.peak_memory(),
      }
      log.write(step, values)
      tick(step, sft.steps, {"loss": values["loss"]})
      check_finite(values, sft.max_skipped, "sft", step)
      recent.append(values["loss"])
      reached = len(recent) == _RECENT and sum(recent) / _RECENT <= sft.target_loss
      done = reached or step == sft.steps
      if done or step % sft.checkpoint_every == 0:
        loop = {"iterator": iterator.get_state(), "recent": list(recent), "complete": done}
        store.save(step, state, loop)
      if reached:
        break


def complete(store: checkpoints_lib.Checkpoints) -> bool:
  """Whether the last checkpoint is that of a warm start that was done."""
  return store.latest() is not None and store.loop(store.latest())["complete"]


def check_finite(values: dict[str, float], most: int, stage: str, step: int) -> None:
  """Raises Diverged at the `most`-th void update in a row (0 is as 1: at the first)."""
  if 0 < values["skipped_in_a_row"] >= most:
    raise errors.Diverged(
      f"{stage} step {step}: {int(values['skipped_in_a_row'])} updates in a row had a loss or gradient that "
      f"is not finite (config.{stage}.max_skipped={most}); lower config.{stage}.learning_rate"
    )
