"""The path behind a DTW distance, on the host, for one pair: what reports and notebooks draw."""

import dataclasses

from jaxtyping import Float
import numpy as np

from vr_jax.rewards import dtw


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alignment:
  """Cells (row, column) of the cheapest path in order and its distance; without a path: () and +inf."""

  distance: float
  path: tuple[tuple[int, int], ...]


def whole_path(cost: Float[np.ndarray, "len_a len_b"]) -> Alignment:
  """The classic path that `dtw.dtw` gives the total cost of; ties go to the diagonal."""
  total = _table(cost, "classic", free_start=False)
  if not total.size:
    return Alignment(distance=np.inf, path=())
  return _trace(total, "classic", total.shape[1] - 1, free_start=False)


def subsequence_path(cost: Float[np.ndarray, "ref gen"], moves: dtw.Moves = "jump") -> Alignment:
  """The path that `dtw.subsequence_dtw` gives the mean cost of; ties go to the earliest end and the first move."""
  total = _table(cost, moves, free_start=True)
  if not total.size or not np.isfinite(total[-1].min()):
    return Alignment(distance=np.inf, path=())
  found = _trace(total, moves, int(total[-1].argmin()), free_start=True)
  return dataclasses.replace(found, distance=found.distance / len(cost))


def _table(
  cost: Float[np.ndarray, "ref gen"], moves: dtw.Moves, *, free_start: bool
) -> Float[np.ndarray, "ref gen"]:
  """D(i, j), in float64."""
  total = np.full(cost.shape, np.inf)
  for i, j in np.ndindex(cost.shape):
    before = [total[i - a, j - b] for a, b in dtw.MOVES[moves] if i >= a and j >= b]
    if i == 0 and (free_start or j == 0):
      before = [0.0]
    total[i, j] = cost[i, j] + min(before, default=np.inf)
  return total


def _trace(
  total: Float[np.ndarray, "ref gen"], moves: dtw.Moves, column: int, *, free_start: bool
) -> Alignment:
  i, j = len(total) - 1, column
  cells = [(i, j)]
  while i > 0 or (j > 0 and not free_start):
    steps = [(i - a, j - b) for a, b in dtw.MOVES[moves] if i >= a and j >= b]
    i, j = min(steps, key=lambda cell: total[cell])
    cells.append((i, j))
  return Alignment(distance=float(total[-1, column]), path=tuple(reversed(cells)))
