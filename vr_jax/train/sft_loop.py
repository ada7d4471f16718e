"""Stage `sft`: supervised warm start on the reference replies.

The host reads the next batch while the devices compute the update. That time counts as
`perf/time/data` only if the devices finished first.
"""

import collections
from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import math
from pathlib import Path
from typing import Any, cast

import jax
from jaxtyping import Array, PyTree
import ml_collections
import numpy as np

from vr_jax import errors, records
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.parallel import preemption, processes
from vr_jax.train import (
  batching,
  console,
  divergence,
  initialization,
  local_copies,
  metrics,
  model_setup,
  profiling,
  reply_shapes,
  run_context,
  slow_process,
  step_summary,
  train_step,
  vision_features,
)
from vr_jax.train import step_timer as step_timer_lib
from vr_jax.train import train_state as train_state_lib


def train(config: ml_collections.ConfigDict, workdir: Path) -> None:
  """Trains for config.sft.steps steps, from fresh parameters or from the last checkpoint.

  It ends early if the mean loss of the last 10 updates reaches config.sft.target_loss, or if the
  loss on the validation split has not improved config.sft.patience times in a row.
  """
  if not config.sft.steps:
    return
  context = run_context.make_run_context(config, workdir, judged=False)
  sft = context.config.sft
  model_setup.check_batch(config, context.mesh, "sft")
  store = initialization.open_checkpoints(context, workdir / "checkpoints" / "sft")
  store.set_damaged_aside()
  if initialization.is_complete(store, sft):
    console.print_line(f"sft: complete at step {store.latest()}")
    store.close()
    return
  optimizer = train_state_lib.make_optimizer(sft, context.abstract_params, context.frozen)
  state = train_state_lib.create(initialization.fresh_params(context), optimizer, context.mesh)
  copies = local_copies.LocalCopies(store, workdir, "sft", every=sft.copy_every)
  progress = SftProgress()
  if store.latest() is not None:
    restored = copies.newest(state) or store.restore(state)
    state, progress = restored.tree, SftProgress.from_json(restored.loop)
  first = int(state.step)
  step_fn = train_step.make_sft_step(
    context.update_graphdef,
    optimizer,
    context.allowed_tokens,
    microbatches=sft.microbatches,
    frozen=context.frozen,
  )
  learning_rate = train_state_lib.make_last_learning_rate_fn(sft)
  log_likelihood = train_step.make_log_likelihood_fn(context.graphdef, context.allowed_tokens)
  log = metrics.MetricsLog(workdir, "sft", first_step=first + 1, config=config)
  layout = mesh_lib.MeshLayout(context.mesh)
  with (
    store.closing(),
    contextlib.closing(copies),
    contextlib.closing(log),
    preemption.stops_between_steps(),
    vision_features.open_cache(context, state.params, workdir) as cache,
    profiling.profiler(workdir, "sft", config.log.profile_steps) as profile,
    console.progress("sft", sft.steps, done=first) as tick,
  ):
    iterator = context.builder.read(
      "train", sft.batch_size, view="supervised", limit=sft.examples, cache=cache
    )
    if progress.iterator is not None:
      iterator.set_state(progress.iterator)
    slow = slow_process.SlowProcessWatch("sft")
    ahead = timer = None
    for step in range(first + 1, sft.steps + 1):
      profile.begin(step)
      timer = step_timer_lib.StepTimer(after=timer)
      batch, ahead = (
        ahead or prepare_batch(context, state.params, next(iterator), iterator, cache),
        None,
      )
      timer.record("data", device_idle=True)
      lengths = train_step.reply_lengths(batch.replies[1], context.mesh)
      fit = reply_shapes.choose_reply_shapes(sft, layout, lengths, budget=sft.max_reply_tokens)
      replies = [x[:, :, : fit.time] for x in batch.replies]
      with console.doing("updating the policy"):
        state, values = step_fn(state, batch.prompt, *replies, packed_length=fit.packed_length)
        values["learning_rate"] = learning_rate(state)
      timer.record("update")
      if step < sft.steps:
        ahead = prepare_batch(context, state.params, next(iterator), iterator, cache)
        late = cast(Any, values["loss"]).is_ready()  # the stub of jax.Array lacks it
        timer.record("data" if late else "update", device_idle=late)
      with console.doing("updating the policy"):
        values = {name: float(value) for name, value in jax.device_get(values).items()}
      values["completions/min_length"] = float(lengths.min())
      values["completions/max_length"] = float(lengths.max())
      progress.num_tokens += int(lengths.sum()) + round(batch.prompt_tokens * len(lengths))
      values["num_tokens"] = progress.num_tokens
      timer.record("update")
      if sft.validate_every and step % sft.validate_every == 0:
        with console.doing("measuring the validation loss"):
          values["validation_loss"] = validation_loss(context, state.params, log_likelihood, cache)
        progress.note_validation(values["validation_loss"])
        timer.record("validation")
      profile.end(step)
      values |= batch.metrics | timer.metrics(sft.batch_size * values["completions/mean_length"])
      values |= slow.note(step, timer)
      log.write(step, values)
      tick(step, sft.steps, step_summary.summarize(values))
      divergence.check_finite(values, sft.max_consecutive_nonfinite, "sft", step)
      progress.recent.append(values["loss"])
      done = initialization.is_warm(sft, step, progress.recent, progress.since)
      preempted = preemption.stops_after()
      saves = done or preempted or step % sft.checkpoint_every == 0
      if saves or copies.is_due(step):
        log.wait()
        progress.iterator = batch.read
        (store if saves else copies).save(step, state, progress.to_json())
      if preempted:
        store.wait()
        raise errors.Preempted(f"sft is saved at step {step}")
      if done:
        break


