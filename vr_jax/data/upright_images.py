"""Converts a decoded frame to an upright RGB image with square pixels, and says how large it is."""

import math
from typing import Any

import av
import av.sidedata.sidedata
import av.video.reformatter
from jaxtyping import UInt8
import numpy as np

from vr_jax.data import video_clock

# Frames are kept with up to so many times the pixels that they are shown with. Twice as wide and
# high, they are hardly softer where they are scaled down a second time.
_KEPT_PER_SHOWN = 4


def upright_image(
  timed: video_clock.TimedFrame,
  reformatter: av.video.reformatter.VideoReformatter,
  max_side: float,
  *,
  size: tuple[int, int],
) -> UInt8[np.ndarray, "height width 3"]:
  """Converts a frame to upright RGB with square pixels.

  size: (width, height) in pixels that the frame is fitted into; (0, 0) scales to `max_side`
    instead.
  """
  frame = timed.frame
  sideways, flip_x, flip_y = _orientation(frame)
  shown = shown_size(timed)
  fitted = scaled(shown, min(1.0, max_side / max(shown)))
  size = size if all(size) else fitted
  if size != fitted:
    fitted = scaled(shown, min(size[0] / shown[0], size[1] / shown[1]))
    if all(abs(a - b) <= 1 for a, b in zip(size, fitted, strict=True)):
      fitted = size  # the same shape, up to whole pixels
  width, height = fitted[::-1] if sideways else fitted
  rgb = reformatter.reformat(frame, width, height, format="rgb24", interpolation="AREA")
  image = rgb.to_ndarray()
  image = image.transpose(1, 0, 2) if sideways else image
  image = np.ascontiguousarray(image[:: -1 if flip_y else 1, :: -1 if flip_x else 1])
  return image if size == fitted else _with_bars(image, size)


def pixels_to_keep(shown: int) -> int:
  """The `kept_pixels` of frames that are shown with `shown` pixels at most."""
  return _KEPT_PER_SHOWN * shown


def longest_side(
  shown: tuple[float, float], max_side: int, kept_pixels: int | None = None
) -> float:
  """The longer side in pixels that a frame is kept with, at most. shown: its width and height."""
  if kept_pixels is None:
    return max_side
  return min(max_side, max(shown) * math.sqrt(kept_pixels / (shown[0] * shown[1])))


def shown_size(timed: video_clock.TimedFrame) -> tuple[float, float]:
  """(width, height) of an upright frame with square pixels."""
  width, height = timed.frame.width * timed.pixel_aspect, float(timed.frame.height)
  return (height, width) if _orientation(timed.frame)[0] else (width, height)


def scaled(shown: tuple[float, float], scale: float) -> tuple[int, int]:
  """Whole pixels of a (width, height) that is scaled."""
  return max(1, round(shown[0] * scale)), max(1, round(shown[1] * scale))


def _with_bars(
  image: UInt8[np.ndarray, "height width 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "bar_height bar_width 3"]:
  """Puts an image in the middle of a black one. size: (width, height), at least the image's."""
  height, width, _ = image.shape
  top, left = (size[1] - height) // 2, (size[0] - width) // 2
  canvas = np.zeros((size[1], size[0], 3), np.uint8)
  canvas[top : top + height, left : left + width] = image
  return canvas


def _orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool]:
  """How the file says that a frame is to be shown: (swap axes, then mirror x, mirror y)."""
  a, b, c, d = matrix(frame)
  if abs(b) + abs(c) < abs(a) + abs(d):
    return False, a < 0, d < 0
  return True, c < 0, b < 0


def matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
  """Of how a frame is turned: a point (x, y) of it is shown at (a x + c y, b x + d y)."""
  side_data: Any = frame.side_data  # PyAV's stub knows names of types alone as keys
  matrix = side_data.get(av.sidedata.sidedata.Type.DISPLAYMATRIX)
  if matrix is None:
    return 1, 0, 0, 1
  a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
  return a, b, c, d
