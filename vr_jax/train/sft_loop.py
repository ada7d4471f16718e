"""Stage `sft`: supervised warm start on the reference traces."""

import contextlib
from pathlib import Path
import time

import jax
import ml_collections

from vr_jax import errors
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.train import checkpoints as checkpoints_lib
from vr_jax.train import console, metrics, steps
from vr_jax.train import parts as parts_lib
from vr_jax.train import state as state_lib


def train(config: ml_collections.ConfigDict, workdir: Path) -> None:
  """Trains config.sft.steps updates from fresh parameters, or goes on from the last checkpoint."""
  sft = config.sft
  if not sft.steps:
    return
  parts = parts_lib.build(config, workdir)
  mesh_lib.check_batch(sft.batch, parts.mesh, "config.sft.batch", parts=sft.microbatches)
  store = checkpoints_lib.Checkpoints(
    workdir / "checkpoints" / "sft", architecture=parts.architecture
  )
  if store.latest() == sft.steps:
    console.say(f"sft: complete at step {sft.steps}")
    store.close()
    return
  optimizer = state_lib.make_optimizer(sft, parts.abstract_params, parts.frozen)
  iterator = parts.read("train", sft.batch, limit=sft.examples)
  state = state_lib.create(parts.fresh_params(), optimizer, parts.mesh)
  if store.latest() is not None:
    restored = store.restore(state)
    state = restored.tree
    iterator.set_state(restored.loop["iterator"])
  first = int(state.step)
  step_fn = steps.make_sft_step(
    parts.graph, optimizer, parts.allowed, microbatches=sft.microbatches, frozen=parts.frozen
  )
  log = metrics.MetricsLog(workdir, "sft", first_step=first + 1)
  with (
    contextlib.closing(store),
    contextlib.closing(log),
    console.progress("sft", sft.steps, done=first) as tick,
  ):
    for step in range(first + 1, sft.steps + 1):
      begun = time.perf_counter()
      batch = next(iterator)
      items, prompt = batch.items, parts.prompt(batch)
      tokens, valid = mesh_lib.put_batch(
        parts_lib.reply_arrays(items, sft.max_reply_tokens), parts.mesh
      )
      read = time.perf_counter()
      state, values = step_fn(state, prompt, tokens, valid)
      values = {name: float(value) for name, value in jax.device_get(values).items()}
      done = time.perf_counter()
      values |= {
        "time/data": read - begun,
        "time/update": done - read,
        "time/tokens_per_second": sft.batch * values["reply_tokens"] / (done - begun),
        **metrics.peak_memory(),
      }
      log.write(step, values)
      tick(step, sft.steps, {"loss": values["loss"]})
      check_finite(values, sft.max_skipped, "sft", step)
      if step % sft.checkpoint_every == 0 or step == sft.steps:
        store.save(step, state, {"iterator": iterator.get_state()})


def check_finite(values: dict[str, float], most: int, stage: str, step: int) -> None:
  """Raises Diverged at the `most`-th void update in a row (0 is as 1: at the first)."""
  if 0 < values["skipped_in_a_row"] >= most:
    raise errors.Diverged(
      f"{stage} step {step}: {int(values['skipped_in_a_row'])} updates in a row had a loss or gradient that "
      f"is not finite (config.{stage}.max_skipped={most}); lower config.{stage}.learning_rate"
    )
