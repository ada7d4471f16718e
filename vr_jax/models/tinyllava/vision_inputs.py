"""Inputs of the vision tower of TinyLLaVA-Video."""

import dataclasses
import typing

import jax
from jaxtyping import Array, Int, UInt8
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
@typing.no_type_check  # tree transformations rebuild it with other leaves, or those of one patch
class VideoPatches:
  """Patches of all videos of the prompts. A frame of the axis `frames` is a whole video or image.

  Its patches are those of one image after the other; images that are not there come last.

  segment: 0 for patches, -1 for those of images that are not there.
  """

  patches: UInt8[Array | np.ndarray, "prompts frames patches patch_dim"]
  segment: Int[Array | np.ndarray, "prompts frames patches"]
