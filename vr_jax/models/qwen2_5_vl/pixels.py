"""Images to patches: Qwen2.5-VL's resizing rule, normalisation and patch order, in NumPy."""

import math

from jaxtyping import Float, UInt8
import numpy as np

from vr_jax import errors
from vr_jax.models.qwen2_5_vl import config as config_lib

# Mean and standard deviation of CLIP's training images, in units of full intensity.
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)
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
  if max(height, width) > LONGEST_SHAPE * min(height, width):
    raise errors.InputError(
      f"frame of {height}x{width} pixels: one side is over {LONGEST_SHAPE} times the other; crop it"
    )
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


def patchify(
  frames: UInt8[np.ndarray, "frames height width 3"], config: config_lib.VisionConfig
) -> Float[np.ndarray, "steps patches patch_dim"]:
  """Normalised patches of each temporal patch, in merge order; a last odd frame is repeated.

  A patch is ordered as channel, frame, row, column.

  frames: height and width are multiples of `config.pixel_factor`.
  """
  span, merge, size = config.temporal_patch_size, config.spatial_merge_size, config.patch_size
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
  per_channel = (3, 1, 1, 1)
  scaled = blocks.astype(np.float32) - (255 * MEAN).reshape(per_channel)
  scaled /= (255 * STD).reshape(per_channel)
  return scaled.reshape(count // span, -1, config.patch_dim)
