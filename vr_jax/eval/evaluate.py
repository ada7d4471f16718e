"""One policy on held-out videos: what it gets right, whether its traces are true, and whether it looks at all."""

import base64
from collections.abc import Iterator, Sequence
import dataclasses
import io
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key, PyTree
import numpy as np
from PIL import Image

from vr_jax import records
from vr_jax.data import batches
from vr_jax.envs import environment
from vr_jax.envs import turns as turns_lib
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rewards import accuracy as accuracy_lib
from vr_jax.rewards import steps as steps_lib
from vr_jax.rl import advantages as advantages_lib
from vr_jax.rl import overlong
from vr_jax.rollout import decode_replies, encoder, multi_turn, sampler
from vr_jax.train import batching, console, features, run_context
from vr_jax.worlds import consistency, sufficiency

_GROUPS = 2**20  # folded into the key of evaluation: apart from its batches


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answered:
  """One held-out example with its reply and scores.

  steps: of its trace. observation: what it says to have seen, None where the recipe doesn't ask for it. rewards: by name, of
  the segment that answers, the last; of_segments: of each segment by its name, where there are several. segment: that of each token, -1 where there is
  none.

  Of several turns `reply` is the last one, episode all of them, and of_segments has the turns; outcome: what else it came to.
  """

  example: records.Example
  clip: batches.Clip
  reply: str
  tokens: int
  steps: list[str]
  observation: str | None
  rewards: dict[str, float]
  of_segments: dict[str, dict[str, float]]
  episode: environment.Episode | None = None
  outcome: dict[str, float] = dataclasses.field(default_factory=dict)
  segment: Int[np.ndarray, "time"] | None = None


def evaluate(
  context: run_context.RunContext, params: PyTree, *, name: str, cache: features.Cache = None
) -> dict[str, Any]:
  """{"examples", "metrics", "rollouts"} of a policy on the test split, as eval/<name>.json holds them.

  Metrics: `accuracy` (and by problem type), each with the half-width of its 95 % interval (normal approximation) under
  `accuracy_interval`; `process_reward`; `format`; `reply_tokens`; `trace_consistency` (the trace against the true
  states, of simulated examples); `think_answer_mismatch` (share of replies whose trace concludes another value than
  they answer, of those that conclude one); `observation_sufficiency` (by the simulator's states), and rewards of segments
  before the last (`perception/accuracy`, …); `blind_accuracy` (no frames) and `shuffled_accuracy` (frames out of order); of
  several turns `turns` and `retrievals` of an episode, and `frame_recall`, where the evidence is known.
  cache: of features, for what is seen whole and in order.
  """
  config = context.config.eval
  answer = _played if environment.has_turns(context.environment) else _replied
  whole = list(answer(context, params, name, cache))
  scores = [a.rewards["accuracy"] for a in whole]
  metrics = {
    "accuracy": float(np.mean(scores)),
    "accuracy_interval": _interval(scores),
    "format": float(np.mean([a.rewards["format"] for a in whole])),
    "reply_tokens": float(np.mean([a.tokens for a in whole])),
    **_of_recipe(whole),
    **_by_type(whole),
    **_trace_metrics(whole),
  }
  for view in ("blind", "shuffled"):
    if config[view]:
      metrics[f"{view}_accuracy"] = _accuracy(context, params, view, f"{name}, {view}")
  rollouts = [_shown(context, answered) for answered in whole[: config.rollouts]]
  if (
    len(context.environment.segments) > 1
    and not environment.has_turns(context.environment)
    and rollouts
  ):
    for rollout, advantages in zip(
      rollouts, _advantages(context, params, whole, cache), strict=False
    ):
      rollout["segment_advantages"] = advantages
  return {"examples": len(whole), "metrics": metrics, "rollouts": rollouts}


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
  cache: features.Cache = None,
) -> Iterator[tuple[list[batching.Item], environment.Replies]]:
  """One reply to each example, a batch at a time."""
  decoding = context.decoding(group=1, temperature=context.config.eval.temperature)
  for batch, prompt, key in _batches(context, params, view, name, cache):
    rollout = sampler.sample(context.graph, params, prompt, context.allowed, key, decoding=decoding)
    yield (
      batch.items,
      decode_replies.decode_replies(
        context.processor, context.environment, rollout, rows=len(batch.items)
      ),
    )


