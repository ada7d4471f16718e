"""The vision tower of TinyLLaVA-Video, SigLIP, and the connector behind it.

A frame of the inputs is a whole video: the patches of one image after the other. The tower reads
each image alone; the resampler (resampler.py) reads the features of all of them.

Source: SigLIP, arXiv 2303.15343; TinyLLaVA-Video, arXiv 2501.15513; Hugging Face transformers for
the arithmetic of the tower.
"""

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8
import numpy as np

from vr_jax.models import layout as layout_lib
from vr_jax.models.common import attention, frame_chunks, image_patches, layers, rematerialisation
from vr_jax.models.tinyllava import config as config_lib
from vr_jax.models.tinyllava import resampler, vision_inputs

AXES = ("prompts", "frames", None, None)  # of activations
# Mean and standard deviation of each channel, in units of full intensity.
MEAN = STD = np.full(3, 0.5, np.float32)


class SiglipBlocks(nnx.Module):
  """Weights of the transformer blocks that are used, stacked along a leading layers axis."""

  def __init__(self, config: config_lib.SiglipConfig, *, scale: float, rngs: nnx.Rngs):
    depth, embed, mlp = config.depth, config.hidden_size, config.intermediate_size
    heads, head_dim = config.num_attention_heads, config.head_dim

    def weight(axes, *shape):
      return layers.parameter(rngs, ("layers", *axes), (depth, *shape), scale=scale)

    def constant(axes, *shape, value=0.0):
      return layers.constant(("layers", *axes), (depth, *shape), value=value)

    self.norm1 = constant(("vision_embed",), embed, value=1.0)
    self.norm1_bias = constant(("vision_embed",), embed)
    for name in ("query", "key", "value"):
      setattr(self, name, weight(("vision_embed", "vision_heads", None), embed, heads, head_dim))
      setattr(self, f"{name}_bias", constant(("vision_heads", None), heads, head_dim))
    self.out = weight(("vision_heads", None, "vision_embed"), heads, head_dim, embed)
    self.out_bias = constant(("vision_embed",), embed)
    self.norm2 = constant(("vision_embed",), embed, value=1.0)
    self.norm2_bias = constant(("vision_embed",), embed)
    self.up = weight(("vision_embed", "vision_mlp"), embed, mlp)
    self.up_bias = constant(("vision_mlp",), mlp)
    self.down = weight(("vision_mlp", "vision_embed"), mlp, embed)
    self.down_bias = constant(("vision_embed",), embed)


