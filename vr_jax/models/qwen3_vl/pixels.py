"""Sizes to which Qwen3-VL resizes the frames of a video, and how it normalises pixels."""

import math

from jaxtyping import Array, DTypeLike, Float, UInt8
import numpy as np

from vr_jax.models.common import image_patches
from vr_jax.models.qwen3_vl import config as config_lib

# Mean and standard deviation of each channel, in units of full intensity.
MEAN = STD = np.full(3, 0.5, np.float32)


def video_resize(
  frames: int,
  height: int,
  width: int,
  *,
  span: int,
  factor: int,
  min_pixels: int,
  max_pixels: int,
) -> tuple[int, int]:
  """Size (pixels) to which the frames of a video are resized, so that all together fit the limits.

  A side shorter than `factor` is first scaled up to it, with the other. Sides are rounded to the
  nearest multiple. If all pixels are then outside the limits, sides are scaled to the limit.

  frames: number of frames; fewer than `span` are counted as that many, since the last is repeated.
  span: frames of a temporal patch.
  min_pixels, max_pixels: limits of frames x height x width.

  Raises:
    InputError: frames more than 200 times as long as they are wide.

  Source: Hugging Face transformers, `smart_resize` of Qwen3-VL.
  """
  frames = max(frames, span)
  if height < factor or width < factor:
    scale = max(factor / height, factor / width)
    height, width = int(height * scale), int(width * scale)
  image_patches.check_shape(height, width)
  new_height = round(height / factor) * factor
  new_width = round(width / factor) * factor
  total = round(frames / span) * span * new_height * new_width
  if total > max_pixels:
    shrink = math.sqrt(frames * height * width / max_pixels)
    new_height = max(factor, math.floor(height / shrink / factor) * factor)
    new_width = max(factor, math.floor(width / shrink / factor) * factor)
  elif total < min_pixels:
    stretch = math.sqrt(min_pixels / (frames * height * width))
    new_height = math.ceil(height * stretch / factor) * factor
    new_width = math.ceil(width * stretch / factor) * factor
  return new_height, new_width


def patchify(
  frames: UInt8[np.ndarray, "frames height width 3"], config: config_lib.Qwen3VisionConfig
) -> UInt8[np.ndarray, "steps patches patch_dim"]:
  """See `common.image_patches.patchify`."""
  return image_patches.patchify(
    frames,
    span=config.temporal_patch_size,
    merge=config.spatial_merge_size,
    size=config.patch_size,
  )


def normalise(
  patches: UInt8[Array | np.ndarray, "*batch patch_dim"], dtype: DTypeLike
) -> Float[Array, "*batch patch_dim"]:
  """See `common.image_patches.normalise`."""
  return image_patches.normalise(patches, mean=MEAN, std=STD, dtype=dtype)
