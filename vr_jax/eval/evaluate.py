"""Evaluates a policy on held-out videos: accuracy, truth of its traces, and use of the frames."""

from collections.abc import Iterator, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree
import numpy as np

from vr_jax import errors, records
from vr_jax.envs import environment
from vr_jax.envs import grounding as grounding_lib
from vr_jax.eval import evaluated_episode, evaluated_parts, evaluated_replies, tracking
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.parallel import preemption, processes
from vr_jax.rewards import steps as steps_lib
from vr_jax.rl import advantages as advantages_lib
from vr_jax.rl import overlong
from vr_jax.rollout import decode_replies, encoder
from vr_jax.train import (
  batching,
  console,
  experience,
  run_context,
  scoring,
  split_episodes,
  vision_features,
)

_GROUPS = 2**20  # folded into the key: groups get other keys than the batches


def evaluate(
  context: run_context.RunContext, params: PyTree, *, name: str, cache: vision_features.Cache = None
) -> dict[str, Any]:
  """Evaluates a policy on the test split.

  name: of the evaluation, shown with its progress.
  cache: of vision features; used for videos that are shown whole and in order.

  All processes must call this together. Each plays its own examples, and returns the whole.

  Returns {"examples", "failed", "metrics", "intervals", "shown_as", "replies"}: the first five as
  in eval/<name>.json, the replies as in eval/<name>.jsonl (docs/evaluation.md). failed is the
  number of questions with a turn that was too large to show; they count as wrong. shown_as says how
  to show each metric, in order. The metrics are:

  - accuracy, and by problem type;
  - those that the environment declares;
  - means of all other rewards: rewards/<name>/mean of the last segment, <segment>/<name> of others;
  - completions/mean_length, in tokens;
  - for simulated examples, by their true states: trace_consistency, observation_sufficiency, and
    think_answer_mismatch (of replies whose trace concludes a value, the fraction with a different
    answer);
  - blind_accuracy (no frames) and shuffled_accuracy (frames in random order);
  - accuracy_interval, also by problem type: half the width of the interval;
  - region_similarity, boundary_f and j_and_f of the masks that a tracker finds (eval.tracker);
  - <name>_chance, what guessing scores, if it is known.
  """
  config = context.config.eval
  # Before the replies, which take long: it may find that weights are missing.
  tracker = tracking.Tracker(config.tracker, context.data) if config.tracker else None
  evaluated = list(_evaluated(context, params, name, cache))
  if tracker is not None:
    found = [(each.clip, each.grounding) for each in evaluated if each.grounding is not None]
    tracked = iter(tracker.follow(found))
    evaluated = [
      dataclasses.replace(each, tracked=None if each.grounding is None else next(tracked))
      for each in evaluated
    ]
  declared = context.environment.metrics
  values = evaluated_episode.values_by_metric(evaluated, declared)
  for view, wanted in (("blind", config.blind), ("shuffled", config.shuffled_frames)):
    if wanted:
      accuracies = _accuracies(context, params, view, f"{name}, {view}")
      values[f"{view}_accuracy"] = dict(enumerate(accuracies))
  shown_as = evaluated_episode.with_chance_of_accuracy({**declared, **evaluated_episode.METRICS})
  replies = [
    evaluated_replies.to_json(
      context.environment, each, {name: v[index] for name, v in values.items() if index in v}
    )
    for index, each in enumerate(evaluated)
  ]
  share, shares = mesh_lib.process_shard(context.mesh)
  if len(context.environment.segments) > 1 and context.environment.turns == 1:
    reported = len(range(share, config.report_samples, shares))
    # All of it, as every process has to take part in what the others sample.
    found = list(_advantages(context, params, evaluated, reported, cache))
    for reply, advantages in zip(replies, found, strict=False):
      reply["segment_advantages"] = advantages
  part = evaluated_parts.EvaluatedPart(
    values=values,
    chances=evaluated_episode.chances(evaluated, values, shown_as),
    replies=replies,
  )
  whole = evaluated_parts.merge(part, share, shares)
  videos = {index: reply["video"] for index, reply in enumerate(whole.replies)}
  intervals = evaluated_episode.intervals(whole.values, videos, shown_as)
  metrics = {name: float(np.mean(list(each.values()))) for name, each in whole.values.items()}
  metrics |= {
    name.replace("accuracy", "accuracy_interval"): (each.high - each.low) / 2
    for name, each in intervals.items()
    if name.split("/")[0] == "accuracy"
  }
  metrics |= {name: float(np.mean(list(each.values()))) for name, each in whole.chances.items()}
  return {
    "examples": len(whole.replies),
    "failed": sum("problem" in reply for reply in whole.replies),
    "metrics": metrics,
    "intervals": {name: dataclasses.asdict(each) for name, each in intervals.items()},
    "shown_as": {name: each.to_json() for name, each in shown_as.items()},
    "replies": whole.replies,
  }


