"""One policy on held-out videos: what it gets right, whether its traces are true, and whether it looks at all."""

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
from vr_jax.eval import answered as answered_lib
from vr_jax.rewards import steps as steps_lib
from vr_jax.rl import advantages as advantages_lib
from vr_jax.rl import overlong
from vr_jax.rollout import decode_replies, encoder
from vr_jax.train import batching, console, experience, run_context, vision_features

_GROUPS = 2**20  # folded into the key of evaluation: apart from its batches


def evaluate(
  context: run_context.RunContext, params: PyTree, *, name: str, cache: vision_features.Cache = None
) -> dict[str, Any]:
  """{"examples", "metrics", "shown_as", "rollouts"} of a policy on the test split, as eval/<name>.json holds them.

  Metrics: `accuracy` (and by problem type), each with the half-width of its 95 % interval (normal
  approximation) under `accuracy_interval`; those that the environment declares, with the `<name>_chance`
  of a guess where it says one; the means of all other rewards, `rewards/<name>/mean` of the last segment and
  `<segment>/<name>` of those before it; `completions/mean_length`; of simulated examples, by their true states,
  `trace_consistency`, `think_answer_mismatch` (share of replies whose trace concludes another value than
  they answer, of those that conclude one) and `observation_sufficiency`; `blind_accuracy` (no frames)
  and `shuffled_accuracy` (frames out of order). shown_as: how each is shown, in order.
  cache: of features, for what is seen whole and in order.
  """
  config = context.config.eval
  whole = list(_answered(context, params, name, cache))
  scores = [a.accuracy for a in whole]
  declared = context.environment.metrics
  metrics = {
    "accuracy": float(np.mean(scores)),
    "accuracy_interval": answered_lib.interval(scores),
    "completions/mean_length": float(np.mean([a.tokens for a in whole])),
    **answered_lib.by_type(whole),
    **answered_lib.trace_metrics(whole),
  }
  metrics |= {
    name: x for name, x in answered_lib.reward_means(whole, declared).items() if name not in metrics
  }
  metrics |= answered_lib.chance_levels(whole, declared)
  for view, wanted in (("blind", config.blind), ("shuffled", config.shuffled_frames)):
    if wanted:
      metrics[f"{view}_accuracy"] = _accuracy(context, params, view, f"{name}, {view}")
  rollouts = [_sample_json(context, answered) for answered in whole[: config.report_samples]]
  if len(context.environment.segments) > 1 and context.environment.turns == 1 and rollouts:
    for rollout, advantages in zip(
      rollouts, _advantages(context, params, whole, cache), strict=False
    ):
      rollout["segment_advantages"] = advantages
  shown_as = {name: each.to_json() for name, each in {**declared, **answered_lib.METRICS}.items()}
  return {
    "examples": len(whole),
    "metrics": metrics,
    "shown_as": shown_as,
    "rollouts": rollouts,
  }


def _accuracy(context: run_context.RunContext, params: PyTree, view: str, name: str) -> float:
  """The mean accuracy of replies to a view, which is all that is asked of them: no judge reads these."""
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
  """One episode about each example, a batch at a time."""
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
  """All examples once, with the prompt of each batch on the devices, and a key."""
  config, done = context.config.eval, 0
  read = context.builder.read(
    "test", config.batch_size, view=view, limit=config.examples, repeat=False, cache=cache
  )
  with console.progress(name) as tick:
    for number, batch in enumerate(read):
      fed = vision_features.prompt_with_features(context, params, batch, cache)
      yield fed.batch, fed.prompt, jax.random.fold_in(jax.random.key(context.config.seed), number)
      done += len(batch.items)
      tick(done)


def _answered(
  context: run_context.RunContext, params: PyTree, name: str, cache: vision_features.Cache
) -> Iterator[answered_lib.Answered]:
  """One episode about each example, scored."""
  task = context.environment
  for items, replies in _replies(context, params, "whole", name, cache):
    scores = task.score([item.example for item in items], replies)
    tokens = (replies.segment >= 0).sum(axis=(1, 2))
    for row, (item, (episode,)) in enumerate(zip(items, replies.episodes, strict=True)):
      of_segments = _rewards_by_segment(task.segments, scores, row)
      measured, reply = task.episode_metrics(item.example, episode), episode.replies[-1]
      several = task.turns > 1
      if several:
        of_segments = {name: of_segments[name] for name in task.segments[: len(episode.replies)]}
      yield answered_lib.Answered(
        example=item.example,
        clip=item.clip,
        reply=reply,
        tokens=int(tokens[row]),
        accuracy=measured["accuracy"],
        steps=steps_lib.split_steps(task.trace(reply)),
        observation=task.observation(reply),
        rewards=measured if several else of_segments[task.segments[-1]],
        segment_rewards=of_segments if len(of_segments) > 1 or several else {},
        episode=episode if several else None,
        segment=replies.segment[row, 0],
      )


