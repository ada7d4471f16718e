"""The vision tower of Qwen2.5-VL: patches of pixels to media tokens.

Inputs are padded, with one frame (temporal patch) a row: [prompts, frames, patches, patch_dim]. No
layer attends across frames, so a frame is one batch entry. Segments, one number a patch, define
which patches of a frame attend to each other: those of its window, or in layers with full attention
all of the frame. Where that saves time, attention within windows is computed in rows that hold a
window each; all else keeps the order of patches, which is not that of the reference.

Source: Qwen2.5-VL, arXiv 2502.13923, section 2.1.1; Hugging Face transformers for details that the
paper leaves out.
"""

import functools
import itertools
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vr_jax.models import layout as layout_lib
from vr_jax.models.common import (
  attention,
  attention_windows,
  frame_chunks,
  layers,
  rematerialisation,
)
from vr_jax.models.qwen2_5_vl import config as config_lib
from vr_jax.models.qwen2_5_vl import pixels, vision_inputs, windows

EPSILON = 1e-6
AXES = ("prompts", "frames", None, None)  # of activations


class Places(NamedTuple):
  """Where patches are, as attention of a layer has them: in order, or in rows of windows.

  cos, sin: of rotary angles, [prompts, frames, (rows,) patches, half].
  segment: [prompts, frames, (rows,) patches]; patches with the same one attend to each other.
  rows: None: in order.
  """

  cos: Array
  sin: Array
  segment: Array
  rows: attention_windows.WindowRows | None = None


class Blocks(nnx.Module):
  """Weights of all transformer blocks, stacked along a leading layers axis."""

  def __init__(self, config: config_lib.VisionConfig, *, scale: float, rngs: nnx.Rngs):
    depth, embed, mlp = config.depth, config.hidden_size, config.intermediate_size
    heads, head_dim = config.num_heads, config.head_dim

    def weight(axes, *shape):
      return layers.parameter(rngs, ("layers", *axes), (depth, *shape), scale=scale)

    def constant(axes, *shape, value=0.0):
      return layers.constant(("layers", *axes), (depth, *shape), value=value)

    self.norm1 = constant(("vision_embed",), embed, value=1.0)
    self.qkv = weight(("vision_embed", None, "vision_heads", None), embed, 3, heads, head_dim)
    self.qkv_bias = constant((None, "vision_heads", None), 3, heads, head_dim)
    self.out = weight(("vision_heads", None, "vision_embed"), heads, head_dim, embed)
    self.out_bias = constant(("vision_embed",), embed)
    self.norm2 = constant(("vision_embed",), embed, value=1.0)
    self.gate = weight(("vision_embed", "vision_mlp"), embed, mlp)
    self.gate_bias = constant(("vision_mlp",), mlp)
    self.up = weight(("vision_embed", "vision_mlp"), embed, mlp)
    self.up_bias = constant(("vision_mlp",), mlp)
    self.down = weight(("vision_mlp", "vision_embed"), mlp, embed)
    self.down_bias = constant(("vision_embed",), embed)


