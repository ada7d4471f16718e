"""Prompts as the mask decoder reads them: a few tokens for points, an image for a mask."""

from typing import NamedTuple

from jax import lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vr_jax.models.sam2 import config as config_lib
from vr_jax.models.sam2 import layers
from vr_jax.models.sam2 import prompts as prompts_lib


class Embedded(NamedTuple):
  """Prompts of some objects.

  tokens, valid: of points, boxes and what stands for their absence.
  dense: added to the coarse features.
  """

  tokens: Float[Array, "objects tokens width"]
  valid: Bool[Array, "objects tokens"]
  dense: Float[Array, "objects #positions width"]


def _waves(
  matrix: Float[Array, "2 half"], places: Float[Array, "*batch 2"]
) -> Float[Array, "*batch width"]:
  """Sines and cosines of places (0 to 1; x, y) at random, fixed frequencies."""
  matrix = lax.stop_gradient(matrix).astype(jnp.float32)
  angles = jnp.matmul(2 * places - 1, matrix, precision=lax.Precision.HIGHEST) * (2 * jnp.pi)
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def image_positions(
  weights: layers.Weights, config: config_lib.Sam2Config
) -> Float[Array, "positions width"]:
  """Positions of the coarse features, embedded like points."""
  middle = (jnp.arange(config.side) + 0.5) / config.side
  y, x = jnp.meshgrid(middle, middle, indexing="ij")
  places = jnp.stack([x, y], axis=-1).reshape(-1, 2)
  return _waves(weights["shared_image_embedding.positional_embedding"], places)


def embed_points(
  weights: layers.Weights,
  config: config_lib.Sam2Config,
  points: Float[Array, "objects points 2"],
  labels: Int[Array, "objects points"],
) -> Embedded:
  """Embeds points (pixels of the resized frame); labels are those of prompts.py.

  One more token says that no point follows. Points with label PADDING are not there.
  """
  part = weights / "prompt_encoder"
  matrix = part["shared_embedding.positional_embedding"]
  embedded = _waves(matrix, (points + 0.5) / config.image_size)
  kinds = part["point_embed.weight"].astype(jnp.float32)
  embedded += kinds[jnp.maximum(labels, 0)] * (labels >= 0)[..., None]
  nothing = part["not_a_point_embed.weight"].astype(jnp.float32)
  embedded = jnp.where((labels == prompts_lib.NO_POINT)[..., None], nothing, embedded)
  objects = len(points)
  end = jnp.broadcast_to(nothing, (objects, 1, nothing.shape[-1]))
  there = labels != prompts_lib.PADDING
  dtype = part["no_mask_embed.weight"].dtype
  return Embedded(
    tokens=jnp.concatenate([embedded, end], axis=1).astype(dtype),
    valid=jnp.concatenate([there, jnp.ones((objects, 1), bool)], axis=1),
    dense=jnp.broadcast_to(part["no_mask_embed.weight"], (objects, 1, config.width)),
  )


def embed_nothing(weights: layers.Weights, config: config_lib.Sam2Config, objects: int) -> Embedded:
  """The prompt of a tracked frame: no point, and no point that follows."""
  labels = jnp.full((objects, 1), prompts_lib.NO_POINT)
  return embed_points(weights, config, jnp.zeros((objects, 1, 2)), labels)


def embed_masks(
  weights: layers.Weights,
  config: config_lib.Sam2Config,
  masks: Float[Array, "objects mask_side mask_side"],
) -> Embedded:
  """Embeds masks on the grid of predicted masks."""
  part = weights / "prompt_encoder" / "mask_embed"
  x = layers.convolution(part / "conv1", masks[..., None], stride=2, padding=0)
  x = layers.gelu(layers.layer_norm(part / "layer_norm1", x, 1e-6))
  x = layers.convolution(part / "conv2", x, stride=2, padding=0)
  x = layers.gelu(layers.layer_norm(part / "layer_norm2", x, 1e-6))
  dense = layers.pointwise(part / "conv3", x)
  return embed_nothing(weights, config, len(masks))._replace(
    dense=dense.reshape(len(masks), -1, config.width)
  )
