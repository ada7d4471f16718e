"""Sizes of the arrays of one RL step, from its config: a step of full clips or full episodes.

For planning (launch/plan.py) and estimates, without data.

As in the names of buckets, a frame is a temporal patch, which takes one or more images of a clip.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from vr_jax import errors, optional_sections, records
from vr_jax.data import sampling
from vr_jax.envs import registry
from vr_jax.models import interface
from vr_jax.rollout import play
from vr_jax.train import paths

# A prompt gets room for this many tokens besides its video, if a bucket is large enough.
TEXT_TOKENS = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class LaterTurns:
  """What the turns after the first add to a step.

  turns: how many there are after the first.
  tokens: of the observation of one turn.
  frames: of the observation of one turn, in temporal patches.
  frames_in_all: of all these observations of an episode together, in temporal patches.
  patches: of one of these frames.
  forgets: whether replies see fewer turns than an episode has.
  """

  turns: int
  tokens: int
  frames: int
  frames_in_all: int
  patches: int
  forgets: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepShapes:
  """The sizes of the arrays of one step.

  prompts: of a step, over all processes.
  group: replies to one prompt.
  time: tokens of a reply; with several turns, of an episode after its opening prompt.
  prefix: tokens of a prompt.
  frames: of a prompt, in temporal patches.
  patches: of one frame of a prompt, i.e. of one temporal patch.
  microbatches: equal parts in which an update is computed.
  later: None if the config has no `turns` section.
  """

  prompts: int
  group: int
  time: int
  prefix: int
  frames: int
  patches: int
  microbatches: int
  later: LaterTurns | None = None


def make_step_shapes(
  config: ml_collections.ConfigDict,
  model: interface.ModelConfig,
  mesh: jax.sharding.Mesh | None = None,
) -> StepShapes:
  """The sizes of a step of full clips, or of full episodes where the config has several turns.

  One turn: the smallest buckets with room for a clip whose frames have the largest size allowed;
  the prompt's has room for `TEXT_TOKENS` besides the video, or else is the largest.
  Several turns: the largest buckets, but a turn's frames are an even share of those of all later
  turns.

  mesh: None: one device.
  Raises InputError if there is one turn and the buckets are too small for a clip.
  """
  shapes = (
    _episode_shapes(config)
    if optional_sections.takes_turns(config)
    else _clip_shapes(config, model)
  )
  if mesh is None:
    return shapes
  return dataclasses.replace(shapes, frames=shared_frames(shapes.frames, mesh))


def shared_frames(frames: int, mesh: jax.sharding.Mesh) -> int:
  """A size for the temporal patches of a prompt that the devices along `sequence` share evenly.

  Of any other size, each of them would encode all. Fewer than devices stay as they are.
  """
  ways = mesh.shape["sequence"]
  return frames if frames < ways else -(-frames // ways) * ways


def frame_pixels(section: ml_collections.ConfigDict, images: int) -> int:
  """The most pixels of a frame of a video of `images` frames, by a recipe's section `model`."""
  return section.max_video_pixels // images or section.max_pixels


def _clip_shapes(config: ml_collections.ConfigDict, model: interface.ModelConfig) -> StepShapes:
  section, vision = config.model, model.vision_shapes
  rule = paths.sampling_rule(config.data)
  images = rule.max_frames if isinstance(rule, sampling.RateRule) else rule.frames
  frames = vision.count_frames(images)
  shown = frames * vision.images_per_frame or images
  patches = vision.most_patches(images, frame_pixels(section, shown))
  media = frames * vision.media_tokens(patches)
  _check_bucket(frames, "temporal patches", section.frame_buckets, "frame_buckets")
  _check_bucket(patches, "patches a frame", section.patch_buckets, "patch_buckets")
  # A question has at least one token.
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


def _episode_shapes(config: ml_collections.ConfigDict) -> StepShapes:
  environment = registry.make_environment(config)
  section, turns, later = config.model, config.turns, environment.turns - 1
  frames = max(turns.frame_buckets)
  share = -(-frames // max(later, 1))
  history = environment.history_turns  # None: replies see all turns
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
      patches=max(play.later_patch_buckets(config)),
      forgets=history is not None and history < later,
    ),
  )


def abstract_array(shape: Sequence[int], dtype: Any) -> Any:
  """A `jax.ShapeDtypeStruct`, typed `Any` because it takes the place of an array in a record."""
  return jax.ShapeDtypeStruct(tuple(shape), dtype)


def prompt(
  rows: int, tokens: int, frames: int, patches: int, model: interface.ModelConfig
) -> records.Prompt:
  """Shapes of a batch of `rows` prompts, with the vision tower's input."""
  number = abstract_array((rows, tokens), jnp.int32)
  return records.Prompt(
    tokens=number,
    kind=number,
    positions=abstract_array((rows, tokens, model.position_axes), jnp.int32),
    next_position=abstract_array((rows,), jnp.int32),
    media_index=number,
    vision=model.vision_shapes.abstract_vision(rows, frames, patches),
  )


def replies(step_shapes: StepShapes) -> records.Rollout:
  """Shapes of sampled replies, without episode inputs."""
  shape = (step_shapes.prompts, step_shapes.group, step_shapes.time)
  number = abstract_array(shape, jnp.int32)
  log_probs = abstract_array(shape, jnp.float32)
  return records.Rollout(tokens=number, log_probs=log_probs, kind=number, turn=number)


def _check_bucket(size: int, what: str, buckets: Sequence[int], field: str) -> None:
  if size > max(buckets):
    raise errors.InputError(
      f"config.model.{field}={tuple(buckets)}: a clip of this config has {size} {what}; "
      "add a bucket"
    )
