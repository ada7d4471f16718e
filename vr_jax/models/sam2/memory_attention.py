"""A frame's features look at the memories and pointers of earlier frames.

Source: SAM 2, arXiv 2408.00714, section 4; rotary positions of images, arXiv 2403.13298.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from vr_jax.models.sam2 import config as config_lib
from vr_jax.models.sam2 import layers

EPSILON = 1e-5
THETA = 10000.0


class Bank(NamedTuple):
  """Memories and pointers that a frame may attend to, by slot.

  positions: of the coarse features; slots: any number, those of pointers another.
  """

  memories: Float[Array, "objects slots positions memory_width"]
  pointers: Float[Array, "objects pointer_slots width"]


class Choice(NamedTuple):
  """Which slots of a bank a frame attends to.

  slot, valid: of memories. age: index of the memory's learned position in time.
  pointer_slot, pointer_valid: of pointers. pointer_age: frames ago, over the most that count.
  """

  slot: Int[Array | np.ndarray, "objects memories"]
  valid: Bool[Array | np.ndarray, "objects memories"]
  age: Int[Array | np.ndarray, "objects memories"]
  pointer_slot: Int[Array | np.ndarray, "objects pointers"]
  pointer_valid: Bool[Array | np.ndarray, "objects pointers"]
  pointer_age: Float[Array | np.ndarray, "objects pointers"]


class MemoryKeys(NamedTuple):
  """What a frame attends to: memories, position by position, then pieces of pointers.

  values, places: features and where they are in space and time.
  """

  values: Float[Array, "objects keys memory_width"]
  places: Float[Array, "objects keys memory_width"]
  valid: Bool[Array, "objects keys"]


def gather(
  weights: layers.Weights, config: config_lib.Sam2Config, bank: Bank, choice: Choice
) -> MemoryKeys:
  """Collects the chosen memories and pointers with their positions in space and time."""
  take = jax.vmap(lambda stored, slot: stored[slot])
  dtype = weights["no_memory_embedding"].dtype
  memories = take(bank.memories, choice.slot).astype(dtype)
  objects, _, positions, width = memories.shape
  space = jnp.asarray(layers.sine_positions(config.side, width))
  time = weights["memory_temporal_positional_encoding"][:, 0, 0]
  places = space + time[choice.age][:, :, None]
  pointers = take(bank.pointers, choice.pointer_slot).astype(dtype)
  pieces = config.width // width
  times = jnp.repeat(
    _pointer_times(weights, config, jnp.asarray(choice.pointer_age)), pieces, axis=1
  )

  def flat(x: Array) -> Array:
    return x.reshape(objects, -1, width)

  return MemoryKeys(
    values=jnp.concatenate([flat(memories), flat(pointers)], axis=1),
    places=jnp.concatenate([flat(places), times], axis=1).astype(dtype),
    valid=jnp.concatenate(
      [
        jnp.repeat(choice.valid, positions, axis=1),
        jnp.repeat(choice.pointer_valid, pieces, axis=1),
      ],
      axis=1,
    ),
  )


def _pointer_times(
  weights: layers.Weights, config: config_lib.Sam2Config, age: Float[Array, "objects pointers"]
) -> Float[Array, "objects pointers memory_width"]:
  """Positions in time of pointers; none in SAM2.0."""
  if not config.pointer_positions:
    return jnp.zeros((*age.shape, config.memory_width))
  half = config.width // 2
  frequency = 10000.0 ** (2 * (np.arange(half) // 2) / half)
  angles = age[..., None] / jnp.asarray(frequency, jnp.float32)
  waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
  return layers.linear(weights / "temporal_positional_encoding_projection_layer", waves)


def rotary(config: config_lib.Sam2Config) -> Float[np.ndarray, "2 positions half"]:
  """Cosines and sines by which each pair of features turns: half of them by column, half by row."""
  quarter = config.width // 4
  frequency = 1.0 / THETA ** (np.arange(quarter, dtype=np.float32) / quarter)
  row, column = np.divmod(np.arange(config.side**2), config.side)
  angles = np.concatenate([column[:, None] * frequency, row[:, None] * frequency], axis=1)
  return np.stack([np.cos(angles), np.sin(angles)]).astype(np.float32)


def _rotate(
  x: Float[Array, "batch positions features"], turn: Float[Array, "2 positions half"]
) -> Float[Array, "batch positions features"]:
  """Turns features i and i + half, in float32; the weights put the file's pairs there."""
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  cos, sin = turn
  turned = (first * cos - second * sin, second * cos + first * sin)
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def _paired(weights: layers.Weights, x: Float[Array, "..."]) -> Float[Array, "..."]:
  """A projection whose even features come first, then the odd ones.

  The file rotates features 2i and 2i + 1. Logits do not depend on the order of features, and whole
  halves are faster to turn.
  """
  order = np.r_[0 : weights["bias"].shape[0] : 2, 1 : weights["bias"].shape[0] : 2]
  split = {"weight": weights["weight"][:, order], "bias": weights["bias"][order]}
  return layers.linear(layers.Weights(split), x)


