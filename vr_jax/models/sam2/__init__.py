"""SAM2 and SAM2.1: masks of prompted objects over a video.

    segmenter = sam2.load("sam2.1-hiera-large")
    box = sam2.BoxPrompt(object=1, frame=12, box=(40, 30, 200, 180))
    tracked = sam2.track(segmenter, frames, [box])

Source: SAM 2, arXiv 2408.00714; details that the paper leaves out from transformers' Sam2Video.
"""

from vr_jax.models.sam2.config import Sam2Config, released, smallest
from vr_jax.models.sam2.prompts import (
  BoxPrompt,
  Frames,
  LazyFrames,
  MaskPrompt,
  PointPrompt,
  Prompt,
)
from vr_jax.models.sam2.segmenter import (
  MaskChunk,
  Segmenter,
  TrackedMasks,
  load,
  save,
  track,
  track_chunks,
  track_videos,
)

__all__ = [
  "BoxPrompt",
  "Frames",
  "LazyFrames",
  "MaskChunk",
  "MaskPrompt",
  "PointPrompt",
  "Prompt",
  "Sam2Config",
  "Segmenter",
  "TrackedMasks",
  "load",
  "released",
  "save",
  "smallest",
  "track",
  "track_chunks",
  "track_videos",
]
