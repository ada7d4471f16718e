"""Evaluates a policy on held-out videos: accuracy, truth of its traces, and use of the frames."""

import base64
from collections.abc import Iterator, Sequence
import dataclasses
import io
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree
import numpy as np
from PIL import Image

from vr_jax import records
from vr_jax.envs import environment
from vr_jax.eval import evaluated_episode
from vr_jax.rewards import steps as steps_lib
from vr_jax.rl import advantages as advantages_lib
from vr_jax.rl import overlong
from vr_jax.rollout import decode_replies, encoder
from vr_jax.train import batching, console, experience, run_context, vision_features

_GROUPS = 2**20  # folded into the key: groups get other keys than the batches


def evaluate(
  context: run_context.RunContext, params: PyTree, *, name: str, cache: vision_features.Cache = None
) -> dict[str, Any]:
  """Evaluates a policy on the test split.

  name: of the evaluation, shown with its progress.
  cache: of vision features; used for videos that are shown whole and in order.

  Returns {"examples", "metrics", "shown_as", "rollouts"}, as in eval/<name>.json. shown_as says how
  to show each metric, in order. The metrics are:

  - accuracy, and by problem type, each with the half-width of its 95 % confidence interval (normal
    approximation) under accuracy_interval;
  - those that the environment declares, and <name>_chance, what guessing scores, if it is known;
  - means of all other rewards: rewards/<name>/mean of the last segment, <segment>/<name> of others;
  - completions/mean_length, in tokens;
  - for simulated examples, by their true states: trace_consistency, observation_sufficiency, and
    think_answer_mismatch (of replies whose trace concludes a value, the fraction with a different
    answer);
  - blind_accuracy (no frames) and shuffled_accuracy (frames in random order).
  """
  config = context.config.eval
  evaluated = list(_evaluated(context, params, name, cache))
  scores = [a.accuracy for a in evaluated]
  declared = context.environment.metrics
  metrics = {
    "accuracy": float(np.mean(scores)),
    "accuracy_interval": evaluated_episode.interval(scores),
    "completions/mean_length": float(np.mean([a.tokens for a in evaluated])),
    **evaluated_episode.by_type(evaluated),
    **evaluated_episode.trace_metrics(evaluated),
  }
  metrics |= {
    name: x
    for name, x in evaluated_episode.reward_means(evaluated, declared).items()
    if name not in metrics
  }
  metrics |= evaluated_episode.chance_levels(evaluated, declared)
  for view, wanted in (("blind", config.blind), ("shuffled", config.shuffled_frames)):
    if wanted:
      metrics[f"{view}_accuracy"] = _accuracy(context, params, view, f"{name}, {view}")
  rollouts = [_sample_json(context, each) for each in evaluated[: config.report_samples]]
  if len(context.environment.segments) > 1 and context.environment.turns == 1 and rollouts:
    for rollout, advantages in zip(
      rollouts, _advantages(context, params, evaluated, cache), strict=False
    ):
      rollout["segment_advantages"] = advantages
  shown_as = {
    name: each.to_json() for name, each in {**declared, **evaluated_episode.METRICS}.items()
  }
  return {
    "examples": len(evaluated),
    "metrics": metrics,
    "shown_as": shown_as,
    "rollouts": rollouts,
  }


def _accuracy(context: run_context.RunContext, params: PyTree, view: str, name: str) -> float:
  """Computes the mean accuracy with a view ("blind" or "shuffled").

  This is the rule-based accuracy: no judge model is asked, so it may differ from `accuracy` where a
  judge scores it.

  name: shown with the progress.
  """
  return float(
    np.mean(
      [
        context.environment.accuracy(item.example, reply)
        for items, replies in _replies(context, params, view, name)
        for item, (reply,) in zip(items, replies.texts, strict=True)
      ]
    )
  )


def _replies(
  context: run_context.RunContext,
  params: PyTree,
  view: str,
  name: str,
  cache: vision_features.Cache = None,
) -> Iterator[tuple[list[batching.Item], environment.Replies]]:
  """Plays one episode about each example, and yields batches of them."""
  temperature = context.config.eval.temperature
  for batch, prompt, key in _batches(context, params, view, name, cache):
    played = experience.play_batch(
      context, params, batch, prompt, key, group=1, temperature=temperature
    )
    dialogue, rows = context.builder.dialogue(batch), len(batch.items)
    yield batch.items, decode_replies.decode_replies(dialogue, played.rollout, rows=rows)


def _batches(
  context: run_context.RunContext,
  params: PyTree,
  view: str,
  name: str,
  cache: vision_features.Cache,
) -> Iterator[tuple[batching.Batch, records.Prompt, Key[Array, ""]]]:
  """Yields all examples once: batches, their prompts on the devices, and random keys."""
  config, done = context.config.eval, 0
  read = context.builder.read(
    "test", config.batch_size, view=view, limit=config.examples, repeat=False, cache=cache
  )
  with console.progress(name) as tick:
    for number, batch in enumerate(read):
      featurized = vision_features.prompt_with_features(context, params, batch, cache)
      key = jax.random.fold_in(jax.random.key(context.config.seed), number)
      yield featurized.batch, featurized.prompt, key
      done += len(batch.items)
      tick(done)


