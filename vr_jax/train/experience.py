"""Collects experience: the sampled and scored replies that the update of a step learns from.

    batch -> features (encoder) -> replies (sampler) -> texts -> rewards (environment)

Replies are scored on another thread as soon as they are sampled, one batch after the other; see
`scoring`.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent import futures
import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree
import numpy as np

from vr_jax import records
from vr_jax.data import feature_cache
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.parallel import processes
from vr_jax.rl import advantages
from vr_jax.rollout import encoder, episodes, play, refill_sampler, written_replies
from vr_jax.train import batching, console, run_context, scoring, train_step, vision_features
from vr_jax.train import step_timer as step_timer_lib

# Folded into the key of replies to shuffled frames. Attempts of dynamic sampling fold in their
# number, which is less.
_SHUFFLED_KEY_SALT = 2**20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experience:
  """The replies to a batch, and their scores.

  prompt: the update's input. If the tower is trained, it holds raw patches, so that gradients reach
    the tower, and so do the observations in `rollout`; else it is `prompt_with_features`.
  prompt_with_features: the prompts with the features that the sampler used.
  media_index: `Prompt.media_index` of this process's prompts, on the host.
  lengths: tokens of each reply, over all processes. Observations between turns are included.
  prompt_tokens: mean number of tokens of a prompt, padding excluded.
  computed_tokens: positions of prompts and replies that sampling processed, with padding, groups
    that were then replaced, and replies to shuffled frames.
  useful_tokens: those of the computed tokens that are not padding.
  iterator_state: of the iterator over batches, after this batch.
  begun: what is written of the next step's replies; None without rl.carry_over.
  metrics: counts to log; those of joined batches are added.
  """

  items: list[batching.BatchItem]
  prompt: records.Prompt
  prompt_with_features: records.Prompt
  media_index: Int[np.ndarray, "prompts prefix"]
  rollout: records.Rollout
  lengths: Int[np.ndarray, "prompts group"]
  prompt_tokens: float
  computed_tokens: int
  useful_tokens: float
  scores_future: scoring.PendingScores | scoring.KnownScores
  iterator_state: Mapping[str, Any]
  begun: written_replies.WrittenReplies | None = None
  metrics: dict[str, float] = dataclasses.field(default_factory=dict)

  def wait_for_scores(self) -> scoring.ScoredReplies:
    """Waits for the scores; a later call returns the same.

    All processes must make the first call together, and in the order of steps.
    """
    return self.scores_future.wait()

  def items_with_features(self) -> list[batching.BatchItem]:
    """The items with the tower's features of their frames instead of the patches."""
    media = jax.tree.map(mesh_lib.local_rows, self.prompt_with_features.media)

    def row_features(row: int, index: np.ndarray) -> PyTree:
      return jax.tree.map(lambda x: x[row][index[index >= 0]], media)

    return [
      dataclasses.replace(
        item, encoded=dataclasses.replace(item.encoded, features=row_features(row, index))
      )
      for row, (item, index) in enumerate(zip(self.items, self.media_index, strict=True))
    ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrefetchedBatch:
  """A batch that was read ahead.

  featurized: it, on the devices.
  iterator_state: of the iterator over batches, after this batch.
  """

  featurized: vision_features.FeaturizedBatch
  iterator_state: Mapping[str, Any]


@dataclasses.dataclass(kw_only=True)
class Collector:
  """Reads batches of prompts, samples replies to them, and has these scored.

  batches: the iterator over batches.
  cache: features of a frozen tower; None without a cache.
  key: of the run; the step's number is folded in.
  scoring_thread: an executor with one thread, since batches are scored one after the other.
  read_ahead: the next batches, as far as they were read ahead.
  begun: what is written of the next step's replies.
  """

  context: run_context.RunContext
  batches: batching.BatchIterator
  cache: feature_cache.FeatureCache | None
  key: Key[Array, ""]
  scoring_thread: futures.ThreadPoolExecutor
  read_ahead: deque[PrefetchedBatch] = dataclasses.field(default_factory=deque)
  begun: written_replies.WrittenReplies | None = None

  def prefetch(self, params: PyTree) -> None:
    """Reads the next batch, at a time when the devices are busy; all processes call it together.

    params: used by a frozen tower, for features that are not in the cache.
    """
    if len(self.read_ahead) <= self.context.config.rl.carry_over:
      self.read_ahead.append(self._read(params))

  def _read(self, params: PyTree) -> PrefetchedBatch:
    batch = next(self.batches)
    featurized = vision_features.prompt_with_features(self.context, params, batch, self.cache)
    return PrefetchedBatch(featurized=featurized, iterator_state=self.batches.get_state())

  def collect(self, params: PyTree, step: int, timer: step_timer_lib.StepTimer) -> Experience:
    """Collects the experience of a step, and begins that of the next one with rl.carry_over.

    It returns before the replies are scored, except with rl.dynamic_sampling_max_batches, which
    needs the scores to replace groups without signal.
    """
    key = jax.random.fold_in(self.key, step)
    with console.doing("sampling replies"):
      if not self.context.config.rl.dynamic_sampling_max_batches:
        return self._collect(params, key, timer, next_step=step + 1)
      return self._collect_groups_with_signal(params, key, timer)

  def _peek(self, params: PyTree) -> PrefetchedBatch:
    """The batch that is sampled next; it stays the next one."""
    if not self.read_ahead:
      self.read_ahead.append(self._read(params))
    return self.read_ahead[0]

  def _next_batch(
    self, params: PyTree, step: int, like: records.Prompt
  ) -> refill_sampler.NextBatch | None:
    """The batch of a step, whose replies may begin before it; None: they may not.

    like: prompts of whose shapes its own have to be.
    """
    rl = self.context.config.rl
    if not rl.carry_over or step > rl.steps:
      return None
    prompt = self._peek(params).featurized.prompt
    if jax.tree.map(jnp.shape, prompt) != jax.tree.map(jnp.shape, like):
      return None
    return refill_sampler.NextBatch(
      prompt=lambda: encoder.encode(self.context.graphdef, params, prompt),
      key=jax.random.fold_in(self.key, step),
    )

  def _collect(
    self,
    params: PyTree,
    key: Key[Array, ""],
    timer: step_timer_lib.StepTimer,
    next_step: int = 0,
  ) -> Experience:
    read = self._peek(params)
    self.read_ahead.popleft()
    batch, prompt = read.featurized.batch, read.featurized.prompt
    next_batch = self._next_batch(params, next_step, prompt)
    timer.record("data", device_idle=True)
    context, begun = self.context, self.begun
    encoded = encoder.encode(context.graphdef, params, prompt)
    played = play_batch(
      *(context, params, batch, encoded, key),
      begun=begun,
      next_batch=next_batch,
      int8_weights=context.samples_int8,
    )
    self.begun = played.begun
    shuffled = self._shuffled(params, batch, encoded, key)
    timer.record("rollout", idle_seconds=played.idle_seconds)
    dialogue = context.builder.dialogue(batch)
    pending = scoring.PendingScores(
      self.scoring_thread,
      dialogue,
      played.rollout,
      shuffled and shuffled.rollout,
      mesh=context.mesh,
      rl=context.config.rl,
    )
    episode_rollouts = [played, *([shuffled] if shuffled else [])]
    rollouts = [episode.rollout for episode in episode_rollouts]
    if not context.tower_frozen:
      rollouts[0] = play.with_patches(
        played,
        dialogue,
        schedule=play.make_schedule(context.config, context.environment, context.processor),
        mesh=context.mesh,
      )
    lengths = [
      train_step.reply_lengths(train_step.token_mask(rollout), self.context.mesh)
      for rollout in rollouts
    ]
    prompt_tokens = batching.mean_prompt_tokens(batch)
    all_prompt_tokens = len(rollouts) * len(lengths[0]) * prompt_tokens
    return Experience(
      items=batch.items,
      prompt=encoded if self.context.tower_frozen else prompt,
      prompt_with_features=encoded,
      media_index=np.asarray(batch.prompt.media_index),
      rollout=rollouts[0],
      lengths=lengths[0],
      prompt_tokens=prompt_tokens,
      computed_tokens=sum(episode.computed_tokens for episode in episode_rollouts)
      + len(rollouts) * encoded.tokens.size,
      useful_tokens=sum(int(length.sum()) for length in lengths) + all_prompt_tokens,
      scores_future=pending,
      iterator_state=read.iterator_state,
      begun=played.begun,
      metrics=read.featurized.metrics | self._carried_metrics(begun),
    )

  def _carried_metrics(self, begun: written_replies.WrittenReplies | None) -> dict[str, float]:
    """What logs say of the replies that had been begun when the step began."""
    if not self.context.config.rl.carry_over:
      return {}
    return {"sampling/carried_fraction": begun.begun_fraction if begun else 0.0}

  def _shuffled(
    self, params: PyTree, batch: batching.Batch, encoded: records.Prompt, key: Key[Array, ""]
  ) -> episodes.EpisodeRollout | None:
    """Samples replies to the same features with the frames in random order.

    None if config.rl.num_shuffled_generations is 0.
    """
    count = self.context.config.rl.num_shuffled_generations
    if not count:
      return None
    key = jax.random.fold_in(key, _SHUFFLED_KEY_SALT)
    return play_shuffled(
      *(self.context, params, batch, encoded, key),
      group=count,
      int8_weights=self.context.samples_int8,
    )

  def _collect_groups_with_signal(
    self, params: PyTree, key: Key[Array, ""], timer: step_timer_lib.StepTimer
  ) -> Experience:
    """Samples batches until enough groups have signal, and joins these groups to one batch.

    It samples at most `rl.dynamic_sampling_max_batches` further batches. A group has signal if its
    advantages are not all zero. Groups without signal are used only to fill the batch when the
    limit is reached.

    Source: dynamic sampling of DAPO, arXiv 2503.14476, section 3.2.
    """
    _, num_shares = mesh_lib.process_shard(self.context.mesh)
    rl = self.context.config.rl
    wanted = rl.batch_size // num_shares
    drawn, chosen, spare = [], [], []
    for attempt in range(1 + rl.dynamic_sampling_max_batches):
      attempt_key = jax.random.fold_in(key, attempt) if attempt else key
      sampled = self._collect(params, attempt_key, timer)
      scores = jax.tree.map(jnp.asarray, sampled.wait_for_scores().scores)
      _, signal = advantages.segment_advantages(
        scores, estimator=rl.advantage_estimator, normalize_by_std=rl.normalize_by_std
      )
      timer.record("reward", device_idle=True)
      for row, has_signal in enumerate(np.logical_or.reduce(np.asarray(signal), axis=-1)):
        (chosen if has_signal else spare).append((len(drawn), row))
      drawn.append(sampled)
      if processes.all_min(len(chosen)) >= wanted:
        break
    metrics = {
      "dynamic_sampling/batches": float(len(drawn)),
      "dynamic_sampling/signal_fraction": len(chosen) / (len(chosen) + len(spare)),
    }
    if len(drawn) == 1:
      return dataclasses.replace(drawn[0], metrics=drawn[0].metrics | metrics)
    joined = self._join(drawn, (chosen + spare)[:wanted], metrics)
    timer.record("data", device_idle=True)
    return joined

  def _join(
    self,
    drawn: Sequence[Experience],
    chosen: Sequence[tuple[int, int]],
    metrics: dict[str, float],
  ) -> Experience:
    """Joins rows of several experiences to one, with the features that they were sampled with.

    Replies have one turn each: the check of a config refuses dynamic sampling with several turns.

    chosen: (number of the experience, row in it).
    """
    drawn_items = [experience.items_with_features() for experience in drawn]
    batch = self.context.builder.batch([drawn_items[number][row] for number, row in chosen])
    batch = self.context.builder.pad_to_common_buckets(batch)
    prompt = encoded = self.context.builder.prompt(batch)
    items = [drawn[number].items[row] for number, row in chosen]
    if not self.context.tower_frozen:
      prompt = self.context.builder.prompt(self.context.builder.batch(items, sizes=batch.sizes))
    rollouts = [jax.tree.map(mesh_lib.local_rows, experience.rollout) for experience in drawn]
    rollout = mesh_lib.put_batch(_rows(rollouts, chosen), self.context.mesh)
    scored = [experience.wait_for_scores() for experience in drawn]
    shuffled = None
    if all(replies.shuffled is not None for replies in scored):
      shuffled = [cast(Any, scored[number].shuffled)[row] for number, row in chosen]
    known = scoring.ScoredReplies(
      episodes=[scored[number].episodes[row] for number, row in chosen],
      scores=_rows([replies.scores for replies in scored], chosen),
      segment=_rows([replies.segment for replies in scored], chosen),
      reward_state=scored[-1].reward_state,
      counts=_summed([replies.counts for replies in scored]),
      shuffled=shuffled,
    )
    return Experience(
      items=items,
      prompt=prompt,
      prompt_with_features=encoded,
      media_index=np.asarray(batch.prompt.media_index),
      rollout=rollout,
      lengths=train_step.reply_lengths(train_step.token_mask(rollout), self.context.mesh),
      prompt_tokens=batching.mean_prompt_tokens(batch),
      computed_tokens=sum(experience.computed_tokens for experience in drawn),
      useful_tokens=sum(experience.useful_tokens for experience in drawn),
      scores_future=scoring.KnownScores(known),
      iterator_state=drawn[-1].iterator_state,
      metrics=_summed([experience.metrics for experience in drawn]) | metrics,
    )


def play_batch(
  context: run_context.RunContext,
  params: PyTree,
  batch: batching.Batch,
  prompt: records.Prompt,
  key: Key[Array, ""],
  *,
  begun: written_replies.WrittenReplies | None = None,
  next_batch: refill_sampler.NextBatch | None = None,
  ends_outgrown: bool = False,
  **decoding: Any,
) -> episodes.EpisodeRollout:
  """Samples episodes about a batch.

  prompt: the batch's prompts, on the mesh.
  begun, next_batch: of `refill_sampler.sample`.
  ends_outgrown: of `multi_turn_sampler.play`.
  decoding: sampling options that differ from the recipe's.
  """
  return play.play(
    context.graphdef,
    params,
    prompt,
    context.allowed_tokens,
    key,
    context.builder.dialogue(batch),
    decoding=context.decoding(**decoding),
    schedule=play.make_schedule(context.config, context.environment, context.processor),
    threads=context.config.data.threads,
    begun=begun,
    next_batch=next_batch,
    ends_outgrown=ends_outgrown,
  )


def play_shuffled(
  context: run_context.RunContext,
  params: PyTree,
  batch: batching.Batch,
  encoded: records.Prompt,
  key: Key[Array, ""],
  *,
  group: int,
  **decoding: Any,
) -> episodes.EpisodeRollout:
  """As `play_batch`, but with the frames of each prompt in random order.

  encoded: prompts with features.
  """
  index = mesh_lib.put_batch(context.builder.shuffled_index(batch, key), context.mesh)
  prompt = dataclasses.replace(encoded, media_index=index)
  return play_batch(context, params, batch, prompt, key, group=group, **decoding)


def _summed(counts: Sequence[Mapping[str, float]]) -> dict[str, float]:
  """Adds counts of the same names."""
  return {name: sum(count[name] for count in counts) for name in counts[0]}


def _rows(trees: Sequence[Any], chosen: Sequence[tuple[int, int]]) -> Any:
  """Stacks the chosen rows (number of the tree, row in it) of trees of host arrays."""
  return jax.tree.map(
    lambda *arrays: np.stack([np.asarray(arrays[number])[row] for number, row in chosen]), *trees
  )
