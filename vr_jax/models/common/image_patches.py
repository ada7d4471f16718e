"""Images to square patches: sizes of resized images, merge order and normalisation.

In merge order, the patches that become one media token are contiguous. Patches are cut on the host
in NumPy and stay bytes, a quarter of float32; the vision tower normalises them (`normalise`).
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int, UInt8
import numpy as np

from vr_jax import errors

LONGEST_SHAPE = 200


def smart_resize(
  height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
  """Size (pixels) to which a frame is resized: multiples of `factor`, nearly the same aspect ratio.

  Sides are rounded to the nearest multiple. If the area is then outside the limits, both sides are
  scaled to the limit and rounded to its inside. A side is never less than `factor`.

  Raises:
    InputError: a frame more than 200 times as long as it is wide.

  Source: Hugging Face transformers, `smart_resize` of Qwen2-VL.
  """
  check_shape(height, width)
  new_height = round(height / factor) * factor
  new_width = round(width / factor) * factor
  if new_height * new_width > max_pixels:
    shrink = math.sqrt(height * width / max_pixels)
    new_height = max(factor, math.floor(height / shrink / factor) * factor)
    new_width = max(factor, math.floor(width / shrink / factor) * factor)
  elif new_height * new_width < min_pixels:
    stretch = math.sqrt(min_pixels / (height * width))
    new_height = math.ceil(height * stretch / factor) * factor
    new_width = math.ceil(width * stretch / factor) * factor
  return new_height, new_width


def check_shape(height: int, width: int) -> None:
  """Raises InputError if a frame is more than 200 times as long as it is wide."""
  if max(height, width) > LONGEST_SHAPE * min(height, width):
    raise errors.InputError(
      f"frame of {height}x{width} pixels: one side is over {LONGEST_SHAPE} times the other; crop it"
    )


def patchify(
  frames: UInt8[np.ndarray, "frames height width 3"],
  *,
  span: int,
  merge: int,
  size: int,
) -> UInt8[np.ndarray, "steps patches patch_dim"]:
  """Pixels of the patches of each temporal patch, in merge order; a last odd frame is repeated.

  A patch is ordered as channel, frame, row, column.

  frames: height and width are multiples of merge x size.
  span: frames of a temporal patch.
  merge: side of the square of patches that become one media token.
  size: side of a patch, in pixels.
  """
  missing = -len(frames) % span
  if missing:
    frames = np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
  count, height, width, _ = frames.shape
  blocks = frames.reshape(
    count // span,
    span,
    height // size // merge,
    merge,
    size,
    width // size // merge,
    merge,
    size,
    3,
  )
  # steps, block row, block column, row in block, column in block, channel, frame, pixel row,
  # pixel column
  blocks = blocks.transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
  return blocks.reshape(count // span, -1, 3 * span * size**2)


def normalise(
  patches: UInt8[Array | np.ndarray, "*batch patch_dim"],
  *,
  mean: Float[np.ndarray, "3"],
  std: Float[np.ndarray, "3"],
  dtype: DTypeLike,
) -> Float[Array, "*batch patch_dim"]:
  """Normalises the pixels of patches, ordered by channel, in float32; then rounds to `dtype`.

  mean, std: of each channel, in units of full intensity.
  """
  shift, scale = (np.repeat(255 * x, patches.shape[-1] // 3) for x in (mean, std))
  return ((jnp.asarray(patches, jnp.float32) - shift) / scale).astype(dtype)


def patch_rows(height: int, width: int, *, merge: int) -> Int[np.ndarray, "patches 2"]:
  """Row and column of each patch of a frame, in merge order."""
  rows, columns = np.divmod(np.arange(height * width, dtype=np.int32), width)
  order = np.arange(height * width).reshape(height // merge, merge, width // merge, merge)
  order = order.transpose(0, 2, 1, 3).reshape(-1)
  return np.stack([rows, columns], axis=-1)[order]
