"""Multimodal rotary positions of prompts.

Source: Qwen2.5-VL, arXiv 2502.13923, section 2.1 (absolute time); rounding and order as in Hugging
Face transformers (`get_rope_index`).
"""

from collections.abc import Sequence

from jaxtyping import Float, Int
import numpy as np

from vr_jax import records
from vr_jax.models.common import prompts
from vr_jax.models.qwen2_5_vl import config as config_lib


def rope_index(
  kind: Int[np.ndarray, "prefix"], grids: Sequence[prompts.Grid], config: config_lib.VisionConfig
) -> tuple[Int[np.ndarray, "3 prefix"], int]:
  """Positions (time, height, width) of all tokens of a prompt, and of the next token after it.

  Text counts up on all three axes. A medium starts after the text before it; its time advances by
  `tokens_per_second` a second, its height and width by one a media token. The position of text
  after it depends on `config.rope_after_video`: "sides" continues after the longer side, even if
  the times of a long video reach further; "largest" continues after the largest position of the
  medium. A reply is text, too: it continues after the last token of the prompt.

  grids: of the media in order; the tokens of each are one contiguous run of its kind.
  """
  positions = np.zeros((3, kind.size), np.int32)
  is_media = np.isin(kind, (records.Kind.IMAGE, records.Kind.VIDEO))
  start, here = 0, 0
  for grid in grids:
    run = here + int(np.argmax(is_media[here:]))
    positions[:, here:run] = start + np.arange(run - here)
    start += run - here
    here = run + grid.frames * grid.patches // config.merge_unit
    positions[:, run:here] = start + _grid_positions(grid, config)
    if config.rope_after_video == "largest":
      start = int(positions[:, run:here].max()) + 1
    else:
      start += max(grid.height, grid.width) // config.spatial_merge_size
  positions[:, here:] = start + np.arange(kind.size - here)
  return positions, start + kind.size - here


def _grid_positions(
  grid: prompts.Grid, config: config_lib.VisionConfig
) -> Int[np.ndarray, "3 tokens"]:
  """Positions of a medium's tokens from its start.

  Time is truncated to whole steps in float32, as in the reference.
  """
  merge = config.spatial_merge_size
  still = grid.kind == records.Kind.IMAGE
  step = 1.0 if still else config.tokens_per_second * np.float32(grid.seconds)
  time = (np.arange(grid.frames, dtype=np.float32) * np.float32(step)).astype(np.int32)
  rows, columns = np.arange(grid.height // merge), np.arange(grid.width // merge)
  axes = np.meshgrid(time, rows, columns, indexing="ij")
  return np.stack([axis.reshape(-1) for axis in axes]).astype(np.int32)


def mean_distance(timestamps: Float[np.ndarray, "times"]) -> float:
  """Mean seconds between frames; 1 for one frame."""
  if len(timestamps) < 2:
    return 1.0
  return float(timestamps[-1] - timestamps[0]) / (len(timestamps) - 1)
