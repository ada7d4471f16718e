"""Computes the path of a DTW alignment, on the host and for one pair, for reports and notebooks."""

import dataclasses

from jaxtyping import Float
import numpy as np

from vr_jax.rewards import dtw


@dataclasses.dataclass(frozen=True, kw_only=True)
class Alignment:
  """The cheapest path and its distance.

  path: cells (row, column) in order; () if there is no path.
  distance: +inf if there is no path.
  """

  distance: float
  path: tuple[tuple[int, int], ...]


def whole_path(cost: Float[np.ndarray, "len_a len_b"]) -> Alignment:
  """The classic path whose total cost is `dtw.dtw`. Ties go to the diagonal move."""
  total = _table(cost, "classic", free_start=False)
  if not total.size:
    return Alignment(distance=np.inf, path=())
  return _trace(total, "classic", total.shape[1] - 1, free_start=False)


def subsequence_path(cost: Float[np.ndarray, "ref gen"], moves: dtw.Moves = "jump") -> Alignment:
  """The path whose mean cost is `dtw.subsequence_dtw`.

  Ties go to the earliest end and the first move in `dtw.MOVES`.
  """
  total = _table(cost, moves, free_start=True)
  if not total.size or not np.isfinite(total[-1].min()):
    return Alignment(distance=np.inf, path=())
  alignment = _trace(total, moves, int(total[-1].argmin()), free_start=True)
  return dataclasses.replace(alignment, distance=alignment.distance / len(cost))


def _table(
  cost: Float[np.ndarray, "ref gen"], moves: dtw.Moves, *, free_start: bool
) -> Float[np.ndarray, "ref gen"]:
  """The table D(i, j) of dtw.py, but filled forwards and in float64."""
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
  """Traces the path back from a column of the last row."""
  i, j = len(total) - 1, column
  cells = [(i, j)]
  while i > 0 or (j > 0 and not free_start):
    steps = [(i - a, j - b) for a, b in dtw.MOVES[moves] if i >= a and j >= b]
    i, j = min(steps, key=lambda cell: total[cell])
    cells.append((i, j))
  return Alignment(distance=float(total[-1, column]), path=tuple(reversed(cells)))