def attend(
  weights: layers.Weights,
  config: config_lib.Sam2Config,
  coarse: Float[Array, "videos positions width"],
  keys: MemoryKeys,
  memories: int,
) -> Float[Array, "objects positions width"]:
  """Features of each object's frame that know its memories.

  coarse: features of each video's frame. Its objects are in a row in `keys`.
  memories: how many the keys start with.
  """
  part, turn = weights / "memory_attention", jnp.asarray(rotary(config))
  space = jnp.asarray(layers.sine_positions(config.side, config.width), coarse.dtype)
  x = coarse + 0.1 * space
  for layer in range(config.attention_layers):
    block = part / "layers" / layer
    x = x + _attend_self(block / "self_attn", _norm(block, 1, x), turn)
    # Up to here all objects of a video share the first layer.
    x = x if layer else jnp.repeat(x, len(keys.valid) // len(x), axis=0)
    x = x + _attend_memories(block / "cross_attn_image", _norm(block, 2, x), keys, memories, turn)
    hidden = jax.nn.relu(layers.linear(block / "linear1", _norm(block, 3, x)))
    x = x + layers.linear(block / "linear2", hidden)
  return layers.layer_norm(part / "layer_norm", x, EPSILON)


def _norm(block: layers.Weights, number: int, x: Float[Array, "..."]) -> Float[Array, "..."]:
  return layers.layer_norm(block / f"layer_norm{number}", x, EPSILON)


def _attend_self(
  weights: layers.Weights,
  x: Float[Array, "batch positions width"],
  turn: Float[Array, "2 positions half"],
) -> Float[Array, "batch positions width"]:
  query = _rotate(_paired(weights / "q_proj", x), turn)
  key = _rotate(_paired(weights / "k_proj", x), turn)
  value = layers.linear(weights / "v_proj", x)
  mixed = layers.attend(query[:, :, None], key[:, :, None], value[:, :, None])
  return layers.linear(weights / "o_proj", mixed[:, :, 0])


def _attend_memories(
  weights: layers.Weights,
  x: Float[Array, "objects positions width"],
  keys: MemoryKeys,
  memories: int,
  turn: Float[Array, "2 positions half"],
) -> Float[Array, "objects positions width"]:
  """Attention to memories, which are turned by their place, and to pointers, which have none."""
  query = _rotate(_paired(weights / "q_proj", x), turn)
  key = _paired(weights / "k_proj", keys.values + keys.places)
  objects, positions, width = query.shape
  count = memories * positions
  images = key[:, :count].reshape(-1, positions, width)
  turned = _rotate(images, turn).reshape(objects, count, width)
  key = jnp.concatenate([turned, key[:, count:]], axis=1)
  # The values' matrix comes after the mixture, which is linear: memories are narrower than values.
  mixed = layers.attend(query[:, :, None], key[:, :, None], keys.values[:, :, None], keys.valid)
  value = layers.linear(weights / "v_proj", mixed[:, :, 0])
  return layers.linear(weights / "o_proj", value)
