"""Finds frames by their times: a frame of another time would be a wrong one."""

from jaxtyping import Float, Int
import numpy as np

# In seconds. Containers round times to their own clock, so a tick at 1 s may take the frame at
# 0.99999 s.
TOLERANCE = 1e-4


def find(
  times: Float[np.ndarray, "frames"], wanted: Float[np.ndarray, "wanted"]
) -> Int[np.ndarray, "wanted"]:
  """The index of the frame that has each wanted time, in seconds; -1 where none has it.

  times: of the frames, increasing.
  """
  if not len(times):
    return np.full(len(wanted), -1)
  index = nearest(times, wanted)
  return np.where(np.abs(times[index] - wanted) <= TOLERANCE, index, -1)


def nearest(
  times: Float[np.ndarray, "frames"], wanted: Float[np.ndarray, "wanted"]
) -> Int[np.ndarray, "wanted"]:
  """The index of the frame that is nearest to each wanted time; there has to be a frame."""
  after = np.clip(np.searchsorted(times, wanted), 0, len(times) - 1)
  before = np.maximum(after - 1, 0)
  return np.where(np.abs(times[before] - wanted) < np.abs(times[after] - wanted), before, after)
