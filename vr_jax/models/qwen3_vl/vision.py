"""The vision tower of Qwen3-VL: patches of pixels to features of media tokens.

Inputs are padded, as [prompts, frames, patches, patch_dim], where a frame is a temporal patch. No
layer attends across frames: each patch attends to all of its frame that are not padding.

Source: Qwen3-VL, arXiv 2511.21631, section 2; Hugging Face transformers for details that the paper
leaves out.
"""

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vr_jax.models import layout as layout_lib
from vr_jax.models.common import attention, frame_chunks, layers, rematerialisation
from vr_jax.models.qwen3_vl import config as config_lib
from vr_jax.models.qwen3_vl import pixels, vision_inputs

EPSILON = 1e-6
AXES = ("prompts", "frames", None, None)  # of activations


class Qwen3Blocks(nnx.Module):
  """Weights of all transformer blocks, stacked along a leading layers axis."""

  def __init__(self, config: config_lib.Qwen3VisionConfig, *, scale: float, rngs: nnx.Rngs):
    depth, embed, mlp = config.depth, config.hidden_size, config.intermediate_size
    heads, head_dim = config.num_heads, config.head_dim

    def weight(axes, *shape):
      return layers.parameter(rngs, ("layers", *axes), (depth, *shape), scale=scale)

    def constant(axes, *shape, value=0.0):
      return layers.constant(("layers", *axes), (depth, *shape), value=value)

    self.norm1 = constant(("vision_embed",), embed, value=1.0)
    self.norm1_bias = constant(("vision_embed",), embed)
    self.qkv = weight(("vision_embed", None, "vision_heads", None), embed, 3, heads, head_dim)
    self.qkv_bias = constant((None, "vision_heads", None), 3, heads, head_dim)
    self.out = weight(("vision_heads", None, "vision_embed"), heads, head_dim, embed)
    self.out_bias = constant(("vision_embed",), embed)
    self.norm2 = constant(("vision_embed",), embed, value=1.0)
    self.norm2_bias = constant(("vision_embed",), embed)
    self.up = weight(("vision_embed", "vision_mlp"), embed, mlp)
    self.up_bias = constant(("vision_mlp",), mlp)
    self.down = weight(("vision_mlp", "vision_embed"), mlp, embed)
    self.down_bias = constant(("vision_embed",), embed)


class Qwen3Merger(nnx.Module):
  """Weights that merge each square of patches into one media token; with `levels`, stacked ones.

  normalised: components of a patch, or of the whole square, over which the norm runs.
  """

  def __init__(
    self,
    config: config_lib.Qwen3VisionConfig,
    *,
    normalised: int,
    scale: float,
    rngs: nnx.Rngs,
    levels: int | None = None,
  ):
    square, out = config.hidden_size * config.merge_unit, config.out_hidden_size
    stacked = ((), ()) if levels is None else (("layers",), (levels,))

    def weight(axes, *shape):
      return layers.parameter(rngs, (*stacked[0], *axes), (*stacked[1], *shape), scale=scale)

    def constant(axis, size, value=0.0):
      return layers.constant((*stacked[0], axis), (*stacked[1], size), value=value)

    self.norm = constant("vision_embed", normalised, value=1.0)
    self.norm_bias = constant("vision_embed", normalised)
    self.hidden = weight(("vision_embed", "vision_mlp"), square, square)
    self.hidden_bias = constant("vision_mlp", square)
    self.out = weight(("vision_mlp", "embed"), square, out)
    self.out_bias = constant("embed", out)