def _accuracies(
  context: run_context.RunContext, params: PyTree, view: str, name: str
) -> list[float]:
  """Computes the accuracy about each example with a view ("blind" or "shuffled"); 0 if it failed.

  This is the rule-based accuracy: no judge model is asked, so it may differ from `accuracy` where a
  judge scores it.

  name: shown with the progress.
  """
  return [
    0.0 if row in batch.failed else context.environment.accuracy(item.example, reply)
    for batch in _played(context, params, view, name)
    for row, (item, (reply,)) in enumerate(zip(batch.items, batch.replies.texts, strict=True))
  ]


def _played(
  context: run_context.RunContext,
  params: PyTree,
  view: str,
  name: str,
  cache: vision_features.Cache = None,
) -> Iterator[split_episodes.PlayedBatch]:
  """Plays one episode about each example of the test split with a view; shows the progress."""
  config, done = context.config.eval, 0
  read = context.builder.read(
    "test", config.batch_size, view=view, limit=config.examples, repeat=False, cache=cache
  )
  with console.progress(name) as tick, preemption.stops_between_batches():
    for batch in split_episodes.play_split(context, params, read, split="test", cache=cache):
      yield batch
      done += len(batch.items)
      tick(done)
      if processes.count_joined() > 1 and preemption.stops_after():
        raise errors.Preempted(preemption.OUTSIDE)


def _truncated(context: run_context.RunContext, rollout: records.Rollout, rows: int) -> list[bool]:
  """Whether a reply of each episode was cut: at the limit of tokens, or as it repeats itself."""
  rl = context.config.rl
  limit = 1 if rl.repetition_window else rl.max_new_tokens  # fewest tokens of one that was cut
  arrays = (rollout.tokens, rollout.kind, rollout.turn)
  own = zip(*(mesh_lib.local_rows(x)[:rows, 0] for x in arrays), strict=True)
  return [
    any(
      len(ids := tokens[(kind == records.Kind.MODEL) & (turn == number)]) >= limit
      and ids[-1] not in context.stop_tokens
      for number in range(context.environment.turns)
    )
    for tokens, kind, turn in own
  ]


def _evaluated(
  context: run_context.RunContext, params: PyTree, name: str, cache: vision_features.Cache
) -> Iterator[evaluated_episode.EvaluatedEpisode]:
  """Plays and scores one episode about each example."""
  task = context.environment
  for batch in _played(context, params, "whole", name, cache):
    items, replies = batch.items, batch.replies
    truncated = _truncated(context, batch.rollout, len(items))
    score = functools.partial(task.score, [item.example for item in items], replies)
    scores = batch.earned(scoring.scored_once(score, context.mesh))
    tokens = (replies.segment >= 0).sum(axis=(1, 2))
    for row, (item, (episode,)) in enumerate(zip(items, replies.episodes, strict=True)):
      last = len(episode.replies) - 1
      action = task.parse_action(item.example, len(item.clip), episode.replies[last], last)
      by_segment = _rewards_by_segment(task.segments, scores, row)
      episode_metrics = batch.episode_metrics(task, row)
      reply, multi_turn = episode.replies[-1], task.turns > 1
      if multi_turn:
        by_segment = {name: by_segment[name] for name in task.segments[: len(episode.replies)]}
      yield evaluated_episode.EvaluatedEpisode(
        example=item.example,
        clip=item.clip,
        reply=reply,
        tokens=int(tokens[row]),
        truncated=truncated[row],
        problem=batch.failed.get(row, ""),
        answer=action.answer if action.kind == "answer" else None,
        accuracy=episode_metrics["accuracy"],
        steps=steps_lib.split_steps(task.trace(reply)),
        observation=task.observation(reply),
        rewards=episode_metrics if multi_turn else by_segment[task.segments[-1]],
        segment_rewards=by_segment if len(by_segment) > 1 or multi_turn else {},
        episode=episode if multi_turn else None,
        segment=replies.segment[row, 0],
        grounding=_grounding(task, item, episode),
      )