@dataclasses.dataclass(kw_only=True)
class SftProgress:
  """What a checkpoint keeps of the loop, besides the state of the training.

  iterator: state of the iterator over batches; None before the first batch.
  recent: losses of the last updates.
  lowest: validation loss so far.
  since: measurements of the validation loss in a row without a new minimum.
  num_tokens: of prompts and replies seen so far.
  """

  iterator: Mapping[str, Any] | None = None
  recent: collections.deque[float] = dataclasses.field(
    default_factory=lambda: collections.deque(maxlen=initialization.RECENT_LOSSES)
  )
  lowest: float = math.inf
  since: int = 0
  num_tokens: int = 0

  @classmethod
  def from_json(cls, loop: Mapping[str, Any]) -> "SftProgress":
    """What `to_json` gave; older checkpoints lack `num_tokens`."""
    lowest, since = loop["validation"]
    progress = cls(
      iterator=loop["iterator"],
      lowest=lowest,
      since=since,
      num_tokens=loop.get("num_tokens", 0),
    )
    progress.recent.extend(loop["recent"])
    return progress

  def to_json(self) -> dict[str, Any]:
    """For a checkpoint."""
    return {
      "iterator": self.iterator,
      "recent": list(self.recent),
      "validation": [self.lowest, self.since],
      "num_tokens": self.num_tokens,
    }

  def note_validation(self, loss: float) -> None:
    """Takes a new measurement of the validation loss."""
    self.lowest, self.since = (loss, 0) if loss < self.lowest else (self.lowest, self.since + 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SftBatch:
  """A batch on the devices.

  replies: (tokens, valid), each [prompts, 1, time].
  read: state of the iterator over batches after this batch.
  prompt_tokens: mean number of tokens of a prompt, padding excluded.
  metrics: to log.
  """

  prompt: records.Prompt
  replies: tuple[Array, Array]
  read: Mapping[str, Any]
  prompt_tokens: float
  metrics: dict[str, float]


def prepare_batch(
  context: run_context.RunContext,
  params: PyTree,
  batch: batching.Batch,
  batches: batching.BatchIterator,
  cache: vision_features.Cache,
) -> SftBatch:
  """Puts a batch on the devices. batches: the iterator that gave it."""
  featurized = vision_features.prompt_with_features(context, params, batch, cache)
  replies = batching.reply_arrays(batch.items, context.config.sft.max_reply_tokens)
  replies = mesh_lib.put_batch(replies, context.mesh)
  return SftBatch(
    prompt=featurized.prompt,
    replies=replies,
    read=batches.get_state(),
    prompt_tokens=batching.mean_prompt_tokens(featurized.batch),
    metrics=featurized.metrics,
  )


def validation_loss(
  context: run_context.RunContext,
  params: PyTree,
  log_likelihood: Callable[..., Array],
  cache: vision_features.Cache,
) -> float:
  """The loss on the validation split: mean over the tokens of all reference replies (nats)."""
  sft, sums = context.config.sft, np.zeros(2)
  batches = context.builder.read(
    "validation", sft.batch_size, view="supervised", repeat=False, cache=cache
  )
  batch, done = None, 0
  with console.progress("validation") as tick:
    while True:
      more = next(batches, None)
      if not processes.all_gather(np.array([int(more is not None)])).any():
        return float(-sums[0] / sums[1])
      batch = more or batch
      if batch is None:
        raise errors.InputError(
          "config.data.validation_fraction: leaves fewer examples than there are processes"
        )
      prompt = vision_features.prompt_with_features(context, params, batch, cache).prompt
      rows = len(batch.prompt.tokens)
      tokens, valid = batching.reply_arrays(batch.items, sft.max_reply_tokens, rows=rows)
      # A process that has no batches left takes part with its last one, which then counts nothing.
      replies = mesh_lib.put_batch((tokens, valid & (more is not None)), context.mesh)
      sums += jax.device_get(log_likelihood(params, prompt, *replies))
      done += 1
      tick(done)
