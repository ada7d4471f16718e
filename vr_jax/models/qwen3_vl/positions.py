"""Positions: multimodal rotary positions of prompts, and places in the tower's learned table.

Source: Qwen3-VL, arXiv 2511.21631, section 2; rounding and order as in Hugging Face transformers
(`get_rope_index`, `get_vision_interpolation_indices_and_weights`).
"""

from collections.abc import Sequence

from jaxtyping import Float, Int
import numpy as np

from vr_jax import records
from vr_jax.models.common import prompts
from vr_jax.models.qwen3_vl import config as config_lib


def rope_index(
  kind: Int[np.ndarray, "prefix"],
  grids: Sequence[prompts.Grid],
  config: config_lib.Qwen3VisionConfig,
) -> tuple[Int[np.ndarray, "3 prefix"], int]:
  """Positions (time, height, width) of all tokens of a prompt, and of the next token after it.

  Text counts up on all three axes. Each frame (temporal patch) starts after the text before it; its
  time stays there, its height and width advance by one a media token. Text after it continues
  after its longer side. What time a frame has, the text before it tells.

  grids: of the media in order; the tokens of each frame are one contiguous run of their kind.
  """
  positions = np.zeros((3, kind.size), np.int32)
  is_media = np.isin(kind, (records.Kind.IMAGE, records.Kind.VIDEO))
  merge = config.spatial_merge_size
  start, here = 0, 0
  for grid in grids:
    rows, columns = grid.height // merge, grid.width // merge
    for _ in range(grid.frames):
      run = here + int(np.argmax(is_media[here:]))
      positions[:, here:run] = start + np.arange(run - here)
      start += run - here
      here = run + rows * columns
      positions[0, run:here] = start
      positions[1:, run:here] = start + np.indices((rows, columns)).reshape(2, -1)
      start += max(rows, columns)
  positions[:, here:] = start + np.arange(kind.size - here)
  return positions, start + kind.size - here


def table_places(
  rows: Int[np.ndarray, "patches 2"], height: int, width: int, config: config_lib.Qwen3VisionConfig
) -> tuple[Int[np.ndarray, "patches 4"], Float[np.ndarray, "patches 4"]]:
  """Rows of the learned table around each patch, and their bilinear weights.

  The corners of a frame are those of the table.

  rows: row and column of each patch. height, width: of its frame, in patches.
  """
  side = config.table_side
  taps, weights = [], []
  for index, length in zip(rows.T, (height, width), strict=True):
    place = index.astype(np.float32) * np.float32(side - 1) / np.float32(max(length - 1, 1))
    first = np.floor(place)
    distance = place - first
    lower = first.astype(np.int32)
    taps.append(np.stack([lower, np.minimum(lower + 1, side - 1)], axis=1))
    weights.append(np.stack([1 - distance, distance], axis=1))
  both = taps[0][:, :, None] * side + taps[1][:, None, :]
  shares = weights[0][:, :, None] * weights[1][:, None, :]
  return both.reshape(-1, 4), shares.reshape(-1, 4).astype(np.float32)
