"""Tracking on the device: one frame with prompts, and a scan over frames that follow.

Axes: videos (batch entries with frames of their own), and objects, where all objects of all videos
are in a row, as many for each video.
"""

import functools
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Int, UInt8

from vr_jax.models.sam2 import config as config_lib
from vr_jax.models.sam2 import (
  image_encoder,
  layers,
  mask_decoder,
  memory,
  memory_attention,
  memory_encoder,
  parameters,
  prompt_encoder,
)

Params = dict[str, Array]

PATCHES_AT_ONCE = 65536  # of the frames that are encoded together: one frame of 1024 x 1024 pixels


class Remembered(NamedTuple):
  """What is kept of a frame.

  logits, score: of the chosen mask. memory, pointer: what later frames attend to.
  """

  logits: Float[Array, "objects mask_side mask_side"]
  score: Float[Array, "objects"]
  memory: Float[Array, "objects positions memory_width"]
  pointer: Float[Array, "objects width"]


class Prompted(NamedTuple):
  """`Remembered` of the frames that the user prompted, an axis of them after the objects."""

  logits: Float[Array, "objects prompted mask_side mask_side"]
  score: Float[Array, "objects prompted"]
  memory: Float[Array, "objects prompted positions memory_width"]
  pointer: Float[Array, "objects prompted width"]


class Constants(NamedTuple):
  """What is the same for all frames, and computed once a chunk."""

  patches: Float[Array, "1 patch_rows patch_columns _"]
  positions: Float[Array, "positions width"]


def make_constants(params: Params, config: config_lib.Sam2Config) -> Constants:
  """Computes the positions that all frames share."""
  weights = parameters.Weights(params)
  return Constants(
    patches=image_encoder.positions(weights / "vision_encoder" / "backbone", config),
    positions=prompt_encoder.image_positions(weights, config),
  )


def empty_ring(
  config: config_lib.Sam2Config, objects: int, dtype: DTypeLike
) -> memory_attention.Bank:
  """A ring without memories."""
  slots, pointer_slots = memory.ring_sizes(config)
  return memory_attention.Bank(
    memories=jnp.zeros((objects, slots, config.side**2, config.memory_width), jnp.bfloat16),
    pointers=jnp.zeros((objects, pointer_slots, config.width), dtype),
  )


@functools.partial(jax.jit, static_argnames="config")
def prompt_with_points(
  params: Params,
  config: config_lib.Sam2Config,
  pixels: UInt8[Array, "1 image_size image_size 3"],
  points: Float[Array, "objects points 2"],
  labels: Int[Array, "objects points"],
) -> Remembered:
  """Finds objects on a frame by points and boxes; no memories are used.

  points: pixels of the resized frame. labels: of prompts.py, padded with PADDING.
  """
  weights = parameters.Weights(params)
  constants = make_constants(params, config)
  features = image_encoder.encode(
    weights, config, image_encoder.normalise(pixels), constants.patches
  )
  prompt = prompt_encoder.embed_points(weights, config, points, labels)
  count = jnp.sum(prompt.valid, axis=1) - 1
  objects = len(points)
  coarse = features.coarse.reshape(1, -1, config.width) + weights["no_memory_embedding"]
  coarse = jnp.repeat(coarse, objects, axis=0)
  decoded = mask_decoder.decode(weights, config, coarse, features, prompt, constants.positions)
  chosen = mask_decoder.choose(weights, decoded, count > 1)
  return remember(params, config, features, chosen, binary=True)


@functools.partial(jax.jit, static_argnames="config")
def prompt_with_masks(
  params: Params,
  config: config_lib.Sam2Config,
  pixels: UInt8[Array, "1 image_size image_size 3"],
  masks: Bool[Array, "objects height width"],
) -> Remembered:
  """Takes masks of objects on a frame as they are; the decoder gives their pointers."""
  weights = parameters.Weights(params)
  constants = make_constants(params, config)
  features = image_encoder.encode(
    weights, config, image_encoder.normalise(pixels), constants.patches
  )
  size = config.image_size
  wide = layers.resize(masks.astype(jnp.float32), size, size, smooth=True)
  wide = (wide >= 0.5).astype(jnp.float32)
  small = layers.convolution(weights / "mask_downsample", wide[..., None], stride=4, padding=0)
  prompt = prompt_encoder.embed_masks(weights, config, small[..., 0])
  coarse = jnp.repeat(features.coarse.reshape(1, -1, config.width), len(masks), axis=0)
  decoded = mask_decoder.decode(weights, config, coarse, features, prompt, constants.positions)
  pointer = mask_decoder.choose(weights, decoded, None).pointer
  there = wide.any(axis=(1, 2))
  nothing = weights["no_object_pointer"].astype(pointer.dtype)
  logits = wide * memory_encoder.SCALE + memory_encoder.BIAS
  chosen = mask_decoder.Chosen(
    logits=logits,
    pointer=jnp.where(there[:, None], pointer, nothing),
    score=jnp.where(there, memory_encoder.SCALE, 0) + memory_encoder.BIAS,
  )
  found = remember(params, config, features, chosen, binary=True)
  small_side = config.mask_side
  return found._replace(logits=layers.resize(logits, small_side, small_side, smooth=True))


