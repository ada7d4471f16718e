"""How much one RL step works on, from its config: the sizes of the arrays of a step of full clips or full episodes."""

from collections.abc import Sequence
import dataclasses

import jax
import jax.numpy as jnp
import ml_collections

from vr_jax import errors, records
from vr_jax.data import sampling
from vr_jax.models import interface
from vr_jax.train import paths

TEXT_TOKENS = 256  # that a prompt holds beside its video, where the buckets leave the choice


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaterTurns:
  """What turns behind the first add: how many they are; tokens and temporal patches that each of them shows.

  frames_in_all: temporal patches that an episode keeps of them. forgets: whether the window is shorter than an episode.
  """

  turns: int
  tokens: int
  frames: int
  frames_in_all: int
  forgets: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepShapes:
  """How much one step works on: the sizes of its arrays. frames: temporal patches; patches: of one of these.

  time: tokens of a reply, of several turns those of an episode behind its opening. later: None where there is one turn.
  """

  prompts: int
  group: int
  time: int
  prefix: int
  frames: int
  patches: int
  microbatches: int
  later: LaterTurns | None = None


def make_step_shapes(config: ml_collections.ConfigDict, model: interface.ModelConfig) -> StepShapes:
  """What a step of full clips works on: the buckets that hold their frames, at the largest size that a frame may have.

  The prompt's bucket is the smallest with room for `TEXT_TOKENS` beside the video, or else the largest. Of several turns all
  buckets are the largest, but for the frames of a turn: an even share of those of all later ones.
  Raises InputError where a bucket is too small for a clip.
  """
  return _of_episodes(config) if "turns" in config else _of_clips(config, model)


def _of_clips(config: ml_collections.ConfigDict, model: interface.ModelConfig) -> StepShapes:
  section, vision = config.model, model.vision_shapes
  rule = paths.sampling_rule(config.data)
  images = rule.frames if isinstance(rule, sampling.UniformRule) else rule.max_frames
  frames = -(-images // vision.images_per_frame)
  patches = section.max_pixels // vision.pixels_per_patch
  media = frames * vision.media_tokens(patches)
  _check_bucket(frames, "temporal patches", section.frame_buckets, "frame_buckets")
  _check_bucket(patches, "patches a frame", section.patch_buckets, "patch_buckets")
  _check_bucket(media + 1, "tokens with its question", section.prefix_buckets, "prefix_buckets")
  roomy = [size for size in section.prefix_buckets if size >= media + TEXT_TOKENS]
  return StepShapes(
    prompts=config.rl.batch_size,
    group=config.rl.num_generations,
    time=config.rl.max_new_tokens,
    prefix=min(roomy, default=max(section.prefix_buckets)),
    frames=min(size for size in section.frame_buckets if size >= frames),
    patches=min(size for size in section.patch_buckets if size >= patches),
    microbatches=config.rl.microbatches,
  )


def _of_episodes(config: ml_collections.ConfigDict) -> StepShapes:
  section, turns, later = config.model, config.turns, config.env.turns - 1
  frames = max(turns.frame_buckets)
  share = -(-frames // max(later, 1))
  return StepShapes(
    prompts=config.rl.batch_size,
    group=config.rl.num_generations,
    time=max(turns.episode_buckets),
    prefix=max(section.prefix_buckets),
    frames=max(section.frame_buckets),
    patches=max(section.patch_buckets),
    microbatches=config.rl.microbatches,
    later=LaterTurns(
      turns=later,
      tokens=max(turns.observation_buckets),
      frames=min(size for size in turns.frame_buckets if size >= share),
      frames_in_all=frames,
      forgets=config.env.get("history_turns", later) < later,
    ),
  )


def prompt(
  rows: int, tokens: int, frames: int, patches: int, model: interface.ModelConfig
) -> records.Prompt:
  """Shapes of so many prompts, with patches."""
  number = jax.ShapeDtypeStruct((rows, tokens), jnp.int32)
  return records.Prompt(
    tokens=number,
    kind=number,
    positions=jax.ShapeDtypeStruct((rows, tokens, model.position_axes), jnp.int32),
    next_position=jax.ShapeDtypeStruct((rows,), jnp.int32),
    media_index=number,
    vision=model.vision_shapes.abstract_vision(rows, frames, patches),
  )


def replies(step_shapes: StepShapes) -> records.Rollout:
  """Shapes of what is sampled, without a suffix."""
  shape = (step_shapes.prompts, step_shapes.group, step_shapes.time)
  number = jax.ShapeDtypeStruct(shape, jnp.int32)
  log_probs = jax.ShapeDtypeStruct(shape, jnp.float32)
  return records.Rollout(tokens=number, log_probs=log_probs, kind=number, turn=number)


def _check_bucket(size: int, what: str, buckets: Sequence[int], field: str) -> None:
  if size > max(buckets):
    raise errors.InputError(
      f"config.model.{field}={tuple(buckets)}: a clip of this config has {size} {what}; add a bucket"
    )
