"""What stands below an object that has one: a dark plate with a number in digits, or with a bar that is charged so far."""

from jaxtyping import Bool, Float
import numpy as np

PLATE = (38, 40, 46)
INK = (236, 232, 220)

# As shares of a zone's side.
_WIDTH, _HEIGHT = 0.92, 0.58
_DROP = 0.19  # from the zone's centre down to the plate's
_BLOCK = 0.09  # a digit is 3 x 5 blocks, a block from the next digit
_MARGIN = 0.05  # of the plate around the bar

# Of each digit the five rows, three bits each.
_GLYPHS = (0o75557, 0o26227, 0o71747, 0o71717, 0o55711, 0o74717, 0o74757, 0o71111, 0o75757, 0o75717)


def draw(
  image: Float[np.ndarray, "height width 3"],
  centre: Float[np.ndarray, "2"],
  side: float,
  *,
  label: str,
  charge: float | None,
) -> None:
  """Draws the display of the zone around `centre` (x, y), `side` pixels wide, into an image of 0..255.

  label: digits, at most two; "" for none. charge: in percent; None for none.
  """
  x, y = centre[0], centre[1] + _DROP * side
  left, top = round(x - _WIDTH * side / 2), round(y - _HEIGHT * side / 2)
  width, height = round(_WIDTH * side), round(_HEIGHT * side)
  plate = image[top : top + height, left : left + width]
  plate[:] = PLATE
  if charge is not None:
    margin = round(_MARGIN * side)
    bar = plate[margin:-margin, margin:-margin]
    # How much of each column is charged: the last one in part, so that the bar is exact below a pixel.
    share = np.clip(charge / 100 * bar.shape[1] - np.arange(bar.shape[1]), 0, 1)
    bar += share[:, None] * (np.float32(INK) - bar)
  if label:
    block = max(1, round(_BLOCK * side))
    mask = np.kron(_bitmap(label), np.ones((block, block), bool))
    down, across = (plate.shape[0] - mask.shape[0]) // 2, (plate.shape[1] - mask.shape[1]) // 2
    plate[down : down + mask.shape[0], across : across + mask.shape[1]][mask] = INK


def _bitmap(label: str) -> Bool[np.ndarray, "5 blocks"]:
  """Which blocks of a label are inked; there is one between two digits."""
  glyphs = np.array([_GLYPHS[int(digit)] for digit in label])
  shifts = 3 * np.arange(4, -1, -1)[:, None, None] + np.array([2, 1, 0])
  bits = (glyphs[:, None] >> shifts & 1).astype(bool)
  return np.pad(bits, ((0, 0), (0, 0), (0, 1))).reshape(5, -1)[:, :-1]
