"""What an episode found: a frame and a box, in pixels of the video; and the true boxes of frames.

A reply gives a box in numbers of the model's family: pixels of the frame as it was shown, or
thousandths of its sides. `Processor.box_scale` says which numbers the edges of the frame have.
"""

from collections.abc import Callable
import dataclasses
import math

from jaxtyping import Float
import numpy as np

from vr_jax import errors, frame_times, records
from vr_jax.envs import episodes

# Height and width of a frame as shown -> the numbers for its lower and its right edge in a box.
BoxScale = Callable[[episodes.Size], tuple[float, float]]
Corners = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grounding:
  """What an episode found.

  key_frame: index of the frame among those shown; None if none was read.
  description: of the object.
  box: (left, top, right, bottom) in pixels of the video, inside of it; None if none was read.
  problem: why the episode gave no box: a problem of `json_answers`, "outside" if the box lies
    outside of the frame, or "turns" if the second reply is missing; "" if it gave one.
  """

  key_frame: int | None = None
  description: str = ""
  box: Corners | None = None
  problem: str = ""


def to_video(box: Corners, scale: tuple[float, float], size: episodes.Size) -> Corners | None:
  """Converts a box of a reply to pixels of the video; None if it lies outside of the frame.

  A part of it that is beyond the right or the lower edge is cut off.

  scale: the numbers for the lower and the right edge of the frame.
  size: height and width of the video.
  """
  (left, top, right, bottom), (height, width) = box, size
  if left >= scale[1] or top >= scale[0]:
    return None
  right, bottom = min(right, scale[1]), min(bottom, scale[0])
  rows, columns = height / scale[0], width / scale[1]
  return left * columns, top * rows, right * columns, bottom * rows


def to_reply(box: Corners, scale: tuple[float, float], size: episodes.Size) -> Corners:
  """Converts a box in pixels of the video to the numbers of a reply; inverts `to_video`."""
  (left, top, right, bottom), (height, width) = box, size
  rows, columns = scale[0] / height, scale[1] / width
  return left * columns, top * rows, right * columns, bottom * rows


def round_to_reply(
  box: Float[np.ndarray, "4"], scale: tuple[float, float], size: episodes.Size
) -> tuple[int, int, int, int]:
  """`to_reply` in whole numbers: a box inside of the frame that is at least 1 wide and high."""
  left, top, right, bottom = to_reply(tuple(box.tolist()), scale, size)
  left, right = _round_side(left, right, scale[1])
  top, bottom = _round_side(top, bottom, scale[0])
  return left, top, right, bottom


def _round_side(start: float, end: float, edge: float) -> tuple[int, int]:
  low = min(round(start), math.ceil(edge) - 1)
  return low, max(min(round(end), math.ceil(edge)), low + 1)


def boxes_at(
  example: records.Example, times: Float[np.ndarray, "pool"]
) -> Float[np.ndarray, "pool 4"]:
  """The true box of the object in each frame, in pixels of the video; NaN where it isn't visible.

  times: of the frames, in seconds. Each must be that of an annotated frame, since a box of another
    frame would be a wrong one.

  Raises InputError if the example has no track, or a frame has no annotation.
  """
  track = example.object_track
  if track is None:
    raise errors.InputError(
      f"{example.id}: has no masks of the object that the query means; add field 'masks' "
      "(docs/data.md), or choose another recipe"
    )
  times = np.asarray(times, float)
  if not len(track.times):
    raise errors.InputError(f"{example.id}: field 'masks': has no frames")
  found = frame_times.find(track.times, times)
  if np.any(found < 0):
    missing = times[np.argmax(found < 0)][None]
    nearest = track.times[frame_times.nearest(track.times, missing)[0]]
    raise errors.InputError(
      f"{example.id}: field 'masks': has none of the frame at {missing[0]:g} s, the nearest is at "
      f"{nearest:g} s; store the frames that are annotated (config.data.fps)"
    )
  return np.asarray(track.boxes, np.float32)[found]
