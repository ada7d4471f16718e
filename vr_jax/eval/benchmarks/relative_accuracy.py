"""Mean relative accuracy (MRA) of a number, as VSI-Bench and Video-R1 compute it.

MRA is the fraction of the thresholds θ = .50, .55, …, .95 for which |p - g| / g is small enough:
at most 1 - θ in VSI-Bench, less than 1 - θ in Video-R1, so 3 for 4 scores .6 or .5.

Both compare floating-point numbers, and where the error falls on a threshold, rounding decides: 8
for 10 scores .6 in float64, though .2 is at most 1 - .80. These functions round as the programs do,
in float64 and float32, so that scores stay comparable.

Source: VSI-Bench (arXiv 2412.14171), section 3, and its task in lmms-eval; Video-R1 (arXiv
2503.21776), src/eval_bench.py.
"""

import math

import numpy as np

from vr_jax.errors import InputError

# The same ten numbers, as either program makes them.
_VSI_TOLERATED = 1 - np.linspace(0.5, 0.95, 10)
_VIDEO_R1_TOLERATED = np.float32(1) - (0.5 + 0.05 * np.arange(10)).astype(np.float32)
_VIDEO_R1_FLOOR = np.float32(1e-8)


def mean_relative_accuracy(given: float, right: float) -> float:
  """VSI-Bench's MRA, in [0, 1]; 0 for a number that is not finite. Raises InputError if right is 0.

  Like VSI-Bench's, for numbers above 0; for others, relative to the size of the right one.
  """
  _check(right)
  if not math.isfinite(given):
    return 0.0
  return float((abs(given - right) / abs(right) <= _VSI_TOLERATED).mean())


def mean_relative_accuracy_video_r1(given: float, right: float) -> float:
  """Video-R1's MRA, in [0, 1], for the same arguments."""
  _check(right)
  with np.errstate(over="ignore", invalid="ignore"):
    p, g = np.float32(given), np.float32(right)
    error = np.abs(p - g) / (np.abs(g) + _VIDEO_R1_FLOOR)
  return float((error < _VIDEO_R1_TOLERATED).mean())


def _check(right: float) -> None:
  if right == 0 or not math.isfinite(right):
    raise InputError(f"answer {right:g}: relative accuracy needs a number other than 0")
