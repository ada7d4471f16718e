"""Inputs and features of the vision tower of Qwen3-VL."""

import dataclasses
import typing

import jax
from jaxtyping import Array, Float, Int, UInt8
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
@typing.no_type_check  # tree transformations rebuild it with other leaves, or those of one patch
class Qwen3VisionInputs:
  """Patches of all media of the prompts.

  rows: row and column of each patch in its frame.
  table_rows, table_weights: the four rows of the learned table of positions between which a patch
    lies, and the weight of each.
  segment: 0 for patches, which attend to all of their frame; -1 for padding.
  """

  patches: UInt8[Array | np.ndarray, "prompts frames patches patch_dim"]
  rows: Int[Array | np.ndarray, "prompts frames patches 2"]
  table_rows: Int[Array | np.ndarray, "prompts frames patches 4"]
  table_weights: Float[Array | np.ndarray, "prompts frames patches 4"]
  segment: Int[Array | np.ndarray, "prompts frames patches"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
@typing.no_type_check
class VisionFeatures:
  """Features of all media tokens.

  embedding: replaces the token's embedding.
  levels: level i is added to the output of text layer i (DeepStack).
  """

  embedding: Float[Array | np.ndarray, "prompts media embed"]
  levels: Float[Array | np.ndarray, "prompts media levels embed"]