class Merger(nnx.Module):
  """Merges each square of patches into one media token of the language model's width."""

  def __init__(self, config: config_lib.VisionConfig, *, scale: float, rngs: nnx.Rngs):
    embed, out = config.hidden_size, config.out_hidden_size
    square = embed * config.merge_unit
    self.norm = layers.constant(("vision_embed",), (embed,), value=1.0)
    self.hidden = layers.parameter(rngs, ("vision_embed", "vision_mlp"), (square,) * 2, scale=scale)
    self.hidden_bias = layers.constant(("vision_mlp",), (square,), value=0.0)
    self.out = layers.parameter(rngs, ("vision_mlp", "embed"), (square, out), scale=scale)
    self.out_bias = layers.constant(("embed",), (out,), value=0.0)

  def __call__(
    self, x: Float[Array, "prompts frames patches vision_embed"], *, unit: int, merge: bool
  ) -> Float[Array, "prompts frames tokens embed"]:
    """Merges each `unit` consecutive patches into one token. merge: see `layers.project`."""
    *leading, patches, _ = x.shape
    weights = layers.arrays(self)
    normed = layers.rms_norm(x, weights["norm"], epsilon=EPSILON)
    squares = normed.reshape(*leading, patches // unit, -1)
    hidden = layers.project_by_name(squares, weights, "hidden", merge=merge)
    hidden = jax.nn.gelu(hidden, approximate=False)
    return layers.project_by_name(hidden, weights, "out", merge=merge)


class VisionTower(nnx.Module):
  """Patch embedding, transformer blocks, merger."""

  def __init__(
    self, config: config_lib.Qwen2_5_VLConfig, layout: layout_lib.Layout, *, rngs: nnx.Rngs
  ):
    self.config, self.layout = config, layout
    self.attention = attention.make(config, layout)
    vision, scale = config.vision, config.initializer_range
    self.patch = layers.parameter(
      rngs, ("patch", "vision_embed"), (vision.patch_dim, vision.hidden_size), scale=scale
    )
    self.blocks = Blocks(vision, scale=scale, rngs=rngs)
    self.merger = Merger(vision, scale=scale, rngs=rngs)

  def __call__(self, vision: vision_inputs.VisionInputs) -> Float[Array, "prompts media embed"]:
    """Features of all media tokens, also for padding, ordered by frames, then patches.

    Patches of a frame are in merge order: each `merge_unit` consecutive ones become one token.
    """
    prompts, frames, patches, _ = vision.patches.shape
    config, dtype = self.config.vision, jnp.dtype(self.config.dtype)
    tokens = patches // config.merge_unit
    if frames == 0:
      return jnp.zeros((prompts, 0, config.out_hidden_size), dtype)
    media = frame_chunks.map_frames(
      self._read_frames, vision, self.layout, patches=self.config.vision_chunk
    )
    return media.reshape(prompts, frames * tokens, -1)

  def _read_frames(
    self, vision: vision_inputs.VisionInputs
  ) -> Float[Array, "prompts frames tokens embed"]:
    """Features of the media tokens of each frame."""
    config, dtype = self.config.vision, jnp.dtype(self.config.dtype)
    x = pixels.normalise(self.layout.place(jnp.asarray(vision.patches), AXES), dtype)
    x = layers.project(x, self.patch[...], merge=self.layout.merges)
    x = self._run_blocks(x, *map(jnp.asarray, (vision.rows, vision.window, vision.slot)))
    return self.merger(x, unit=config.merge_unit, merge=self.layout.merges)

  def _run_blocks(
    self,
    x: Float[Array, "prompts frames patches vision_embed"],
    rows: Int[Array, "prompts frames patches 2"],
    window: Int[Array, "prompts frames patches"],
    slot: Int[Array, "prompts frames patches"],
  ) -> Float[Array, "prompts frames patches vision_embed"]:
    config = self.config.vision
    cos, sin = rotary_angles(rows, config)
    within_frame = Places(cos, sin, jnp.minimum(window, 0))  # 0 for patches, -1 for padding
    within_window = Places(cos, sin, window)
    size = config.window_patches
    most = windows.most_rows(window.shape[2] // config.merge_unit, config.window_tokens)
    in_rows = attention_windows.make(self.attention, window, slot, rows=most, size=size)
    if in_rows is not None:
      cos, sin = in_rows.split(cos, (None,)), in_rows.split(sin, (None,))
      within_window = Places(cos, sin, in_rows.segment, in_rows)

    def block(places, x, weights):
      normed = layers.rms_norm(x, weights["norm1"], epsilon=EPSILON)
      x = x + self._attend(normed, weights, places)
      normed = layers.rms_norm(x, weights["norm2"], epsilon=EPSILON)
      return self.layout.place(
        x + layers.swiglu(normed, weights, merge=self.layout.merges), AXES
      ), None

    weights = layers.stack(self.blocks, platform=self.layout.platform)
    # A scan for each run of layers of one kind.
    is_full = (index in config.fullatt_block_indexes for index in range(config.depth))
    start = 0
    for full, run in itertools.groupby(is_full):
      end = start + len(list(run))
      part = {name: weight[start:end] for name, weight in weights.items()}
      layer = functools.partial(block, within_frame if full else within_window)
      x, _ = rematerialisation.scan(layer, x, part, policy=self.config.remat)
      start = end
    return x

  def _attend(
    self,
    x: Float[Array, "prompts frames patches vision_embed"],
    weights: dict[str, Array],
    places: Places,
  ) -> Float[Array, "prompts frames patches vision_embed"]:
    """Attention of one block."""
    merge, (cos, sin, segment, rows) = self.layout.merges, places
    qkv = layers.project_by_name(x, weights, "qkv", merge=merge)
    if rows is not None:
      qkv = rows.split(qkv, (None, "vision_heads", None))
    query, key, value = (qkv[..., i, :, :] for i in range(3))
    query, key = layers.rotate(query, cos, sin), layers.rotate(key, cos, sin)
    mixed = self.attention.frames(query, key, value, segment)
    if rows is not None:
      mixed = rows.join(mixed, ("vision_heads", None))
    return layers.project_by_name(mixed, weights, "out", contract=2, merge=merge)


def rotary_angles(
  rows: Int[Array, "*batch 2"], config: config_lib.VisionConfig
) -> tuple[Float[Array, "*batch half"], Float[Array, "*batch half"]]:
  """Cosines and sines of the rotary embedding: half of the frequencies each for row and column."""
  quarter = config.head_dim // 4
  frequency = 1.0 / config.rope_theta ** (jnp.arange(quarter, dtype=jnp.float32) / quarter)
  angles = rows[..., None].astype(jnp.float32) * frequency
  angles = angles.reshape(*rows.shape[:-1], 2 * quarter)
  return layers.cosines_and_sines(angles)
