"""Draws the display below an object: a dark plate with a number, or with a charge bar."""

from jaxtyping import Bool, Float
import numpy as np

PLATE = (38, 40, 46)
INK = (236, 232, 220)

# As fractions of a zone's side.
_WIDTH, _HEIGHT = 0.92, 0.58
_DROP = 0.19  # from the zone's centre down to the plate's centre
_BLOCK = 0.09  # a digit has 3 x 5 blocks; digits are one block apart
_MARGIN = 0.05  # between the bar and the edge of the plate

# Five rows a digit, one octal digit (three bits) a row.
_GLYPHS = (0o75557, 0o26227, 0o71747, 0o71717, 0o55711, 0o74717, 0o74757, 0o71111, 0o75757, 0o75717)


def draw(
  image: Float[np.ndarray, "height width 3"],
  centre: Float[np.ndarray, "2"],
  side: float,
  *,
  label: str,
  charge: float | None,
) -> None:
  """Draws a display into an image.

  image: values in [0, 255]; changed in place.
  centre, side: (x, y) and side of the display's zone, in pixels.
  label: at most two digits; "" for none.
  charge: in percent; None for none.
  """
  x, y = centre[0], centre[1] + _DROP * side
  left, top = round(x - _WIDTH * side / 2), round(y - _HEIGHT * side / 2)
  width, height = round(_WIDTH * side), round(_HEIGHT * side)
  plate = image[top : top + height, left : left + width]
  plate[:] = PLATE
  if charge is not None:
    margin = round(_MARGIN * side)
    bar = plate[margin:-margin, margin:-margin]
    # The filled fraction of each pixel column. The last column may be filled in part, so that the
    # bar's length is exact to less than a pixel.
    fill = np.clip(charge / 100 * bar.shape[1] - np.arange(bar.shape[1]), 0, 1)
    bar += fill[:, None] * (np.array(INK, np.float32) - bar)
  if label:
    block = max(1, round(_BLOCK * side))
    mask = np.kron(_bitmap(label), np.ones((block, block), bool))
    down, across = (plate.shape[0] - mask.shape[0]) // 2, (plate.shape[1] - mask.shape[1]) // 2
    plate[down : down + mask.shape[0], across : across + mask.shape[1]][mask] = INK


def _bitmap(label: str) -> Bool[np.ndarray, "5 blocks"]:
  """The bitmap of a label, with an empty column between digits."""
  glyphs = np.array([_GLYPHS[int(digit)] for digit in label])
  shifts = 3 * np.arange(4, -1, -1)[:, None, None] + np.array([2, 1, 0])
  bits = (glyphs[:, None] >> shifts & 1).astype(bool)
  return np.pad(bits, ((0, 0), (0, 0), (0, 1))).reshape(5, -1)[:, :-1]