def _batches(
  context: run_context.RunContext, params: PyTree, view: str, name: str, cache: features.Cache
) -> Iterator[tuple[batching.Batch, records.Prompt, Key[Array, ""]]]:
  """All examples once, with the prompt of each batch on the devices, and a key."""
  config, done = context.config.eval, 0
  read = context.builder.read(
    "test", config.batch, view=view, limit=config.examples, repeat=False, cache=cache
  )
  with console.progress(name) as tick:
    for number, batch in enumerate(read):
      fed = features.prompt(context, params, batch, cache)
      yield fed.batch, fed.prompt, jax.random.fold_in(jax.random.key(context.config.seed), number)
      done += len(batch.items)
      tick(done)


def _replied(
  context: run_context.RunContext, params: PyTree, name: str, cache: features.Cache
) -> Iterator[Answered]:
  """One reply to each example, judged."""
  task = context.environment
  for items, replies in _replies(context, params, "whole", name, cache):
    scores = task.score([item.example for item in items], replies)
    tokens = (replies.segment >= 0).sum(axis=(1, 2))
    for row, (item, (reply,)) in enumerate(zip(items, replies.texts, strict=True)):
      of_segments = _of_segments(task.segments, scores, row)
      yield Answered(
        example=item.example,
        clip=item.clip,
        reply=reply,
        tokens=int(tokens[row]),
        steps=steps_lib.split_steps(task.trace(reply)),
        observation=task.observation(reply),
        rewards=of_segments[task.segments[-1]],
        of_segments=of_segments if len(of_segments) > 1 else {},
        segment=replies.segment[row, 0],
      )


def _played(
  context: run_context.RunContext, params: PyTree, name: str, cache: features.Cache
) -> Iterator[Answered]:
  """One episode about each example."""
  task, temperature = context.environment, context.config.eval.temperature
  for batch, prompt, key in _batches(context, params, "whole", name, cache):
    prompt = encoder.encode(context.graph, params, prompt)
    talk = multi_turn.play(
      context.graph,
      params,
      prompt,
      context.allowed,
      key,
      context.builder.dialogue(batch),
      timestamps=[item.clip.timestamps for item in batch.items],
      decoding=context.decoding(group=1, temperature=temperature),
      schedule=multi_turn.make_schedule(context.config, turns=task.turns),
      threads=context.config.data.threads,
    )
    scores = task.rewards([item.example for item in batch.items], talk.said, training=False)
    for row, (item, (episode,)) in enumerate(zip(batch.items, talk.said, strict=True)):
      outcome, reply = task.outcome(item.example, episode), episode.replies[-1]
      of_turns = _of_segments(task.segments, scores, row)
      yield Answered(
        example=item.example,
        clip=item.clip,
        reply=reply,
        tokens=sum(map(len, talk.played.replies[row][0])),
        steps=steps_lib.split_steps(task.trace(reply)),
        observation=None,
        rewards={name: outcome.pop(name) for name in ("accuracy", "format")},
        of_segments={name: of_turns[name] for name in task.segments[: len(episode.replies)]},
        episode=episode,
        outcome=outcome,
      )


