"""Resizing of frames: antialiased bicubic on 8-bit pixels, bit for bit as torchvision or Pillow.

transformers resizes with torchvision, or with Pillow if it is asked to (`backend="pil"`). Both use
the same filter and round after each of two passes, but torchvision keeps weights in 15 bits and
Pillow in 22: about one pixel in two hundred differs by one level. From version 13 on Pillow also
resizes rows before columns where that is cheaper, which differs by more.
"""

import math

from jaxtyping import Float, Int, UInt8
import numpy as np
from PIL import Image

SHARPNESS = -0.5  # the parameter of the cubic
SUPPORT = 2  # pixels of the smaller image that the cubic reaches to each side
_SUMS = 1 << 17  # that are computed at once: they stay in a core's cache


def resample(
  frames: UInt8[np.ndarray, "frames height width 3"], height: int, width: int, library: str
) -> UInt8[np.ndarray, "frames new_height new_width 3"]:
  """Resizes frames as `library` (a key of RESIZE) does."""
  if frames.shape[1:3] == (height, width):
    return frames
  return np.stack([RESIZE[library](frame, height, width) for frame in frames])


def _pillow(
  frame: UInt8[np.ndarray, "height width 3"], height: int, width: int
) -> UInt8[np.ndarray, "new_height new_width 3"]:
  return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))


def _torchvision(
  frame: UInt8[np.ndarray, "height width 3"], height: int, width: int
) -> UInt8[np.ndarray, "new_height new_width 3"]:
  """Resizes columns, then rows, rounded to 8 bits after each, as PyTorch's CPU kernel does."""
  if frame.shape[1] != width:
    # The axis to be resized comes first, so that whole rows of memory are weighted at once.
    frame = _transposed(_weigh(_transposed(frame), width))
  return frame if frame.shape[0] == height else _weigh(frame, height)


def _transposed(
  frame: UInt8[np.ndarray, "height width 3"],
) -> UInt8[np.ndarray, "width height 3"]:
  """Swaps rows and columns. Pixels are copied as one item each, in half of the time."""
  height, width, _ = frame.shape
  pixels = np.ascontiguousarray(frame).view("V3")[..., 0]
  return np.ascontiguousarray(pixels.T).view(np.uint8).reshape(width, height, 3)


def _weigh(
  lines: UInt8[np.ndarray, "old across 3"], size: int
) -> UInt8[np.ndarray, "size across 3"]:
  """Resizes the first axis to `size` lines, in integer arithmetic."""
  index, weights = _taps(len(lines), size)
  whole, bits = _integers(weights)
  flat = lines.reshape(len(lines), -1)
  result = np.empty((size, flat.shape[1]), np.uint8)
  step = max(1, _SUMS // flat.shape[1])
  for start in range(0, size, step):
    rows = slice(start, start + step)
    total = np.full(result[rows].shape, 1 << (bits - 1), np.int32)  # a half, to round
    product = np.empty_like(total)
    for taken, weight in zip(index[rows].T, whole[rows].T, strict=True):
      total += np.multiply(flat[taken], weight[:, None], out=product)
    result[rows] = np.clip(total >> bits, 0, 255, out=total)
  return result.reshape(size, *lines.shape[1:])


def _taps(old: int, new: int) -> tuple[Int[np.ndarray, "new taps"], Float[np.ndarray, "new taps"]]:
  """The old lines that each new line is computed from, and their weights, which add up to 1.

  For a smaller image the filter is widened by the same factor (antialiasing); at the border it is
  cut off.
  """
  scale = old / new
  stretch = max(scale, 1.0)
  centre = scale * (np.arange(new) + 0.5)
  first = np.maximum((centre - SUPPORT * stretch + 0.5).astype(np.int64), 0)
  last = np.minimum((centre + SUPPORT * stretch + 0.5).astype(np.int64), old)
  index = first[:, None] + np.arange(math.ceil((last - first).max()))
  weights = _cubic((index - centre[:, None] + 0.5) / stretch)
  weights = np.where(index < last[:, None], weights, 0.0)
  return np.minimum(index, old - 1), weights / weights.sum(axis=1, keepdims=True)


def _cubic(x: Float[np.ndarray, "new taps"]) -> Float[np.ndarray, "new taps"]:
  x, a = np.abs(x), SHARPNESS
  near = ((a + 2) * x - (a + 3)) * x * x + 1
  far = (((x - 5) * x + 8) * x - 4) * a
  return np.where(x < 1, near, np.where(x < SUPPORT, far, 0.0))


def _integers(weights: Float[np.ndarray, "new taps"]) -> tuple[Int[np.ndarray, "new taps"], int]:
  """Converts weights to 16-bit fixed point; returns them and their number of fractional bits.

  There are as many fractional bits as the largest weight allows.
  """
  bits = 0
  while bits < 22 and int(0.5 + weights.max() * (1 << (bits + 1))) < 1 << 15:
    bits += 1
  return np.trunc(weights * (1 << bits) + np.copysign(0.5, weights)).astype(np.int32), bits


RESIZE = {"torchvision": _torchvision, "pillow": _pillow}
