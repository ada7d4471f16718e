"""Evaluates the policy on held-out videos while RL trains it, and keeps the best checkpoint.

The best is that of the highest `best_metric` of the environment (the lowest, where the metric
declares so); of equal ones the first. It is in <workdir>/checkpoints/rl_best, parameters alone.

An evaluation changes nothing that training depends on: it has a data iterator and random keys of
its own, and the environment's counters are read and reset after it.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent import futures
import contextlib
import dataclasses
import itertools
import math
from pathlib import Path
import shutil
from typing import Any

from jaxtyping import PyTree

from vr_jax import errors, records
from vr_jax.envs import environment as environment_lib
from vr_jax.parallel import processes
from vr_jax.train import (
  batching,
  console,
  initialization,
  model_setup,
  run_context,
  scoring,
  split_episodes,
  vision_features,
)

PREFIX = "eval/"  # of the metrics


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeldOut:
  """The evaluation of a run.

  cache: features of a frozen tower; None without a cache.
  thread: where training scores replies, too: environments score one batch after the other.
  """

  context: run_context.RunContext
  cache: vision_features.Cache
  thread: futures.ThreadPoolExecutor

  def check(self) -> None:
    """Raises InputError if the batch doesn't fit the mesh, or the split holds no examples."""
    model_setup.check_batch(self.context.config, self.context.mesh, "eval")
    self._read()

  def evaluate(self, params: PyTree) -> dict[str, float]:
    """Plays one episode about each example; returns means, under eval/.

    All processes must call this together. accuracy and the environment's other metrics of an
    episode; rewards/<name>/mean as in training; completions/mean_length, in tokens.
    """
    sums: dict[str, list[float]] = {}
    failed: list[str] = []
    played = split_episodes.play_split(
      self.context,
      params,
      self._read(),
      split=f"config.rl.eval_split={self.context.config.rl.eval_split}",
      cache=self.cache,
    )
    for batch in played:
      failed += batch.failed.values()
      for name, value in self._values(batch):
        total = sums.setdefault(name, [0.0, 0.0])
        total[0], total[1] = total[0] + value, total[1] + 1
    # Processes with the same rows found the same.
    problems = dict.fromkeys(itertools.chain.from_iterable(processes.all_gather_json(failed)))
    if problems:
      console.print_line(
        f"rl: of the held-out questions {len(problems)} failed, which counts as wrong; first, "
        f"{next(iter(problems))}"
      )
    return {
      f"{PREFIX}{name}": total / count for name, (total, count) in _over_processes(sums).items()
    }

  def _values(self, batch: split_episodes.PlayedBatch) -> Iterator[tuple[str, float]]:
    """Scores a batch; yields (name, value) of each reply's metrics."""
    environment, replies = self.context.environment, batch.replies
    examples = [item.example for item in batch.items]
    scores = scoring.scored_once(
      lambda: self.thread.submit(_score, environment, examples, replies).result(),
      self.context.mesh,
    )
    scores = batch.earned(scores)
    rewards = {**scores.rewards, "total": scores.total}
    for row in range(len(examples)):
      yield from batch.episode_metrics(environment, row).items()
      yield "completions/mean_length", float((replies.segment[row] >= 0).sum())
      for number, segment in enumerate(environment.segments):
        if scores.scored[row, 0, number]:
          of = f"{segment}/" if len(environment.segments) > 1 else ""
          for name, value in rewards.items():
            yield f"rewards/{of}{name}/mean", float(value[row, 0, number])

  def _read(self) -> batching.BatchIterator:
    config = self.context.config
    return self.context.builder.read(
      config.rl.eval_split,
      config.eval.batch_size,
      limit=config.rl.eval_examples,
      repeat=False,
      cache=self.cache,
    )


def _score(
  environment: environment_lib.Environment,
  examples: Sequence[records.Example],
  replies: environment_lib.Replies,
) -> records.Scores:
  scores = environment.score(examples, replies)
  environment.counts()  # what was counted is no metric of a training step
  return scores


def _over_processes(sums: Mapping[str, list[float]]) -> dict[str, list[float]]:
  """Adds the [sum, count] of each name over all processes, which must call this together."""
  merged: dict[str, list[float]] = {}
  for each in processes.all_gather_json(sums):
    for name, (total, count) in each.items():
      before = merged.get(name, [0.0, 0.0])
      merged[name] = [before[0] + total, before[1] + count]
  return merged


class BestCheckpoint:
  """The best checkpoint of a run so far."""

  def __init__(self, context: run_context.RunContext, workdir: Path, *, first_step: int) -> None:
    """Opens it. If the stage begins anew (first_step is 1), an earlier run's is removed."""
    self._name = context.environment.best_metric
    declared = context.environment.metrics.get(self._name)
    self._sign = -1 if declared and declared.better < 0 else 1
    self._split = context.config.rl.eval_split
    directory = directory_of(workdir)
    if first_step == 1:
      processes.first_alone("best", lambda: shutil.rmtree(directory, ignore_errors=True))
    self._store = initialization.open_checkpoints(context, directory, keep=1)
    self._store.finish_moves()
    step = self._store.latest()
    self._record: dict[str, Any] | None = None if step is None else self._store.loop(step)

  def offer(self, step: int, params: PyTree, values: Mapping[str, float]) -> None:
    """Keeps these parameters if their evaluation is the best so far.

    values: of `HeldOut.evaluate`.

    Raises InputError if they lack the metric.
    """
    value = values.get(f"{PREFIX}{self._name}")
    if value is None:
      found = ", ".join(name.removeprefix(PREFIX) for name in sorted(values))
      raise errors.InputError(
        f"best_metric={self._name!r} of the environment: not a metric of its evaluation, "
        f"which are {found}"
      )
    before = (self._record or {}).get("value", -math.inf * self._sign)
    if not self._sign * value > self._sign * before:  # also where it is not a number
      return
    self._record = {"step": step, "metric": self._name, "value": value, "split": self._split}
    if self._store.latest() == step:  # a run that was interrupted comes here again
      self._store.delete(step)
    self._store.save(step, {"params": params}, self._record)

  def wait(self) -> None:
    """Waits until it is written. Call it before saving a checkpoint of the same step."""
    self._store.wait()

  @contextlib.contextmanager
  def closing(self) -> Iterator[None]:
    """Closes it after the block, as its checkpoints are, and prints which step is the best."""
    try:
      with self._store.closing():
        yield
    finally:
      self._print_best()

  def _print_best(self) -> None:
    if record := self._record:
      console.print_line(
        f"rl: the best {record['metric']} on the {record['split']} split is {record['value']:.4g}, "
        f"of step {record['step']}; it is used with --config.eval.checkpoint=best and "
        "--config.export.checkpoint=best"
      )


def directory_of(workdir: Path) -> Path:
  """Where a run keeps its best checkpoint."""
  return workdir / "checkpoints" / "rl_best"