def _advantages(
  context: run_context.RunContext,
  params: PyTree,
  answered: Sequence[Answered],
  cache: features.Cache,
) -> Iterator[dict[str, float | None]]:
  """What an update would make of each reply, beside a group that is sampled as training does: its advantages by segment.

  None where its segment has no verdict. Rewards that depend on the group (T-GRPO's) are those among it.
  """
  config, names = context.config, context.environment.segments
  for first in range(0, len(answered), config.eval.batch):
    some = answered[first : first + config.eval.batch]
    batch = context.builder.batch(
      [context.builder.item(a.clip, cache=cache) for a in some], size=config.eval.batch
    )
    fed = features.prompt(context, params, batch, cache)
    key = jax.random.fold_in(jax.random.key(config.seed), _GROUPS + first)
    replies = _group(
      context, params, fed.batch, encoder.encode(context.graph, params, fed.prompt), key
    )
    both = environment.Replies(
      texts=[[a.reply, *texts] for a, texts in zip(some, replies.texts, strict=True)],
      segment=np.concatenate([np.stack([a.segment for a in some])[:, None], replies.segment], 1),
      shuffled=replies.shuffled,
    )
    scores = context.environment.score([a.example for a in some], both)
    scores = overlong.add_overlong_penalty(scores, both.segment, config.rl, multi_turn=False)
    made, _ = advantages_lib.segment_advantages(
      jax.tree.map(jnp.asarray, scores),
      credit=config.rl.credit,
      baseline=config.rl.baseline,
      normalise=config.rl.normalise,
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
  """Replies to each example as a step of RL draws them, with those to shuffled frames that config.rl.shuffled asks for."""

  def sample(prompt: records.Prompt, key: Key[Array, ""], group: int) -> records.Rollout:
    decoding = context.decoding(group=group)
    return sampler.sample(context.graph, params, prompt, context.allowed, key, decoding=decoding)

  rl, shuffled = context.config.rl, None
  if rl.shuffled:
    key, of_shuffled = jax.random.split(key)
    index = mesh_lib.put_batch(context.builder.shuffled_index(batch, of_shuffled), context.mesh)
    mixed = dataclasses.replace(prompt, media_index=index)
    shuffled = sample(mixed, of_shuffled, rl.shuffled)
  return decode_replies.decode_replies(
    context.processor,
    context.environment,
    sample(prompt, key, rl.group),
    shuffled,
    rows=len(batch.items),
  )


def _of_segments(
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


def _interval(values: Sequence[float]) -> float:
  """Half-width of the 95 % interval of a mean."""
  return float(1.96 * np.std(values) / np.sqrt(len(values)))


def _of_recipe(answered: Sequence[Answered]) -> dict[str, float]:
  """What only some recipes reward: the process, or a segment before the answer."""
  values: dict[str, list[float]] = {}
  for a in answered:
    if "process" in a.rewards:
      values.setdefault("process_reward", []).append(a.rewards["process"])
    for name, value in a.outcome.items():
      values.setdefault(name, []).append(value)
    for segment, rewards in [] if a.episode else list(a.of_segments.items())[:-1]:
      for name, value in rewards.items():
        values.setdefault(f"{segment}/{name}", []).append(value)
  return {name: float(np.mean(of_name)) for name, of_name in values.items()}


def _by_type(answered: Sequence[Answered]) -> dict[str, float]:
  values: dict[str, list[float]] = {}
  for a in answered:
    values.setdefault(a.example.problem_type, []).append(a.rewards["accuracy"])
  means = {f"accuracy/{kind}": float(np.mean(v)) for kind, v in values.items()}
  return means | {f"accuracy_interval/{kind}": _interval(v) for kind, v in values.items()}


def _trace_metrics(answered: Sequence[Answered]) -> dict[str, float]:
  known = [a for a in answered if _has_truth(a.example)]
  if not known:
    return {}
  values = {"trace_consistency": float(np.mean([_consistency(a).score for a in known]))}
  if known[0].observation is not None:
    enough = [sufficiency.sufficient(a.example, a.observation) for a in known]
    values["observation_sufficiency"] = float(np.mean(enough))
  implied = [
    (a, value)
    for a in known
    if (value := consistency.implied_answer(a.steps, a.example)) is not None
  ]
  if implied:
    values["think_answer_mismatch"] = float(np.mean([not _says(a, value) for a, value in implied]))
  return values


def _has_truth(example: records.Example) -> bool:
  """Whether the states are the simulator's: traces are read in its words, which other data does not use."""
  return example.source == "simulator" and bool(example.states)


def _says(answered: Answered, value: str) -> bool:
  """Whether a reply answers `value` (a letter of a multiple choice, or a phrase)."""
  example = answered.example
  kind, options = example.problem_type, example.options
  return accuracy_lib.accuracy(answered.reply, value, kind, options) == 1


def _consistency(answered: Answered) -> consistency.Consistency:
  example = answered.example
  reference = [step.text for step in example.steps]
  return consistency.trace_consistency(answered.steps, example.states, reference=reference)


def _shown(context: run_context.RunContext, answered: Answered) -> dict[str, Any]:
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
    "reference": [dataclasses.asdict(step) for step in example.steps],
    "rewards": answered.rewards,
    **context.environment.explain(example, answered.reply),
  }
  if answered.episode:
    shown |= _shown_turns(context, answered)
  else:
    shown["frames"] = [_jpeg(frame) for frame in clip.frames]
    shown["times"] = [float(time) for time in clip.timestamps]
  if answered.of_segments and not answered.episode:
    shown["segment_rewards"] = answered.of_segments
  if _has_truth(example):
    shown["trace_consistency"] = _consistency(answered).score
  return shown


def _shown_turns(context: run_context.RunContext, answered: Answered) -> dict[str, Any]:
  """The turns of an episode, and the pool that they are about."""
  example, pool, episode = answered.example, answered.clip, answered.episode
  turns = []
  for number, (reply, rewards) in enumerate(
    zip(episode.replies, answered.of_segments.values(), strict=True)
  ):
    seen = context.environment.observe(example, len(pool), episode.replies[:number]).frames
    action = turns_lib.parse(reply, len(pool), example.problem_type, example.options)
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