def _grounding(
  task: environment.Environment, item: batching.BatchItem, episode: environment.Episode
) -> grounding_lib.Grounding | None:
  """What an episode found; None if the recipe does not look for objects."""
  track = item.example.object_track
  if track is None or not task.finds_objects:
    return None
  return task.grounding(episode.replies, len(item.clip), (track.height, track.width))


def _advantages(
  context: run_context.RunContext,
  params: PyTree,
  evaluated: Sequence[evaluated_episode.EvaluatedEpisode],
  count: int,
  cache: vision_features.Cache,
) -> Iterator[dict[str, float | None]]:
  """Computes the advantages, by segment, that an update would give to the first `count` replies.

  For this, a group is sampled for each example as in training, and the evaluated reply joins it.
  So rewards that depend on the group (T-GRPO's) depend on this one. An advantage is None where the
  segment is not scored.
  """
  config, names = context.config, context.environment.segments
  size = config.eval.batch_size // mesh_lib.process_shard(context.mesh)[1]
  count = min(count, len(evaluated))
  for number in range(processes.all_max(-(-count // size))):
    own = evaluated[number * size : min((number + 1) * size, count)]
    rows = own or evaluated[:1]  # takes part in what the others sample
    batch = context.builder.batch(
      [context.builder.item(a.clip, cache=cache) for a in rows], size=size
    )
    featurized = vision_features.prompt_with_features(context, params, batch, cache)
    first = number * config.eval.batch_size
    key = jax.random.fold_in(jax.random.key(config.seed), _GROUPS + first)
    group = _sample_group(
      context,
      params,
      featurized.batch,
      encoder.encode(context.graphdef, params, featurized.prompt),
      key,
    )
    own_episodes = [environment.single_turn(a.reply) for a in rows]
    segment = np.stack([a.segment for a in rows if a.segment is not None])
    replies = environment.Replies(
      episodes=[[one, *more] for one, more in zip(own_episodes, group.episodes, strict=True)],
      segment=np.concatenate([segment[:, None], group.segment], 1),
      shuffled=group.shuffled,
    )
    score = functools.partial(context.environment.score, [a.example for a in rows], replies)
    scores = scoring.scored_once(score, context.mesh)
    scores = overlong.add_overlong_penalty(scores, replies.segment, config.rl, multi_turn=False)
    all_advantages, _ = advantages_lib.segment_advantages(
      jax.tree.map(jnp.asarray, scores),
      estimator=config.rl.advantage_estimator,
      baseline=config.rl.baseline,
      normalize_by_std=config.rl.normalize_by_std,
    )
    # Index 0 of each group is the evaluated reply.
    own_advantages = np.asarray(all_advantages[: len(own), 0])
    for advantages, scored in zip(own_advantages, scores.scored[: len(own), 0], strict=True):
      yield {
        name: float(advantage) if is_scored else None
        for name, advantage, is_scored in zip(names, advantages, scored, strict=True)
      }


def _sample_group(
  context: run_context.RunContext,
  params: PyTree,
  batch: batching.Batch,
  prompt: records.Prompt,
  key: Key[Array, ""],
) -> environment.Replies:
  """Samples a group of replies to each example as an RL step does, with its shuffled frames."""
  rl, shuffled = context.config.rl, None
  if rl.num_shuffled_generations:
    key, shuffled_key = jax.random.split(key)
    played = experience.play_shuffled(
      context, params, batch, prompt, shuffled_key, group=rl.num_shuffled_generations
    )
    shuffled = played.rollout
  rollout = experience.play_batch(context, params, batch, prompt, key).rollout
  dialogue, rows = context.builder.dialogue(batch), len(batch.items)
  return decode_replies.decode_replies(dialogue, rollout, shuffled, rows=rows)


def _rewards_by_segment(
  names: Sequence[str], scores: records.Scores, row: int
) -> dict[str, dict[str, float]]:
  """Rewards of a row's first reply, by segment and name.

  {} for a segment that is not scored; the last segment is always filled.
  """
  rewards = {**scores.rewards, "total": scores.total}
  return {
    name: {
      reward: float(value[row, 0, number])
      for reward, value in rewards.items()
      if scores.scored[row, 0, number] or number == len(names) - 1
    }
    for number, name in enumerate(names)
  }
