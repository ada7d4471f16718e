"""A clip of one file that is not in a frame store, in memory, for one question."""

from collections.abc import Sequence
import dataclasses

from jaxtyping import Float, UInt8
import numpy as np
import simplejpeg

from vr_jax import records
from vr_jax.data import sampling, video_file


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoClip:
  """The frames that a rule takes from a file, as JPEGs.

  timestamps: in seconds, as in a frame store.
  """

  jpegs: tuple[bytes, ...]
  timestamps: Float[np.ndarray, "frames"]

  def __len__(self) -> int:
    """The number of frames."""
    return len(self.jpegs)

  def read(self, frames: Sequence[int]) -> UInt8[np.ndarray, "frames height width 3"]:
    """Decodes some frames, RGB, by their position in this clip."""
    return np.stack(
      [simplejpeg.decode_jpeg(self.jpegs[frame], colorspace="RGB") for frame in frames]
    )


def take(
  extracted: video_file.ExtractedVideo, span: records.Span, rule: sampling.Rule, *, where: str
) -> VideoClip:
  """Keeps the frames that the rule takes of a span.

  where: names the video in errors.

  Raises:
    InputError: the span has no frame, or fewer than the rule requires.
  """
  indices = sampling.choose(extracted.timestamps, extracted.ends, span, rule, where=where)
  return VideoClip(
    jpegs=tuple(extracted.jpegs[index] for index in indices),
    timestamps=sampling.shown_times(extracted.timestamps, indices, span),
  )
