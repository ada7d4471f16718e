"""Dynamic time warping: `vr_jax.rewards.dtw` against the C code of dtaidistance, side by side.

    python -m benchmarks.dtw

4,096 pairs with 32 x 32 float32 costs. dtaidistance takes series and not costs: it gets 64 series
and 64 others of length 32, whose 64 x 64 pairs have |a - b| as their costs (its inner distance
"euclidean", which sums |a - b| and takes no root). Its fastest function for one thread is
`distance_matrix_fast` over a block, 3 to 4 times as fast as `distance_fast` pair by pair; ours is
compared with that. It reads 32 kB of series where ours reads 16 MB of costs, which it computes on
the way: that saves it memory traffic and costs it a subtraction a cell. Its time with OpenMP
threads is printed too. Our loops also run on one thread.

Sides run in turn, and a ratio is taken within each round, so that other work on the machine affects
both. Prints one JSON line: milliseconds of each side, and how many times faster ours are (medians
over rounds). The goals are 4 for `dtw` and 8 for `subsequence_dtw` with jump moves. dtaidistance
has no such moves, so the latter is compared with its classic distances as well.
"""

from collections.abc import Callable
import json
import statistics
import time

from dtaidistance import dtw as reference
import jax
import jax.numpy as jnp
import numpy as np

from vr_jax.rewards import dtw

SERIES, LENGTH = 64, 32
ROUNDS, REPEATS = 11, 9
GOALS = {"dtw": 4.0, "subsequence_dtw": 8.0}


def jump_distances(cost: np.ndarray) -> np.ndarray:
  """The jump alignment in NumPy, as a reference for our results."""
  total = cost[:, 0].astype(np.float64)
  for row in range(1, cost.shape[1]):
    moved = np.pad(total, ((0, 0), (2, 0)), constant_values=np.inf)
    total = cost[:, row] + np.minimum(moved[:, 1:-1], moved[:, :-2])
  return total.min(axis=1) / cost.shape[1]


def milliseconds(side: Callable[[], object]) -> list[float]:
  """Times a few runs in a row, after one that warms the caches."""
  jax.block_until_ready(side())
  times = []
  for _ in range(REPEATS):
    begun = time.perf_counter()
    jax.block_until_ready(side())
    times.append((time.perf_counter() - begun) * 1e3)
  return times


def main() -> None:
  """Compares the results of the sides, times them, and prints the JSON line."""
  rng = np.random.default_rng(0)
  a, b = rng.random((2, SERIES, LENGTH)).astype(np.float32)
  cost = jnp.asarray(np.abs(a[:, None, :, None] - b[None, :, None, :]).reshape(-1, LENGTH, LENGTH))
  lengths = jnp.full(len(cost), LENGTH, jnp.int32)
  series = np.concatenate([a, b]).astype(np.float64)
  block = ((0, SERIES), (SERIES, 2 * SERIES))

  def matrix(parallel: bool) -> object:
    return reference.distance_matrix_fast(
      series, block=block, compact=True, parallel=parallel, inner_dist="euclidean"
    )

  sides = {
    "dtw": lambda: dtw.dtw(cost, lengths, lengths),
    "subsequence_dtw": lambda: dtw.subsequence_dtw(cost, lengths, lengths, "jump"),
    "dtaidistance": lambda: matrix(parallel=False),
    "dtaidistance_threads": lambda: matrix(parallel=True),
  }
  np.testing.assert_allclose(sides["dtw"](), sides["dtaidistance"](), rtol=1e-5)
  np.testing.assert_allclose(
    sides["subsequence_dtw"](), jump_distances(np.asarray(cost)), rtol=1e-5
  )
  rounds = [
    {name: statistics.median(milliseconds(side)) for name, side in sides.items()}
    for _ in range(ROUNDS)
  ]
  medians = {name: statistics.median(times[name] for times in rounds) for name in sides}
  ratios = {
    name: statistics.median(times["dtaidistance"] / times[name] for times in rounds)
    for name in GOALS
  }
  result = {
    "benchmark": "dtw",
    "milliseconds": {name: round(value, 2) for name, value in medians.items()},
    "ratio": {name: round(value, 2) for name, value in ratios.items()},
    "goal": GOALS,
    "met": all(ratios[name] >= goal for name, goal in GOALS.items()),
  }
  print(json.dumps(result))


if __name__ == "__main__":
  main()
