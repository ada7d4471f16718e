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
from vr_jax.train import checkpoints as checkpoints_lib
from vr_jax.train import clock as clock_lib
from vr_jax.train import console, features, metrics, padding, steps
from vr_jax.train import parts as parts_lib
from vr_jax.train import state as state_lib

_RECENT = 10  # updates whose mean loss is held against config.sft.target_loss


def train(config: ml_collections.ConfigDict, workdir: Path) -> None:
  """Trains config.sft.steps updates from fresh parameters, or goes on from the last checkpoint.

  It ends sooner where the mean loss of the last 10 updates reaches config.sft.target_loss, or where config.sft.patience looks
  at the validation split in a row find no lower loss.
  """
  if not config.sft.steps:
    return
  parts = parts_lib.build(config, workdir, judged=False)
  sft = parts.config.sft
  mesh_lib.check_batch(sft.batch, parts.mesh, "config.sft.batch", parts=sft.microbatches)
  store = parts.checkpoints(workdir / "checkpoints" / "sft")
  if complete(store):
    console.say(f"sft: complete at step {store.latest()}")
    store.close()
    return
  optimizer = state_lib.make_optimizer(sft, parts.abstract_params, parts.frozen)
  state, read = state_lib.create(parts.fresh_params(), optimizer, parts.mesh), None
  recent, lowest, since = collections.deque(maxlen=_RECENT), math.inf, 0
  if store.latest() is not None:
    restored = store.restore(state)
    state, read = restored.tree, restored.loop["iterator"]
    recent.extend(restored.loop["recent"])
    lowest, since = restored.loop["validation"]
  first = int(state.step)
  step_fn = steps.make_sft_step(
    parts.graph, optimizer, parts.allowed, microbatches=sft.microbatches, frozen=parts.frozen
  )
  likelihood = steps.make_likelihood(parts.graph, parts.allowed)
  log = metrics.MetricsLog(workdir, "sft", first_step=first + 1)
  layout = mesh_lib.MeshLayout(parts.mesh)
  with (
    contextlib.closing(store),
    contextlib.closing(log),
    features.cache(parts, state.params, workdir) as cache,
    console.progress("sft", sft.steps, done=first) as tick,
  ):
    iterator = parts.read("train", sft.batch, view="supervised", limit=sft.examples, cache=cache)
    if read is not None:
      iterator.set_state(read)
    ahead = clock = None
    for step in range(first + 1, sft.steps + 1):
      clock = clock_lib.Clock(after=clock)
      fed, ahead = ahead or _fed(parts, state.params, next(iterator), iterator, cache), None
      clock.lap("data", exposed=True)
      lengths = steps.reply_lengths(fed.replies[1], parts.mesh)
      fit = padding.shapes(sft, layout, lengths, budget=sft.max_reply_tokens)
      replies = [x[:, :, : fit.time] for x in fed.replies]
      state, values = step_fn(state, fed.prompt, *replies, packed=fit.packed)
      clock.lap("update")
      if step < sft.steps:
        ahead = _fed(parts, state.params, next(iterator), iterator, cache)
        late = values["loss"].is_ready()
        clock.lap("data" if late else "update", exposed=late)
      values = {name: float(value) for name, value in jax.device_get(values).items()}
      clock.lap("update")
      if sft.validate_every and step % sft.validate_every == 0:
        loss = values["validation_loss"] = validation_loss(parts, state.params, likelihood, cache)
        lowest, since = (loss, 0) if loss < lowest else (lowest, since + 1)
        clock.lap("validation")
      values |= fed.values | clock.values(sft.batch * values["reply_tokens"])
      log.write(step, values)
      tick(step, sft.steps, {"loss": values["loss"]})
      check_finite(values, sft.max_skipped, "sft", step)
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
  parts: parts_lib.Parts,
  params: PyTree,
  batch: parts_lib.Batch,
  batches: Iterator[parts_lib.Batch],
  cache: features.Cache,
) -> _Fed:
  """The batch that `batches` gave last."""
  prompt, values = features.prompt(parts, params, batch, cache)
  replies = parts_lib.reply_arrays(batch.items, parts.config.sft.max_reply_tokens)
  replies = mesh_lib.put_batch(replies, parts.mesh)
  return _Fed(prompt=prompt, replies=replies, read=batches.get_state(), values=values)


def validation_loss(
  parts: parts_lib.Parts,
  params: PyTree,
  likelihood: Callable[..., Array],
  cache: features.Cache,
) -> float:
  """Mean over the tokens of all reference replies of the validation split (nats)."""
  sft, sums = parts.config.sft, np.zeros(2)
  batches = parts.read("validation", sft.batch, view="supervised", repeat=False, cache=cache)
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
    prompt, _ = features.prompt(parts, params, batch, cache)
    rows = len(batch.prompt.tokens)
    tokens, valid = parts_lib.reply_arrays(batch.items, sft.max_reply_tokens, rows=rows)
    # A process whose share ended before that of another goes along, and adds nothing.
    replies = mesh_lib.put_batch((tokens, valid & (more is not None)), parts.mesh)
    sums += jax.device_get(likelihood(params, prompt, *replies))


def complete(store: checkpoints_lib.Checkpoints) -> bool:
  """Whether the last checkpoint is that of a warm start that was done."""
  return store.latest() is not None and store.loop(store.latest())["complete"]


def check_finite(values: dict[str, float], most: int, stage: str, step: int) -> None:
  """Raises Diverged at the `most`-th void update in a row (0 is as 1: at the first), of the policy or of its critic."""
  own, of_critic = values["skipped_in_a_row"], values.get("critic/skipped_in_a_row", 0)
  section = "critic" if of_critic > own else stage
  void = int(max(own, of_critic))
  if 0 < void >= most:
    raise errors.Diverged(
      f"{stage} step {step}: {void} updates in a row had a loss or gradient that "
      f"is not finite (config.{stage}.max_skipped={most}); lower config.{section}.learning_rate"
    )