class Qwen3VisionTower(nnx.Module):
  """Patch embedding with a learned table of positions, transformer blocks, mergers."""

  def __init__(
    self, config: config_lib.Qwen3VLConfig, layout: layout_lib.Layout, *, rngs: nnx.Rngs
  ):
    self.config, self.layout = config, layout
    self.attention = attention.make(config, layout)
    vision, scale = config.vision, config.initializer_range
    embed = vision.hidden_size
    shape = (vision.patch_dim, embed)
    self.patch = layers.parameter(rngs, ("patch", "vision_embed"), shape, scale=scale)
    self.patch_bias = layers.constant(("vision_embed",), (embed,), value=0.0)
    table = (vision.num_position_embeddings, embed)
    self.positions = layers.parameter(rngs, (None, "vision_embed"), table, scale=scale)
    self.blocks = Qwen3Blocks(vision, scale=scale, rngs=rngs)
    self.merger = Qwen3Merger(vision, normalised=embed, scale=scale, rngs=rngs)
    square = embed * vision.merge_unit
    self.deepstack = Qwen3Merger(
      vision, normalised=square, levels=vision.levels, scale=scale, rngs=rngs
    )

  def __call__(self, vision: vision_inputs.Qwen3VisionInputs) -> vision_inputs.VisionFeatures:
    """Features of all media tokens in the model's dtype, ordered by frames, then patches.

    Those of padding mean nothing.

    Patches of a frame are in merge order: each `merge_unit` consecutive ones become one token.
    """
    prompts, frames, patches, _ = vision.patches.shape
    config, dtype = self.config.vision, jnp.dtype(self.config.dtype)
    tokens, width = frames * (patches // config.merge_unit), config.out_hidden_size
    if frames == 0:
      return vision_inputs.VisionFeatures(
        embedding=jnp.zeros((prompts, 0, width), dtype),
        levels=jnp.zeros((prompts, 0, config.levels, width), dtype),
      )
    features = frame_chunks.map_frames(
      self._read_frames, vision, self.layout, patches=self.config.vision_chunk
    )
    return jax.tree.map(lambda x: x.reshape(prompts, tokens, *x.shape[3:]), features)

  def _read_frames(self, vision: vision_inputs.Qwen3VisionInputs) -> vision_inputs.VisionFeatures:
    """Features [prompts, frames, tokens, …] of the media tokens of each frame."""
    dtype = jnp.dtype(self.config.dtype)
    x = pixels.normalise(self.layout.place(jnp.asarray(vision.patches), AXES), dtype)
    x = layers.project(x, self.patch[...], merge=self.layout.merges)
    x = layers.add_bias(x, self.patch_bias[...])
    x = x + self._positions(jnp.asarray(vision.table_rows), jnp.asarray(vision.table_weights))
    x, taken = self._run_blocks(x, jnp.asarray(vision.rows), jnp.asarray(vision.segment))
    embedding = self._merge(x, layers.arrays(self.merger))
    levels = layers.arrays(self.deepstack)
    merged = [
      self._merge(one, {name: weight[i] for name, weight in levels.items()})
      for i, one in enumerate(taken)
    ]
    return vision_inputs.VisionFeatures(embedding=embedding, levels=jnp.stack(merged, axis=3))

  def _positions(
    self,
    rows: Int[Array, "prompts frames patches 4"],
    weights: Float[Array, "prompts frames patches 4"],
  ) -> Float[Array, "prompts frames patches vision_embed"]:
    """The learned positions of patches, interpolated in float32, in the model's dtype."""
    # Whole on every device: it is small, and patches need rows from anywhere in it.
    table = self.layout.place(self.positions[...], (None, None))
    # One row after the other: all four at once would take four times the memory.
    corners = (table[rows[..., i]] * weights[..., i, None] for i in range(4))
    return self.layout.place(sum(corners, start=jnp.zeros(())), AXES).astype(self.config.dtype)

  def _run_blocks(
    self,
    x: Float[Array, "prompts frames patches vision_embed"],
    rows: Int[Array, "prompts frames patches 2"],
    segment: Int[Array, "prompts frames patches"],
  ) -> tuple[
    Float[Array, "prompts frames patches vision_embed"],
    list[Float[Array, "prompts frames patches vision_embed"]],
  ]:
    """Runs all blocks; returns the last output, and those after `deepstack_visual_indexes`."""
    config = self.config.vision
    cos, sin = rotary_angles(rows, config)

    def block(x, weights):
      normed = _layer_norm(x, weights, "norm1")
      x = x + self._attend(normed, weights, cos, sin, segment)
      normed = _layer_norm(x, weights, "norm2")
      return self.layout.place(x + self._feed_forward(normed, weights), AXES), None

    weights = layers.stack(self.blocks, platform=self.layout.platform)
    # A scan from each block whose output is taken to the next, so that no other output is kept.
    ends = [*(index + 1 for index in config.deepstack_visual_indexes), config.depth]
    taken, start = [], 0
    for end in ends:
      if end > start:
        part = {name: weight[start:end] for name, weight in weights.items()}
        x, _ = rematerialisation.scan(block, x, part, policy=self.config.remat)
      taken.append(x)
      start = end
    return x, taken[:-1]

  def _attend(
    self,
    x: Float[Array, "prompts frames patches vision_embed"],
    weights: dict[str, Array],
    cos: Float[Array, "prompts frames patches half"],
    sin: Float[Array, "prompts frames patches half"],
    segment: Int[Array, "prompts frames patches"],
  ) -> Float[Array, "prompts frames patches vision_embed"]:
    """Attention of one block."""
    merge = self.layout.merges
    qkv = layers.project_by_name(x, weights, "qkv", merge=merge)
    query, key, value = (qkv[..., i, :, :] for i in range(3))
    query, key = layers.rotate(query, cos, sin), layers.rotate(key, cos, sin)
    mixed = self.attention.frames(query, key, value, segment)
    return layers.project_by_name(mixed, weights, "out", contract=2, merge=merge)

  def _feed_forward(
    self, x: Float[Array, "prompts frames patches vision_embed"], weights: dict[str, Array]
  ) -> Float[Array, "prompts frames patches vision_embed"]:
    """The MLP of one block."""
    merge = self.layout.merges
    up = jax.nn.gelu(layers.project_by_name(x, weights, "up", merge=merge), approximate=True)
    return layers.project_by_name(up, weights, "down", merge=merge)

  def _merge(
    self, x: Float[Array, "prompts frames patches vision_embed"], weights: dict[str, Array]
  ) -> Float[Array, "prompts frames tokens embed"]:
    """Merges each `merge_unit` consecutive patches into one token."""
    *leading, patches, embed = x.shape
    unit, merge = self.config.vision.merge_unit, self.layout.merges
    squares = (*leading, patches // unit, unit * embed)
    if weights["norm"].shape[0] == embed:
      x = _layer_norm(x, weights, "norm").reshape(squares)
    else:
      x = _layer_norm(x.reshape(squares), weights, "norm")
    hidden = layers.project_by_name(x, weights, "hidden", merge=merge)
    hidden = jax.nn.gelu(hidden, approximate=False)
    return layers.project_by_name(hidden, weights, "out", merge=merge)


def _layer_norm(
  x: Float[Array, "... embed"], weights: dict[str, Array], name: str
) -> Float[Array, "... embed"]:
  scale, bias = weights[name], weights[f"{name}_bias"]
  return layers.layer_norm(x, scale, bias, epsilon=EPSILON)


def rotary_angles(
  rows: Int[Array, "*batch 2"], config: config_lib.Qwen3VisionConfig
) -> tuple[Float[Array, "*batch half"], Float[Array, "*batch half"]]:
  """Cosines and sines of the rotary embedding.

  rows: row and column of each patch. The first half of the angles is from the row, the second from
  the column; both have the same frequencies.
  """
  quarter = config.head_dim // 4
  frequency = 1.0 / config.rope_theta ** (jnp.arange(quarter, dtype=jnp.float32) / quarter)
  angles = rows[..., None].astype(jnp.float32) * frequency
  angles = angles.reshape(*rows.shape[:-1], 2 * quarter)
  return layers.cosines_and_sines(angles)
