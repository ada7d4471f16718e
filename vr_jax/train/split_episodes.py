"""Plays one episode about each example of a split, for evaluations."""

from collections.abc import Iterator, Mapping
import dataclasses

import jax
from jaxtyping import PyTree
import numpy as np

from vr_jax import errors, records
from vr_jax.envs import environment as environment_lib
from vr_jax.envs import metric as metric_lib
from vr_jax.parallel import processes
from vr_jax.rollout import decode_replies
from vr_jax.train import batching, experience, run_context, vision_features


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlayedBatch:
  """Episodes about this process's part of a batch.

  replies: one episode about each item.
  rollout: has a row for each item, and perhaps more that fill up the batch.
  failed: why an episode ended before its next turn, which is too large, by row.
  """

  items: list[batching.BatchItem]
  replies: environment_lib.Replies
  rollout: records.Rollout
  failed: Mapping[int, str]

  def episode_metrics(self, environment: environment_lib.Environment, row: int) -> dict[str, float]:
    """The environment's metrics of an episode; of one that failed 0 where higher is better."""
    (episode,) = self.replies.episodes[row]
    values = environment.episode_metrics(self.items[row].example, episode)
    if row not in self.failed:
      return values
    better = {name: metric_lib.by_name(name, environment.metrics)[0].better for name in values}
    return {name: 0.0 if better[name] > 0 else value for name, value in values.items()}

  def earned(self, scores: records.Scores) -> records.Scores:
    """The scores of these replies with rewards of 0 for episodes that failed."""
    if not self.failed:
      return scores
    counts = np.array([row not in self.failed for row in range(len(self.items))])[:, None, None]
    return dataclasses.replace(
      scores,
      rewards={name: np.where(counts, each, 0) for name, each in scores.rewards.items()},
      total=np.where(counts, scores.total, 0),
    )


def play_split(
  context: run_context.RunContext,
  params: PyTree,
  batches: batching.BatchIterator,
  *,
  split: str,
  cache: vision_features.Cache = None,
) -> Iterator[PlayedBatch]:
  """Plays episodes about all batches, at the temperature of evaluations; they depend on the seed.

  An episode with a turn that is too large for the largest buckets ends before it, and failed.

  All processes must call this together; one that has no batches left takes part in what the others
  play, and yields nothing.

  batches: of one epoch, in order.
  split: its name, for the error.
  cache: features of a frozen tower; None without a cache.

  Raises InputError if the split has fewer examples than there are processes.
  """
  batch, number = None, 0
  while True:
    more = next(batches, None)
    if not processes.all_gather(np.array([int(more is not None)])).any():
      return
    # A process that has no batches left takes part with its last one, which counts nothing.
    batch = more or batch
    if batch is None:
      raise errors.InputError(f"{split}: has fewer examples than there are processes")
    featurized = vision_features.prompt_with_features(context, params, batch, cache)
    played = experience.play_batch(
      context,
      params,
      featurized.batch,
      featurized.prompt,
      jax.random.fold_in(jax.random.key(context.config.seed), number),
      group=1,
      temperature=context.config.eval.temperature,
      ends_outgrown=True,
    )
    if more is not None:
      rows = len(batch.items)
      yield PlayedBatch(
        items=batch.items,
        replies=decode_replies.decode_replies(
          context.builder.dialogue(featurized.batch), played.rollout, rows=rows
        ),
        rollout=played.rollout,
        failed={row: why for (row, _), why in played.outgrown.items() if row < rows},
      )
    number += 1