def remember(
  params: Params,
  config: config_lib.Sam2Config,
  features: image_encoder.Features,
  chosen: mask_decoder.Chosen,
  *,
  binary: bool,
) -> Remembered:
  """Encodes the memory of a frame's chosen masks; bfloat16, as the reference stores it."""
  masks = memory_encoder.mask_for_memory(chosen.logits, config, binary=binary)
  encoded = memory_encoder.encode(
    parameters.Weights(params), config, features.coarse, masks, chosen.score > 0
  )
  return Remembered(
    logits=chosen.logits,
    score=chosen.score,
    memory=encoded.astype(jnp.bfloat16),
    pointer=chosen.pointer,
  )


def look(
  params: Params,
  config: config_lib.Sam2Config,
  constants: Constants,
  features: image_encoder.Features,
  bank: memory_attention.Bank,
  choice: memory_attention.Choice,
) -> mask_decoder.Decoded:
  """Decodes the masks of tracked objects on a frame, given their memories."""
  weights = parameters.Weights(params)
  keys = memory_attention.gather(weights, config, bank, choice)
  coarse = features.coarse.reshape(len(features.coarse), -1, config.width)
  coarse = memory_attention.attend(weights, config, coarse, keys, choice.slot.shape[1])
  prompt = prompt_encoder.embed_nothing(weights, config, len(coarse))
  return mask_decoder.decode(weights, config, coarse, features, prompt, constants.positions)


def join_banks(prompted: Prompted, ring: memory_attention.Bank) -> memory_attention.Bank:
  """Slots of prompted frames, then those of the ring."""
  return memory_attention.Bank(
    memories=jnp.concatenate([prompted.memory, ring.memories], axis=1),
    pointers=jnp.concatenate([prompted.pointer, ring.pointers], axis=1),
  )


def write(
  ring: memory_attention.Bank, found: Remembered, step: memory.MemoryPlan
) -> memory_attention.Bank:
  """The ring with a frame's memory and pointer in their slots."""
  place = jax.vmap(lambda stored, slot, new: stored.at[slot].set(new))
  return memory_attention.Bank(
    memories=place(ring.memories, step.write, found.memory),
    pointers=place(ring.pointers, step.pointer_write, found.pointer),
  )


def choice_of(step: memory.MemoryPlan) -> memory_attention.Choice:
  """What a step of a plan attends to."""
  return memory_attention.Choice(*step[: len(memory_attention.Choice._fields)])


@functools.partial(jax.jit, static_argnames="config", donate_argnames="ring")
def follow(
  params: Params,
  config: config_lib.Sam2Config,
  pixels: UInt8[Array, "steps videos image_size image_size 3"],
  plan: memory.MemoryPlan,
  prompted: Prompted,
  ring: memory_attention.Bank,
) -> tuple[
  memory_attention.Bank,
  Float[Array, "steps objects mask_side mask_side"],
  Float[Array, "steps objects"],
]:
  """Tracks objects through some frames; returns the ring after them, mask logits and scores."""
  weights = parameters.Weights(params)
  constants = make_constants(params, config)

  def one(ring, inputs):
    features, step = inputs
    bank = join_banks(prompted, ring)
    decoded = look(params, config, constants, features, bank, choice_of(step))
    chosen = mask_decoder.choose(weights, decoded, None)
    found = remember(params, config, features, chosen, binary=False)
    ring = write(ring, found, step)
    given = step.prompted >= 0
    index = jnp.maximum(step.prompted, 0)
    known = jax.vmap(lambda stored, at: stored[at])
    logits = jnp.where(given[:, None, None], known(prompted.logits, index), found.logits)
    return ring, (logits, jnp.where(given, known(prompted.score, index), found.score))

  features = encode_frames(weights, config, pixels, constants)
  ring, (logits, scores) = lax.scan(one, ring, (features, plan))
  return ring, logits, scores


def encode_frames(
  weights: parameters.Weights,
  config: config_lib.Sam2Config,
  pixels: UInt8[Array, "steps videos image_size image_size 3"],
  constants: Constants,
) -> image_encoder.Features:
  """Features of the frames of a chunk, with the axes [steps, videos, ...].

  Small frames are encoded many at once, as matrix products of few rows are slow; of large ones
  each fills a device.
  """
  steps, videos = pixels.shape[:2]
  most = max(1, PATCHES_AT_ONCE // (config.image_size // 4) ** 2)
  at_once = max(n for n in range(1, steps * videos + 1) if steps * videos % n == 0 and n <= most)

  def encode(pixels: Array) -> image_encoder.Features:
    return image_encoder.encode(weights, config, image_encoder.normalise(pixels), constants.patches)

  features = lax.map(encode, pixels.reshape(-1, at_once, *pixels.shape[2:]))
  return jax.tree.map(lambda x: x.reshape(steps, videos, *x.shape[2:]), features)


@functools.partial(jax.jit, static_argnames="side")
def resize_frames(
  frames: UInt8[Array, "frames height width 3"], side: int
) -> UInt8[Array, "frames side side 3"]:
  """Resizes frames to a square, bilinearly and antialiased, rounded after columns and rows."""
  x = jnp.moveaxis(frames, 3, 1)
  height = x.shape[2]
  x = jnp.floor(layers.resize(x, height, side, smooth=True) + 0.5)
  x = jnp.floor(layers.resize(x, side, side, smooth=True) + 0.5)
  return jnp.moveaxis(jnp.clip(x, 0, 255).astype(jnp.uint8), 1, 3)


@functools.partial(jax.jit, static_argnames=("height", "width"))
def masks_at(
  logits: Float[Array, "steps objects mask_side mask_side"], height: int, width: int
) -> Bool[Array, "objects steps height width"]:
  """Masks at the size of the video."""
  return (layers.resize(logits, height, width) > 0).swapaxes(0, 1)
