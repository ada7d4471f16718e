"""Follows a box in each of several videos with SAM2; keeps the masks in run-length form."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

from vr_jax import run_length
from vr_jax.models import sam2

# The masks of an object by the frame's index; None for a mask without a pixel.
FrameMasks: TypeAlias = dict[int, run_length.RunLength | None]


def follow(
  segmenter: sam2.Segmenter,
  videos: Sequence[sam2.LazyFrames],
  prompts: Sequence[sam2.BoxPrompt],
  *,
  sizes: Sequence[tuple[int, int]] | None = None,
  fresh_reverse: bool = False,
  on_progress: Callable[[int, int], None] | None = None,
) -> list[FrameMasks]:
  """Follows each box from its frame to both ends of its video; all at the same time.

  Frames are read some at a time, so that memory hardly grows with the videos.

  videos, prompts: of the same number; a video stands once for each of its boxes.
  sizes: (height, width) of the masks of each; None: the frames' own.
  on_progress: gets the number of frames done and of all.

  Returns the masks of each box in all frames.
  """
  found: list[FrameMasks] = [{} for _ in videos]
  chunks = sam2.track_chunks(
    segmenter,
    videos,
    [[prompt] for prompt in prompts],
    sizes=sizes,
    fresh_reverse=fresh_reverse,
    on_progress=on_progress,
  )
  for chunk in chunks:
    for frame, mask in zip(chunk.frames.tolist(), chunk.masks[0], strict=True):
      found[chunk.video][frame] = run_length.encode(mask)
  return found
