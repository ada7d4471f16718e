"""Hiera, which sees a frame at four resolutions, and the neck that merges them.

Source: Hiera, arXiv 2306.00989; SAM 2, arXiv 2408.00714, section 4.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8
import numpy as np

from vr_jax.models.sam2 import config as config_lib
from vr_jax.models.sam2 import layers

EPSILON = 1e-6
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels


class Features(NamedTuple):
  """What later parts read of a frame: fine, middle and coarse features.

  fine, middle: already narrowed for the mask decoder (width / 8, width / 4).
  """

  fine: Float[Array, "batch fine_side fine_side _"]
  middle: Float[Array, "batch middle_side middle_side _"]
  coarse: Float[Array, "batch side side width"]


def normalise(
  pixels: UInt8[Array, "batch height width 3"],
) -> Float[Array, "batch height width 3"]:
  """Pixels as the model was trained on them."""
  mean, std = jnp.asarray(MEAN, jnp.float32), jnp.asarray(STD, jnp.float32)
  return (pixels.astype(jnp.float32) / 255 - mean) / std


def positions(
  weights: layers.Weights, config: config_lib.Sam2Config
) -> Float[Array, "1 height width features"]:
  """The learned positions of all patches: resized to the image, and tiled over windows."""
  side = config.image_size // 4
  whole, window = weights["pos_embed"][0], weights["pos_embed_window"][0]
  matrix = jnp.asarray(_cubic_weights(whole.shape[-1], side))
  whole = jnp.einsum(
    "chw,Hh,Ww->HWc", whole.astype(jnp.float32), matrix, matrix, precision="highest"
  )
  repeats = side // window.shape[-1]
  return (whole + jnp.tile(window, (1, repeats, repeats)).transpose(1, 2, 0))[None]


def _cubic_weights(old: int, new: int) -> Float[np.ndarray, "new old"]:
  """Weights of PyTorch's bicubic interpolation, whose border is repeated."""
  a, centre = -0.75, old / new * (np.arange(new) + 0.5) - 0.5
  weights, first = np.zeros((new, old)), np.floor(centre).astype(int)
  for offset in range(-1, 3):
    x = np.abs(centre - first - offset)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    at = np.clip(first + offset, 0, old - 1)
    np.add.at(weights, (np.arange(new), at), np.where(x <= 1, near, far))
  return weights.astype(np.float32)


def encode(
  weights: layers.Weights,
  config: config_lib.Sam2Config,
  pixels: Float[Array, "batch height width 3"],
  position: Float[Array, "1 patch_rows patch_columns features"],
) -> Features:
  """Features of frames. pixels: normalised, at the model's size. position: of `positions`."""
  hiera, backbone = config.hiera, weights / "vision_encoder" / "backbone"
  x = layers.convolution(backbone / "patch_embed" / "projection", pixels, stride=4, padding=3)
  x = x + position.astype(x.dtype)
  levels, number = [], 0
  for stage, count in enumerate(hiera.blocks):
    for index in range(count):
      first = stage > 0 and index == 0
      window = 0 if number in hiera.global_blocks else hiera.windows[stage - first]
      block = backbone / "blocks" / number
      x = _block(block, x, heads=hiera.heads[stage], window=window, pool=first)
      number += 1
    levels.append(x)
  lateral = [
    layers.pointwise(weights / "vision_encoder" / "neck" / "convs" / (3 - level), x)
    for level, x in enumerate(levels)
  ]
  # Only the two coarse levels are merged; the coarsest is used nowhere else.
  coarse = lateral[2] + jnp.repeat(jnp.repeat(lateral[3], 2, axis=1), 2, axis=2)
  decoder = weights / "mask_decoder"
  return Features(
    fine=layers.pointwise(decoder / "conv_s0", lateral[0]),
    middle=layers.pointwise(decoder / "conv_s1", lateral[1]),
    coarse=coarse,
  )


def _block(
  weights: layers.Weights, x: layers.Image, *, heads: int, window: int, pool: bool
) -> layers.Image:
  """One block. window: side of the squares that attend, 0 for the whole image. pool: halve."""
  normed = layers.layer_norm(weights / "layer_norm1", x, EPSILON)
  if "proj.weight" in weights:
    x = layers.linear(weights / "proj", normed)
    x = _halve(x) if pool else x
  x = x + _attend(weights / "attn", normed, heads=heads, window=window, pool=pool)
  hidden = layers.layer_norm(weights / "layer_norm2", x, EPSILON)
  return x + layers.mlp(weights / "mlp", hidden, activation=layers.gelu)


def _attend(
  weights: layers.Weights, x: layers.Image, *, heads: int, window: int, pool: bool
) -> layers.Image:
  """Attention within windows.

  The last ones are padded with zeros, which take part, as in training: their queries, keys and
  values are the projection's bias. So only real patches are projected.
  """
  height, width = x.shape[1:3]
  qkv = layers.linear(weights / "qkv", x)
  if not window:
    window_rows, window_columns = height, width
  else:
    window_rows = window_columns = window
    bias = weights["qkv.bias"]
    room = ((0, 0), (0, -height % window), (0, -width % window), (0, 0))
    if height % window or width % window:
      real = jnp.pad(jnp.ones((1, height, width, 1), bool), room)
      qkv = jnp.where(real, jnp.pad(qkv, room), bias)
  batch, rows, columns = len(x), qkv.shape[1] // window_rows, qkv.shape[2] // window_columns
  windows = qkv.reshape(batch, rows, window_rows, columns, window_columns, -1).swapaxes(2, 3)
  windows = windows.reshape(-1, window_rows, window_columns, qkv.shape[-1])
  query, key, value = jnp.split(windows, 3, axis=-1)
  if pool:
    query = _halve(query)
  query_rows, query_columns = query.shape[1:3]

  def split(part: Array) -> Array:
    return part.reshape(len(part), part.shape[1] * part.shape[2], heads, -1)

  mixed = layers.attend(split(query), split(key), split(value))
  mixed = mixed.reshape(batch, rows, columns, query_rows, query_columns, -1).swapaxes(2, 3)
  whole = mixed.reshape(batch, rows * query_rows, columns * query_columns, -1)
  whole = whole[:, : height // (2 if pool else 1), : width // (2 if pool else 1)]
  return layers.linear(weights / "proj", whole)


def _halve(x: layers.Image) -> layers.Image:
  """The largest of each square of four."""
  batch, height, width, features = x.shape
  return x.reshape(batch, height // 2, 2, width // 2, 2, features).max(axis=(2, 4))
