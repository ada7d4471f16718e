"""The vision tower of Qwen2.5-VL: patches of pixels to media tokens.

Media come padded, one frame (temporal patch) a row: [prompts, frames, patches, patch_dim]. No layer looks beyond its
frame, so a frame is one batch entry, and which patches of a frame see each other is a mask. Attention does not care in
which order patches stand, so the patches of a window need not be brought together as the reference does.

Source: Qwen2.5-VL, arXiv 2502.13923, section 2.1.1; Hugging Face transformers for what the paper leaves open.
"""

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from vr_jax import records
from vr_jax.models.qwen2_5_vl import config as config_lib
from vr_jax.models.qwen2_5_vl import layers

EPSILON = 1e-6


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
  """Turns each square of patches into one media token of the language model's width."""

  def __init__(self, config: config_lib.VisionConfig, *, scale: float, rngs: nnx.Rngs):
    embed, out = config.hidden_size, config.out_hidden_size
    square = embed * config.merge_unit
    self.norm = layers.constant(("vision_embed",), (embed,), value=1.0)
    self.hidden = layers.parameter(rngs, ("vision_embed", "vision_mlp"), (square,) * 2, scale=scale)
    self.hidden_bias = layers.constant(("vision_mlp",), (square,), value=0.0)
    self.out = layers.parameter(rngs, ("vision_mlp", "embed"), (square, out), scale=scale)
    self.out_bias = layers.constant(("embed",), (out,), value=0.0)

  def __call__(
    self, x: Float[Array, "frames patches vision_embed"], *, unit: int
  ) -> Float[Array, "frames tokens embed"]:
    """Each `unit` consecutive patches make one token."""
    frames, patches, _ = x.shape
    weights = layers.stack(self, x.dtype)
    squares = layers.rms_norm(x, weights["norm"], epsilon=EPSILON).reshape(
      frames, patches // unit, -1
    )
    hidden = layers.project(squares, weights["hidden"]) + weights["hidden_bias"]
    hidden = jax.nn.gelu(hidden, approximate=False)
    return layers.project(hidden, weights["out"]) + weights["out_bias"]


class VisionTower(nnx.Module):
  """Patch embedding, transformer blocks, merger."""

  def __init__(self, config: config_lib.Config, *, rngs: nnx.Rngs):
    self.config = config
    vision, scale = config.vision, config.initializer_range
    self.patch = layers.parameter(
      rngs, ("patch", "vision_embed"), (vision.patch_dim, vision.hidden_size), scale=scale
    )
    self.blocks = Blocks(vision, scale=scale, rngs=rngs)
    self.merger = Merger(vision, scale=scale, rngs=rngs)

  def __call__(self, vision: records.Vision) -> Float[Array, "prompts media embed"]:
    """Features of every media token, padding included, in the order of frames, then of patches.

    Patches of a frame stand in merge order: each `merge_unit` consecutive ones make one token.
    """
    prompts, frames, patches, _ = vision.patches.shape
    config, dtype = self.config.vision, jnp.dtype(self.config.dtype)
    tokens = patches // config.merge_unit
    if frames == 0:
      return jnp.zeros((prompts, 0, config.out_hidden_size), dtype)
    pixels = jnp.asarray(vision.patches, dtype).reshape(prompts * frames, patches, -1)
    window = jnp.asarray(vision.window).reshape(prompts * frames, patches)
    rows = jnp.asarray(vision.rows).reshape(prompts * frames, patches, 2)
    x = layers.project(pixels, self.patch[...].astype(dtype))
    x = self._run_blocks(x, rows, window)
    media = self.merger(x, unit=config.merge_unit)
    return media.reshape(prompts, frames * tokens, -1)

  def _run_blocks(
    self,
    x: Float[Array, "frames patches vision_embed"],
    rows: Int[Array, "frames patches 2"],
    window: Int[Array, "frames patches"],
  ) -> Float[Array, "frames patches vision_embed"]:
    config = self.config.vision
    cos, sin = rotary_angles(rows, config)
    same_frame = jnp.broadcast_to((window >= 0)[:, None, :], (*window.shape, window.shape[-1]))
    same_window = same_frame & (window[:, :, None] == window[:, None, :])

    def block(x, inputs):
      weights, full = inputs
      mask = jnp.where(full, same_frame, same_window)
      normed = layers.rms_norm(x, weights["norm1"], epsilon=EPSILON)
      x = x + _attend(normed, weights, cos, sin, mask)
      normed = layers.rms_norm(x, weights["norm2"], epsilon=EPSILON)
      return x + layers.swiglu(normed, weights), None

    full = np.isin(np.arange(config.depth), config.fullatt_block_indexes)
    body = jax.checkpoint(block) if self.config.remat else block
    x, _ = jax.lax.scan(body, x, (layers.stack(self.blocks, x.dtype), jnp.asarray(full)))
    return x


def rotary_angles(
  rows: Int[Array, "frames patches 2"], config: config_lib.VisionConfig
) -> tuple[Float[Array, "frames patches half"], Float[Array, "frames patches half"]]:
  """Cosines and sines: a quarter of a head's features turns with the row, a quarter with the column."""
  quarter = config.head_dim // 4
  frequency = 1.0 / config.rope_theta ** (jnp.arange(quarter, dtype=jnp.float32) / quarter)
  angles = rows[..., None].astype(jnp.float32) * frequency
  angles = angles.reshape(*rows.shape[:-1], 2 * quarter)
  return jnp.cos(angles), jnp.sin(angles)


def _attend(
  x: Float[Array, "frames patches vision_embed"],
  weights: dict[str, Array],
  cos: Float[Array, "frames patches half"],
  sin: Float[Array, "frames patches half"],
  mask: Bool[Array, "frames patches keys"],
) -> Float[Array, "frames patches vision_embed"]:
  """Attention of one block; softmax in float32."""
  precision = layers.precision(x.dtype)
  qkv = layers.project(x, weights["qkv"]) + weights["qkv_bias"]
  query, key, value = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
  query, key = layers.rotate(query, cos, sin), layers.rotate(key, cos, sin)
  logits = jnp.einsum(
    "fqhd,fkhd->fhqk", query, key, precision=precision, preferred_element_type=jnp.float32
  )
  logits = jnp.where(mask[:, None], logits * query.shape[-1] ** -0.5, layers.MASKED)
  share = jax.nn.softmax(logits, axis=-1).astype(x.dtype)
  mixed = jnp.einsum("fhqk,fkhd->fqhd", share, value, precision=precision)
  return layers.project(mixed, weights["out"], contract=2) + weights["out_bias"]
