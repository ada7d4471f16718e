"""Draws antialiased shapes from signed distances.

Drawings are cached by shape, size and sub-pixel position.
"""

import dataclasses
import functools

from jaxtyping import Float
import numpy as np

# As fractions of the shape's radius.
_ROUNDING = 0.06  # radius of the rounded corners
_RIM = 0.09  # width of the darker outline
_SHADOW = 0.16  # offset and softness of the shadow


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sprite:
  """A square drawing around an object's centre.

  alpha: fraction of each pixel that the shape covers, in [0, 1].
  light: factor on the shape's colour, from 0 to a little above 1: darker rim, lighter top left.
  shadow: how much darker the background is, in [0, 1].
  """

  alpha: Float[np.ndarray, "height width"]
  light: Float[np.ndarray, "height width"]
  shadow: Float[np.ndarray, "height width"]


def shape_sprite(shape: str, diameter: float, x: float, y: float) -> Sprite:
  """Draws a shape of config.SHAPES.

  diameter: in pixels.
  x, y: position of the centre within the middle pixel, in [0, 1). Rounded to a quarter of a pixel,
    so that slow motion looks smooth and drawings can be shared.
  """
  return _sprite(shape, diameter, round(4 * x) / 4, round(4 * y) / 4)


@functools.lru_cache(maxsize=512)
def _sprite(shape: str, diameter: float, x: float, y: float) -> Sprite:
  radius = diameter / 2
  reach = int(np.ceil(radius * (1 + 2 * _SHADOW))) + 2
  axis = (np.arange(2 * reach, dtype=np.float32) + 0.5 - reach) / radius
  across, down = np.meshgrid(axis - x / radius, axis - y / radius)
  distance = _distance(shape, across, down)
  alpha = np.clip(0.5 - radius * distance, 0, 1)
  inner = np.clip(0.5 - radius * (distance + _RIM), 0, 1)
  shade = 1.04 - 0.05 * (across + down)
  shadow_distance = _distance(shape, across - 0.3 * _SHADOW, down - _SHADOW)
  shadow = 0.28 * np.clip(1 - (shadow_distance + _SHADOW / 2) / (1.5 * _SHADOW), 0, 1)
  return Sprite(
    alpha=alpha.astype(np.float32),
    light=(inner * shade + (1 - inner) * 0.66).astype(np.float32),
    shadow=shadow.astype(np.float32),
  )


def _distance(
  shape: str, x: Float[np.ndarray, "height width"], y: Float[np.ndarray, "height width"]
) -> Float[np.ndarray, "height width"]:
  """Signed distance to a shape of radius 1 around the origin: negative inside."""
  if shape == "circle":
    return np.hypot(x, y) - 0.94
  return _polygon_distance(_corners(shape), x, y) - _ROUNDING


def _polygon_distance(
  corners: Float[np.ndarray, "corners 2"],
  x: Float[np.ndarray, "height width"],
  y: Float[np.ndarray, "height width"],
) -> Float[np.ndarray, "height width"]:
  """Signed distance to a simple polygon: negative inside.

  The sign comes from how many edges a ray to the right crosses.
  """
  nearest = np.full(x.shape, np.inf, np.float32)
  inside = np.zeros(x.shape, bool)
  for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
    dx, dy = bx - ax, by - ay
    along = np.clip(((x - ax) * dx + (y - ay) * dy) / (dx * dx + dy * dy), 0, 1)
    nearest = np.minimum(nearest, np.hypot(x - ax - along * dx, y - ay - along * dy))
    if ay != by:
      inside ^= ((ay > y) != (by > y)) & (x < ax + (y - ay) * dx / dy)
  return np.where(inside, -nearest, nearest)


@functools.cache
def _corners(shape: str) -> Float[np.ndarray, "corners 2"]:
  """Corners of a polygon that, rounded, about fits the unit circle; y points down."""
  arm, half = 0.88, 0.27
  corners = {
    "square": [(-0.76, -0.76), (0.76, -0.76), (0.76, 0.76), (-0.76, 0.76)],
    "triangle": [(0, -0.92), (0.94, 0.74), (-0.94, 0.74)],
    "diamond": [(0, -0.96), (0.8, 0), (0, 0.96), (-0.8, 0)],
    "cross": [
      (turn_x * across, turn_y * down)
      for turn_x, turn_y, order in [(1, 1, 1), (-1, 1, -1), (-1, -1, 1), (1, -1, -1)]
      for across, down in [(arm, half), (half, half), (half, arm)][::order]
    ],
    "star": [
      (radius * np.sin(turn * np.pi / 5), 0.06 - radius * np.cos(turn * np.pi / 5))
      for turn in range(10)
      for radius in [0.98 if turn % 2 == 0 else 0.46]
    ],
  }
  return np.array(corners[shape], np.float32)
