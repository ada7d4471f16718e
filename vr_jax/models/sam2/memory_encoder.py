"""Memories: what a frame showed and where the object was, in a few features a position."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vr_jax.models.sam2 import config as config_lib
from vr_jax.models.sam2 import layers

EPSILON = 1e-6
SCALE, BIAS = 20.0, -10.0  # of a mask between 0 and 1


def mask_for_memory(
  logits: Float[Array, "objects height width"],
  config: config_lib.Sam2Config,
  *,
  binary: bool,
) -> Float[Array, "objects image_size image_size"]:
  """A mask at the size of the image, as the encoder reads it.

  binary: on prompted frames each pixel is in or out; elsewhere it may be in between.
  """
  wide = layers.resize(logits, config.image_size, config.image_size)
  soft = (wide > 0).astype(jnp.float32) if binary else jax.nn.sigmoid(wide)
  return soft * SCALE + BIAS


def encode(
  weights: layers.Weights,
  config: config_lib.Sam2Config,
  coarse: Float[Array, "videos side side width"],
  masks: Float[Array, "objects image_size image_size"],
  visible: Bool[Array, "objects"],
) -> Float[Array, "objects positions memory_width"]:
  """Encodes memories.

  coarse: features of each video's frame, without memories. Its objects are in a row in `masks`.
  visible: whether the object is in sight.
  """
  part = weights / "memory_encoder"
  x = masks[..., None]
  for layer in range(4):
    step = part / "mask_downsampler" / "layers" / layer
    x = layers.convolution(step / "conv", x, stride=2, padding=1)
    x = layers.gelu(layers.layer_norm(step / "layer_norm", x, EPSILON))
  x = layers.pointwise(part / "mask_downsampler" / "final_conv", x)
  pixels = layers.pointwise(part / "feature_projection", coarse)
  x = x + jnp.repeat(pixels, len(masks) // len(coarse), axis=0)
  for layer in range(2):
    x = _fuse(part / "memory_fuser" / "layers" / layer, x)
  memory = layers.pointwise(part / "projection", x)
  if config.occlusion_embedding:
    hidden = weights["occlusion_spatial_embedding_parameter"][0]
    memory = jnp.where(visible[:, None, None, None], memory, memory + hidden)
  return memory.reshape(len(masks), -1, config.memory_width)


def _fuse(weights: layers.Weights, x: layers.Image) -> layers.Image:
  """A block of ConvNeXt (arXiv 2201.03545)."""
  hidden = layers.depthwise(weights / "depthwise_conv", x)
  hidden = layers.layer_norm(weights / "layer_norm", hidden, EPSILON)
  hidden = layers.gelu(layers.linear(weights / "pointwise_conv1", hidden))
  return x + weights["scale"] * layers.linear(weights / "pointwise_conv2", hidden)
