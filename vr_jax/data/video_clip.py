"""Loads one video or picture file into memory, cut as ingestion would cut it, for one question."""

from collections.abc import Sequence
import dataclasses
from pathlib import Path

from jaxtyping import Float, UInt8
import numpy as np
import simplejpeg

from vr_jax import records
from vr_jax.data import guarded_reader, sampling
from vr_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoClip:
  """The frames that a rule takes from a file, as JPEGs.

  timestamps, duration: in seconds, as in a frame store.
  """

  jpegs: tuple[bytes, ...]
  timestamps: Float[np.ndarray, "frames"]
  duration: float

  def __len__(self) -> int:
    """The number of frames."""
    return len(self.jpegs)

  def read(self, frames: Sequence[int]) -> UInt8[np.ndarray, "frames height width 3"]:
    """Decodes some frames, RGB, by their position in this clip."""
    return np.stack(
      [simplejpeg.decode_jpeg(self.jpegs[frame], colorspace="RGB") for frame in frames]
    )


def load(
  path: Path,
  *,
  fps: float,
  quality: int,
  max_side: int,
  rule: sampling.Rule,
  limits: guarded_reader.DecodeLimits = guarded_reader.DecodeLimits(),
) -> VideoClip:
  """Decodes a whole file, as `ingest` would, and keeps the frames that the rule takes.

  Raises:
    InputError: the file does not exist, is bad (see `video_file.cut`, `picture_file.cut`), breaks
      a limit, or is too short for the rule.
  """
  if not path.is_file():
    raise InputError(f"{path}: no such file")
  sampling.check_rate(rule, fps)
  cut = guarded_reader.cut(path, fps=fps, quality=quality, max_side=max_side, limits=limits)
  span = records.Span(start=0.0, end=cut.duration)
  indices = sampling.choose(cut.timestamps, cut.ends, span, rule, where=str(path))
  return VideoClip(
    jpegs=tuple(cut.jpegs[index] for index in indices),
    timestamps=sampling.shown_times(cut.timestamps, indices, span),
    duration=cut.duration,
  )
