"""Stage `sft`: supervised warm start on the reference traces.

While the devices update, the host takes the next batch: `time/data` is the wait for it only where the update was done by then.
"""

import collections
from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
from jaxtyping import Array, PyTree
import ml_collections
import numpy as np

from vr_jax import errors, records
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.parallel import processes
from vr_jax.train import (
  batching,
  console,
  divergence,
  features,
  initialization,
  metrics,
  padding,
  run_context,
  steps,
)
from vr_jax.train import clock as clock_lib
from vr_jax.train import state as state_lib

_RECENT = 10  # updates whose mean loss is held against config.sft.target_loss


def train(config: ml_collections.ConfigDict, workdir: Path) -> None:
  """Trains config.sft.steps updates from fresh parameters, or goes on from the last checkpoint.

  It ends sooner where the mean loss of the last 10 updates reaches config.sft.target_loss, or where config.sft.patience looks
  at the validation split in a row find no lower loss.
  """
  if not config.sft.steps:
    return
  context = run_context.make_run_context(config, workdir, judged=False)
  sft = context.config.sft
  mesh_lib.check_batch(sft.batch, context.mesh, "config.sft.batch", parts=sft.microbatches)
  store = initialization.open_checkpoints(context, workdir / "checkpoints" / "sft")
  if initialization.is_complete(store):
    console.say(f"sft: complete at step {store.latest()}")
    store.close()
    return
  optimizer = state_lib.make_optimizer(sft, context.abstract_params, context.frozen)
  state, read = (
    state_lib.create(initialization.fresh_params(context), optimizer, context.mesh),
    None,
  )
  recent, lowest, since = collections.deque(maxlen=_RECENT), math.inf, 0
  if store.latest() is not None:
    restored = store.restore(state)
    state, read = restored.tree, restored.loop["iterator"]
    recent.extend(restored.loop["recent"])
    lowest, since = restored.loop["validation"]
  first = int(state.step)
  step_fn = steps.make_sft_step(
    context.graph, optimizer, context.allowed, microbatches=sft.microbatches, frozen=context.frozen
  )
  likelihood = steps.make_likelihood(context.graph, context.allowed)
  log = metrics.MetricsLog(workdir, "sft", first_step=first + 1)
  layout = mesh_lib.MeshLayout(context.mesh)
  with (
    contextlib.closing(store),
    contextlib.closing(log),
    features.cache(context, state.params, workdir) as cache,
    console.progress("sft", sft.steps, done=first) as tick,
  ):
    iterator = context.builder.read(
      "train", sft.batch, view="supervised", limit=sft.examples, cache=cache
    )
    if read is not None:
      iterator.set_state(read)
    ahead = clock = None
    for step in range(first + 1, sft.steps + 1):
      clock = clock_lib.Clock(after=clock)
      fed, ahead = ahead or _fed(context, state.params, next(iterator), iterator, cache), None
      clock.lap("data", exposed=True)
      lengths = steps.reply_lengths(fed.replies[1], context.mesh)
      fit = padding.shapes(sft, layout, lengths, budget=sft.max_reply_tokens)
      replies = [x[:, :, : fit.time] for x in fed.replies]
      state, values = step_fn(state, fed.prompt, *replies, packed=fit.packed)
      clock.lap("update")
      if step < sft.steps:
        ahead = _fed(context, state.params, next(iterator), iterator, cache)
        late = values["loss"].is_ready()
        clock.lap("data" if late else "update", exposed=late)
      values = {name: float(value) for name, value in jax.device_get(values).items()}
      clock.lap("update")
      if sft.validate_every and step % sft.validate_every == 0:
        loss = values["validation_loss"] = validation_loss(context, state.params, likelihood, cache)
        lowest, since = (loss, 0) if loss < lowest else (lowest, since + 1)
        clock.lap("validation")
      values |= fed.values | clock.values(sft.batch * values["reply_tokens"])
      log.write(step, values)
      tick(step, sft.steps, {"loss": values["loss"]})
      divergence.check_finite(values, sft.max_skipped, "sft", step)
      recent.append(values["loss"])
      reached = len(recent) == _RECENT and sum(recent) / _RECENT <= sft.target_loss
      stopped = 0 < sft.patience <= since
      done = reached or stopped or step == sft.steps
      if done or step % sft.checkpoint_every == 0:
        log.wait()
        loop = {
          "iterator": fed.read,
          "recent": list(recent),
          "validation": [lowest, since],
          "complete": done,
        }
        store.save(step, state, loop)
      if done:
        break


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Fed:
  """A batch on the devices. read: where the iterator stood behind it; values: what is to be logged."""

  prompt: records.Prompt
  replies: tuple[Array, Array]
  read: Mapping[str, Any]
  values: dict[str, float]


def _fed(
  context: run_context.RunContext,
  params: PyTree,
  batch: batching.Batch,
  batches: Iterator[batching.Batch],
  cache: features.Cache,
) -> _Fed:
  """The batch that `batches` gave last."""
  fed = features.prompt(context, params, batch, cache)
  replies = batching.reply_arrays(batch.items, context.config.sft.max_reply_tokens)
  replies = mesh_lib.put_batch(replies, context.mesh)
  return _Fed(prompt=fed.prompt, replies=replies, read=batches.get_state(), values=fed.values)


def validation_loss(
  context: run_context.RunContext,
  params: PyTree,
  likelihood: Callable[..., Array],
  cache: features.Cache,
) -> float:
  """Mean over the tokens of all reference replies of the validation split (nats)."""
  sft, sums = context.config.sft, np.zeros(2)
  batches = context.builder.read(
    "validation", sft.batch, view="supervised", repeat=False, cache=cache
  )
  batch = None
  while True:
    more = next(batches, None)
    if not processes.gathered(np.array([int(more is not None)])).any():
      return float(-sums[0] / sums[1])
    batch = more or batch
    if batch is None:
      raise errors.InputError(
        "config.data.validation_fraction: leaves fewer examples than there are processes"
      )
    prompt = features.prompt(context, params, batch, cache).prompt
    rows = len(batch.prompt.tokens)
    tokens, valid = batching.reply_arrays(batch.items, sft.max_reply_tokens, rows=rows)
    # A process whose share ended before that of another goes along, and adds nothing.
    replies = mesh_lib.put_batch((tokens, valid & (more is not None)), context.mesh)
    sums += jax.device_get(likelihood(params, prompt, *replies))
