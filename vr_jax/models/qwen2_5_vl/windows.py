"""Attention windows of a frame as rows of a batch: which row, and which place in it, a patch has.

Windows at the lower and right border are smaller than others. Several small ones share a row, so
that rows are few: a frame that is a window high has hardly more rows than whole windows.
"""

from collections.abc import Sequence
import functools
import math

from jaxtyping import Int
import numpy as np

from vr_jax.models.qwen2_5_vl import config as config_lib


def patch_windows(
  rows: Int[np.ndarray, "patches 2"], config: config_lib.VisionConfig
) -> Int[np.ndarray, "patches"]:
  """The attention window of each patch: squares of `window_size` pixels, cut off at the border.

  Source: `get_vision_window_index` of Hugging Face transformers.
  """
  window = rows // (config.spatial_merge_size * config.window_tokens)
  across = window[:, 1].max(initial=0) + 1
  return (window[:, 0] * across + window[:, 1]).astype(np.int32)


def window_slots(
  window: Int[np.ndarray, "patches"], config: config_lib.VisionConfig
) -> Int[np.ndarray, "patches"]:
  """The place of each patch in rows of `config.window_patches`; a window is in one row.

  window: of each patch, from `patch_windows`.
  """
  size = config.window_patches
  counts = np.bincount(window)
  starts = np.array([row * size + first for row, first in _place(counts.tolist(), size)], np.int32)
  order = np.argsort(window, kind="stable")
  place = np.arange(len(window)) - np.repeat(np.cumsum(counts) - counts, counts)
  slots = np.empty(len(window), np.int32)
  slots[order] = starts[window[order]] + place
  return slots


@functools.lru_cache(maxsize=1024)
def most_rows(tokens: int, side: int) -> int:
  """The most rows that the windows of a frame of at most so many media tokens take.

  side: of a window, in media tokens.
  """
  most = 0
  for height in range(1, math.isqrt(tokens) + 1):
    widest = tokens // height
    # A frame that is wider by a whole window does not take fewer rows.
    for width in range(max(height, widest - side + 1), widest + 1):
      sizes = [y * x for y in _sides(height, side) for x in _sides(width, side)]
      most = max(most, 1 + max(row for row, _ in _place(sizes, side**2)))
  return most


def _sides(length: int, side: int) -> list[int]:
  """Lengths of the windows along one side of a frame."""
  return [min(side, length - start) for start in range(0, length, side)]


def _place(sizes: Sequence[int], capacity: int) -> list[tuple[int, int]]:
  """Puts each item where it leaves the least room, larger ones first: (row, first place in it)."""
  places, rows = [(0, 0)] * len(sizes), 0
  with_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # rows by the room left in them
  for item in sorted(range(len(sizes)), key=lambda item: -sizes[item]):
    size = sizes[item]
    room = next((room for room in range(size, capacity) if with_room[room]), capacity)
    if room == capacity:
      row, rows = rows, rows + 1
    else:
      row = with_room[room].pop(0)
    places[item] = (row, capacity - room)
    with_room[room - size].append(row)
  return places