class SiglipTower(nnx.Module):
  """Patch embedding with a learned table of positions, transformer blocks, connector."""

  def __init__(
    self, config: config_lib.TinyLlavaConfig, layout: layout_lib.Layout, *, rngs: nnx.Rngs
  ):
    self.config, self.layout = config, layout
    self.attention = attention.make(config, layout)
    vision, scale = config.vision, config.initializer_range
    embed = vision.hidden_size
    shape = (vision.patch_dim, embed)
    self.patch = layers.parameter(rngs, ("patch", "vision_embed"), shape, scale=scale)
    self.patch_bias = layers.constant(("vision_embed",), (embed,), value=0.0)
    table = (vision.patches, embed)
    # At 0, so that what has no pixels of its own, say a grey background, starts as nothing.
    self.positions = layers.constant((None, "vision_embed"), table, value=0.0)
    self.blocks = SiglipBlocks(vision, scale=scale, rngs=rngs)
    self.connector = resampler.Resampler(config, layout, rngs=rngs)

  def __call__(self, vision: vision_inputs.VideoPatches) -> Float[Array, "prompts media embed"]:
    """Features of all media tokens, also for padding: `queries` of each frame, a whole video."""
    prompts, frames = vision.patches.shape[:2]
    config, dtype = self.config.vision, jnp.dtype(self.config.dtype)
    queries, width = self.config.resampler.queries, self.config.hidden_size
    if frames == 0:
      return jnp.zeros((prompts, 0, width), dtype)
    x, segment = self.read_images(vision)
    kept = slice(1, None) if config.drops_first else slice(None)
    x, segment = (y[:, :, kept].reshape(prompts, frames, -1, *y.shape[3:]) for y in (x, segment))
    return self.connector(x, segment).reshape(prompts, frames * queries, width)

  def read_images(
    self, vision: vision_inputs.VideoPatches
  ) -> tuple[
    Float[Array, "prompts images patches vision_embed"], Int[Array, "prompts images patches"]
  ]:
    """Features of the patches of each image, and which images are there (segment 0, else -1)."""
    prompts, frames, patches, _ = vision.patches.shape
    each = (prompts, frames * patches // self.config.vision.patches, self.config.vision.patches)
    pixels = jnp.asarray(vision.patches).reshape(*each, -1)
    segment = jnp.asarray(vision.segment).reshape(each)
    x = frame_chunks.map_frames(
      lambda inputs: self._run_blocks(self._embed(inputs[0]), inputs[1]),
      (pixels, segment),
      self.layout,
      patches=self.config.vision_chunk,
    )
    return x, segment

  def _embed(
    self, pixels: UInt8[Array, "prompts images patches patch_dim"]
  ) -> Float[Array, "prompts images patches vision_embed"]:
    """Embeds the patches of images, each of which has all of them, in order."""
    dtype = jnp.dtype(self.config.dtype)
    pixels = self.layout.place(pixels, AXES)
    normalised = image_patches.normalise(pixels, mean=MEAN, std=STD, dtype=dtype)
    x = layers.project(normalised, self.patch[...], merge=self.layout.merges)
    # Whole on every device: it is small.
    table = self.layout.place(self.positions[...], (None, None))
    return layers.add_bias(layers.add_bias(x, self.patch_bias[...]), table)

  def _run_blocks(
    self,
    x: Float[Array, "prompts images patches vision_embed"],
    segment: Int[Array, "prompts images patches"],
  ) -> Float[Array, "prompts images patches vision_embed"]:
    """Runs the blocks up to the one whose output is taken; there is no norm behind it."""

    def block(x, weights):
      x = x + self._attend(self._norm(x, weights, "norm1"), weights, segment)
      x = x + self._feed_forward(self._norm(x, weights, "norm2"), weights)
      return self.layout.place(x, AXES), None

    weights = layers.stack(self.blocks, platform=self.layout.platform)
    return rematerialisation.scan(
      block, self.layout.place(x, AXES), weights, policy=self.config.remat
    )[0]

  def _attend(
    self,
    x: Float[Array, "prompts images patches vision_embed"],
    weights: dict[str, Array],
    segment: Int[Array, "prompts images patches"],
  ) -> Float[Array, "prompts images patches vision_embed"]:
    """Attention of one block, of each patch to all of its image."""
    merge = self.layout.merges
    query, key, value = (
      layers.project_by_name(x, weights, name, merge=merge) for name in ("query", "key", "value")
    )
    mixed = self.attention.frames(query, key, value, segment)
    return layers.project_by_name(mixed, weights, "out", contract=2, merge=merge)

  def _feed_forward(
    self, x: Float[Array, "prompts images patches vision_embed"], weights: dict[str, Array]
  ) -> Float[Array, "prompts images patches vision_embed"]:
    """Feed-forward block of one block."""
    merge = self.layout.merges
    up = jax.nn.gelu(layers.project_by_name(x, weights, "up", merge=merge), approximate=True)
    return layers.project_by_name(up, weights, "down", merge=merge)

  def _norm(
    self, x: Float[Array, "... embed"], weights: dict[str, Array], name: str
  ) -> Float[Array, "... embed"]:
    epsilon = self.config.vision.layer_norm_eps
    return layers.layer_norm(x, weights[name], weights[f"{name}_bias"], epsilon=epsilon)
