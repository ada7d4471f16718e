"""How Qwen2.5-VL normalises pixels."""

from jaxtyping import Array, DTypeLike, Float, UInt8
import numpy as np

from vr_jax.models.common import image_patches
from vr_jax.models.qwen2_5_vl import config as config_lib

# Mean and standard deviation of CLIP's training images, in units of full intensity.
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def patchify(
  frames: UInt8[np.ndarray, "frames height width 3"], config: config_lib.VisionConfig
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