def _evaluated(
  context: run_context.RunContext, params: PyTree, name: str, cache: vision_features.Cache
) -> Iterator[evaluated_episode.EvaluatedEpisode]:
  """Plays and scores one episode about each example."""
  task = context.environment
  for items, replies in _replies(context, params, "whole", name, cache):
    scores = task.score([item.example for item in items], replies)
    tokens = (replies.segment >= 0).sum(axis=(1, 2))
    for row, (item, (episode,)) in enumerate(zip(items, replies.episodes, strict=True)):
      by_segment = _rewards_by_segment(task.segments, scores, row)
      episode_metrics = task.episode_metrics(item.example, episode)
      reply, multi_turn = episode.replies[-1], task.turns > 1
      if multi_turn:
        by_segment = {name: by_segment[name] for name in task.segments[: len(episode.replies)]}
      yield evaluated_episode.EvaluatedEpisode(
        example=item.example,
        clip=item.clip,
        reply=reply,
        tokens=int(tokens[row]),
        accuracy=episode_metrics["accuracy"],
        steps=steps_lib.split_steps(task.trace(reply)),
        observation=task.observation(reply),
        rewards=episode_metrics if multi_turn else by_segment[task.segments[-1]],
        segment_rewards=by_segment if len(by_segment) > 1 or multi_turn else {},
        episode=episode if multi_turn else None,
        segment=replies.segment[row, 0],
      )


def _advantages(
  context: run_context.RunContext,
  params: PyTree,
  evaluated: Sequence[evaluated_episode.EvaluatedEpisode],
  cache: vision_features.Cache,
) -> Iterator[dict[str, float | None]]:
  """Computes the advantages, by segment, that an update would give to each evaluated reply.

  For this, a group is sampled for each example as in training, and the evaluated reply joins it.
  So rewards that depend on the group (T-GRPO's) depend on this one. An advantage is None where the
  segment is not scored.
  """
  config, names = context.config, context.environment.segments
  for first in range(0, len(evaluated), config.eval.batch_size):
    rows = evaluated[first : first + config.eval.batch_size]
    batch = context.builder.batch(
      [context.builder.item(a.clip, cache=cache) for a in rows], size=config.eval.batch_size
    )
    featurized = vision_features.prompt_with_features(context, params, batch, cache)
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
    scores = context.environment.score([a.example for a in rows], replies)
    scores = overlong.add_overlong_penalty(scores, replies.segment, config.rl, multi_turn=False)
    all_advantages, _ = advantages_lib.segment_advantages(
      jax.tree.map(jnp.asarray, scores),
      credit=config.rl.advantage_estimator,
      baseline=config.rl.baseline,
      normalize_by_std=config.rl.normalize_by_std,
    )
    # Index 0 of each group is the evaluated reply.
    own_advantages = np.asarray(all_advantages[:, 0])
    for advantages, scored in zip(own_advantages, scores.scored[:, 0], strict=True):
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


def _sample_json(
  context: run_context.RunContext, evaluated: evaluated_episode.EvaluatedEpisode
) -> dict[str, Any]:
  """One rollout as JSON for the report."""
  example, clip = evaluated.example, evaluated.clip
  sample = {
    "id": example.id,
    "video": example.video,
    "question": example.question,
    "options": list(example.options),
    "answer": example.answer,
    "problem_type": example.problem_type,
    "reply": evaluated.reply,
    "accuracy": evaluated.accuracy,
    "reference": [dataclasses.asdict(step) for step in example.steps],
    "rewards": evaluated.rewards,
    **context.environment.explain(example, evaluated.reply),
  }
  if evaluated.episode:
    sample |= _episode_json(context, evaluated, evaluated.episode)
  else:
    frames = _observed_frames(context, example, len(clip), ())
    sample["frames"] = [_jpeg(frame) for frame in clip.read(frames)]
    sample["times"] = [float(time) for time in clip.timestamps[frames]]
  if evaluated.segment_rewards and not evaluated.episode:
    sample["segment_rewards"] = evaluated.segment_rewards
  if evaluated_episode.has_truth(example):
    sample["trace_consistency"] = evaluated_episode.consistency(evaluated).score
  return sample


def _observed_frames(
  context: run_context.RunContext, example: records.Example, pool: int, replies: Sequence[str]
) -> list[int]:
  """Indices of the frames that the next turn shows, in a clip of `pool` frames."""
  observation = context.environment.observe(example, pool, replies)
  assert observation is not None, "the episode has ended"
  return list(range(pool) if observation.shows_clip else observation.frames)


def _episode_json(
  context: run_context.RunContext,
  evaluated: evaluated_episode.EvaluatedEpisode,
  episode: environment.Episode,
) -> dict[str, Any]:
  """The turns of an episode and the clip's frame times, as JSON for the report."""
  example, pool = evaluated.example, evaluated.clip
  turns = []
  for number, (reply, rewards) in enumerate(
    zip(episode.replies, evaluated.segment_rewards.values(), strict=True)
  ):
    shown = _observed_frames(context, example, len(pool), episode.replies[:number])
    action = context.environment.parse_action(example, len(pool), reply)
    retrieves = action.kind == "retrieve"
    turns.append(
      {
        "reply": reply,
        "kind": action.kind,
        "problem": action.problem,
        "first": action.start if retrieves else None,
        "last": action.end if retrieves else None,
        "shown": shown,
        "frames": [_jpeg(frame) for frame in (pool.read(shown) if shown else ())],
        "rewards": rewards,
      }
    )
  return {
    "turns": turns,
    "pool_times": [float(time) for time in pool.timestamps],
    "relevant": [[span.start, span.end] for span in example.relevant],
  }


def _jpeg(frame: np.ndarray) -> str:
  stream = io.BytesIO()
  Image.fromarray(frame).save(stream, "JPEG", quality=85)
  return base64.b64encode(stream.getvalue()).decode()
