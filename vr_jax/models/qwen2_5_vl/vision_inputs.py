"""Inputs of the vision tower of Qwen2.5-VL."""

import dataclasses
import typing

import jax
from jaxtyping import Array, Int, UInt8
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
@typing.no_type_check  # tree transformations rebuild it with other leaves, or those of one patch
class VisionInputs:
  """Patches of all media of the prompts; padding has window and slot -1.

  rows: row and column of each patch in its frame.
  window: attention window of each patch; patches of one window attend to each other.
  slot: place of each patch of a frame in rows that each hold whole windows (windows.py).
  """

  patches: UInt8[Array | np.ndarray, "prompts frames patches patch_dim"]
  rows: Int[Array | np.ndarray, "prompts frames patches 2"]
  window: Int[Array | np.ndarray, "prompts frames patches"]
  slot: Int[Array | np.ndarray, "prompts frames patches"]
