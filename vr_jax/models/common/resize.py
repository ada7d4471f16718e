"""Resizing of frames: bicubic with antialiasing on 8-bit pixels, to the bit as either of the libraries that are in use.

transformers resizes with torchvision, or with Pillow where it is asked to (`backend="pil"`). Both weigh pixels by the
same curve and round after each of two passes, but keep the weights in 15 and in 22 bits: about one pixel in two hundred
differs by a level. From version 13 on Pillow also takes rows before columns where that is cheaper, which differs by more.
"""

import math

from jaxtyping import Float, Int, UInt8
import numpy as np
from PIL import Image

SHARPNESS = -0.5  # the parameter of the cubic
SUPPORT = 2  # pixels of the smaller scale that the cubic reaches to each side


def resample(
  frames: UInt8[np.ndarray, "frames height width 3"], height: int, width: int, library: str
) -> UInt8[np.ndarray, "frames new_height new_width 3"]:
  """Each frame at a new size, with the pixels that `library` (a key of RESIZE) would give it."""
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
  """Columns first, then rows, rounded to 8 bits after each: the kernel for 8-bit pictures that PyTorch has on CPUs."""
  if frame.shape[1] != width:
    # Whole rows of memory are weighed at once, so the side to be changed stands first.
    turned = np.ascontiguousarray(frame.transpose(1, 0, 2))
    frame = np.ascontiguousarray(_weigh(turned, width).transpose(1, 0, 2))
  return frame if frame.shape[0] == height else _weigh(frame, height)


def _weigh(
  lines: UInt8[np.ndarray, "old across 3"], size: int
) -> UInt8[np.ndarray, "size across 3"]:
  """Lines of pixels weighed into `size` new ones, in integers."""
  index, weights = _taps(len(lines), size)
  whole, bits = _integers(weights)
  total = np.full((size, *lines.shape[1:]), 1 << (bits - 1), np.int32)  # a half, to round
  for taken, weight in zip(index.T, whole.T, strict=True):
    total += weight[:, None, None] * lines[taken]
  return np.clip(total >> bits, 0, 255).astype(np.uint8)


def _taps(old: int, new: int) -> tuple[Int[np.ndarray, "new taps"], Float[np.ndarray, "new taps"]]:
  """Which old lines each new one is made of, and their weights, which add up to 1.

  A picture that shrinks widens the curve by the same factor (antialiasing); at the border it is cut off.
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
  """Weights as 16-bit integers, and how many of their bits stand behind the point: as many as the largest allows."""
  bits = 0
  while bits < 22 and int(0.5 + weights.max() * (1 << (bits + 1))) < 1 << 15:
    bits += 1
  return np.trunc(weights * (1 << bits) + np.copysign(0.5, weights)).astype(np.int32), bits


RESIZE = {"torchvision": _torchvision, "pillow": _pillow}
