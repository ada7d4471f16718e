"""Top-p, top-k and min-p in NumPy: plain loops over the sorted tokens of each row."""

import numpy as np


def kept(weights, *, top_p=1.0, top_k=0, min_p=0.0):
  """Which tokens may be drawn, bool: min-p, then top-k, then top-p of what is left. In float64."""
  found = np.zeros(weights.shape, bool)
  for place in np.ndindex(weights.shape[:-1]):
    row = np.asarray(weights[place], np.float64)
    row = np.where(row >= min_p * row.max(), row, 0)
    if 0 < top_k < len(row):
      row = np.where(row >= np.sort(row)[-top_k], row, 0)
    found[place] = (row >= _edge(row, top_p * row.sum())) & (row > 0)
  return found


def _edge(row, mass):
  """The weight of the last of the most likely tokens until their mass reaches `mass`."""
  total, edge = 0.0, np.inf
  for value in sorted(row, reverse=True):
    edge = value
    total += value
    if total >= mass:
      break
  return edge