def _advantages(
  context: run_context.RunContext,
  params: PyTree,
  answered: Sequence[answered_lib.Answered],
  cache: vision_features.Cache,
) -> Iterator[dict[str, float | None]]:
  """What an update would make of each reply, beside a group that is sampled as training does: its advantages by segment.

  None where its segment has no verdict. Rewards that depend on the group (T-GRPO's) are those among it.
  """
  config, names = context.config, context.environment.segments
  for first in range(0, len(answered), config.eval.batch_size):
    some = answered[first : first + config.eval.batch_size]
    batch = context.builder.batch(
      [context.builder.item(a.clip, cache=cache) for a in some], size=config.eval.batch_size
    )
    fed = vision_features.prompt_with_features(context, params, batch, cache)
    key = jax.random.fold_in(jax.random.key(config.seed), _GROUPS + first)
    replies = _group(
      context, params, fed.batch, encoder.encode(context.graphdef, params, fed.prompt), key
    )
    own = [environment.single_turn(a.reply) for a in some]
    both = environment.Replies(
      episodes=[[one, *group] for one, group in zip(own, replies.episodes, strict=True)],
      segment=np.concatenate([np.stack([a.segment for a in some])[:, None], replies.segment], 1),
      shuffled=replies.shuffled,
    )
    scores = context.environment.score([a.example for a in some], both)
    scores = overlong.add_overlong_penalty(scores, both.segment, config.rl, multi_turn=False)
    made, _ = advantages_lib.segment_advantages(
      jax.tree.map(jnp.asarray, scores),
      credit=config.rl.advantage_estimator,
      baseline=config.rl.baseline,
      normalize_by_std=config.rl.normalize_by_std,
    )
    for advantages, known in zip(np.asarray(made[:, 0]), scores.valid[:, 0], strict=True):
      yield {
        name: float(advantage) if here else None
        for name, advantage, here in zip(names, advantages, known, strict=True)
      }


def _group(
  context: run_context.RunContext,
  params: PyTree,
  batch: batching.Batch,
  prompt: records.Prompt,
  key: Key[Array, ""],
) -> environment.Replies:
  """Replies to each example as a step of RL draws them, with those to shuffled frames that config.rl.num_shuffled_generations asks for."""
  rl, shuffled = context.config.rl, None
  if rl.num_shuffled_generations:
    key, of_shuffled = jax.random.split(key)
    played = experience.play_shuffled(
      context, params, batch, prompt, of_shuffled, group=rl.num_shuffled_generations
    )
    shuffled = played.rollout
  rollout = experience.play_batch(context, params, batch, prompt, key).rollout
  dialogue, rows = context.builder.dialogue(batch), len(batch.items)
  return decode_replies.decode_replies(dialogue, rollout, shuffled, rows=rows)


def _rewards_by_segment(
  names: Sequence[str], scores: records.Scores, row: int
) -> dict[str, dict[str, float]]:
  """Rewards of the one reply in a row, by segment and name; those of a segment without a verdict are left out."""
  of_all = {**scores.rewards, "total": scores.total}
  return {
    name: {
      reward: float(value[row, 0, number])
      for reward, value in of_all.items()
      if scores.valid[row, 0, number] or number == len(names) - 1
    }
    for number, name in enumerate(names)
  }


def _sample_json(
  context: run_context.RunContext, answered: answered_lib.Answered
) -> dict[str, Any]:
  """One rollout as the report shows it."""
  example, clip = answered.example, answered.clip
  shown = {
    "id": example.id,
    "video": example.video,
    "question": example.question,
    "options": list(example.options),
    "answer": example.answer,
    "problem_type": example.problem_type,
    "reply": answered.reply,
    "accuracy": answered.accuracy,
    "reference": [dataclasses.asdict(step) for step in example.steps],
    "rewards": answered.rewards,
    **context.environment.explain(example, answered.reply),
  }
  if answered.episode:
    shown |= _episode_json(context, answered)
  else:
    seen = context.environment.observe(example, len(clip), ())
    frames = list(range(len(clip)) if seen.shows_clip else seen.frames)
    shown["frames"] = [_jpeg(frame) for frame in clip.read(frames)]
    shown["times"] = [float(time) for time in clip.timestamps[frames]]
  if answered.segment_rewards and not answered.episode:
    shown["segment_rewards"] = answered.segment_rewards
  if answered_lib.has_truth(example):
    shown["trace_consistency"] = answered_lib.consistency(answered).score
  return shown


def _episode_json(
  context: run_context.RunContext, answered: answered_lib.Answered
) -> dict[str, Any]:
  """The turns of an episode, and the pool that they are about."""
  example, pool, episode = answered.example, answered.clip, answered.episode
  turns = []
  for number, (reply, rewards) in enumerate(
    zip(episode.replies, answered.segment_rewards.values(), strict=True)
  ):
    turn = context.environment.observe(example, len(pool), episode.replies[:number])
    seen = range(len(pool)) if turn.shows_clip else turn.frames
    action = context.environment.parse_action(example, len(pool), reply)
    look = action.kind == "retrieve"
    turns.append(
      {
        "reply": reply,
        "kind": action.kind,
        "problem": action.problem,
        "first": action.start if look else None,
        "last": action.end if look else None,
        "shown": list(seen),
        "frames": [_jpeg(frame) for frame in (pool.read(seen) if seen else ())],
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
