"""What the vision tower of Qwen2.5-VL reads."""

import dataclasses
import typing

import jax
from jaxtyping import Array, Float, Int
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
@typing.no_type_check  # tree transformations rebuild it with other leaves, or those of one patch
class VisionInputs:
  """Media of the prompts as the tower takes them; a place that holds nothing has window -1.

  rows: row and column of the patch in its frame. window: patches of one attend to each other.
  """

  patches: Float[Array | np.ndarray, "prompts frames patches patch_dim"]
  rows: Int[Array | np.ndarray, "prompts frames patches 2"]
  window: Int[Array | np.ndarray, "prompts frames patches"]
