"""How often intervals of benchmarks' numbers hold the true value, in simulations of known truth.

    python -m benchmarks.interval_coverage

Videos have a probability of right answers each, drawn from a beta distribution, so that answers
about one video are correlated by ICC. Sizes are those of public benchmarks; the number of questions
of a video varies evenly from 1 to twice the mean less 1. Prints a table: `percentile` are the 2.5
and 97.5 % quantiles of the draws, `ours` the interval of `vr_jax.eval.benchmarks.statistics`, and
`independent` mean ± 1.96 standard errors as if questions were independent (of a mean over tasks,
the standard errors of the tasks added in squares).

Last lines: the change between two policies without a true difference, whose p-value of sign flips
should be below .05 in 5 % of cases.
"""

from collections.abc import Sequence
import dataclasses

from jaxtyping import Float
import numpy as np
from scipy import stats

from vr_jax.eval.benchmarks import aggregation, group_sums, statistics

ACCURACY = 0.6


@dataclasses.dataclass(frozen=True, kw_only=True)
class CoverageCase:
  """A benchmark: `videos` with `questions` each on average, of `tasks` that are averaged.

  nested: each video belongs to one task, else its questions are spread over all.
  """

  name: str
  videos: int
  questions: int
  tasks: int = 1
  nested: bool = True


CASES = (
  CoverageCase(name="Video-MME, over questions", videos=900, questions=3),
  CoverageCase(name="TempCompass, multiple choice", videos=207, questions=8),
  CoverageCase(name="LVBench, over questions", videos=103, questions=15),
  CoverageCase(name="VSI-Bench, mean of 8 tasks", videos=288, questions=16, tasks=8, nested=False),
  CoverageCase(name="MLVU test, mean of 9 tasks", videos=243, questions=2, tasks=9),
  CoverageCase(name="mean of 9 tasks, 5 videos each", videos=45, questions=5, tasks=9),
  CoverageCase(name="30 videos", videos=30, questions=5),
  CoverageCase(name="20 videos", videos=20, questions=5),
  CoverageCase(name="10 videos", videos=10, questions=5),
)
CORRELATIONS = (0.0, 0.1, 0.3)


def coverage(
  case: CoverageCase, correlation: float, *, repeats: int = 2000, draws: int = 1000, seed: int = 0
) -> dict[str, float]:
  """The share of simulated evaluations whose interval holds the true value, by kind of interval."""
  rng = np.random.default_rng(seed)
  nest = np.arange(case.videos) % case.tasks if case.nested else np.zeros(case.videos, int)
  truth = np.linspace(ACCURACY - 0.3, ACCURACY + 0.3, case.tasks) if case.tasks > 1 else [ACCURACY]
  sizes = _sizes(rng, case, nest)
  right = _simulate(rng, sizes, np.asarray(truth), correlation, repeats)
  groups = [f"{repeat}/{task}" for repeat in range(repeats) for task in range(case.tasks)]
  sums = group_sums.GroupSums(
    groups=tuple(groups),
    clusters=tuple(map(str, range(case.videos))),
    sums=right.transpose(1, 0, 2).reshape(case.videos, -1),
    counts=np.tile(sizes, repeats),
    nest=nest,
  )
  drawn = np.concatenate(
    [
      _average(sums.means(weights), repeats)
      for weights in statistics.resample_clusters(nest, draws, seed)
    ]
  )
  means = right.sum(axis=1) / sizes.sum(axis=0)
  found = {
    "percentile": np.quantile(drawn, (0.025, 0.975), axis=0).T,
    "ours": np.array(
      [
        statistics.interval_of_draws(column, case.videos, int(nest.max()) + 1)[:2]
        for column in drawn.T
      ]
    ),
    "independent": _as_if_independent(means, sizes.sum(axis=0)),
  }
  value = float(np.mean(truth))
  return {
    name: float(((limits[:, 0] <= value) & (value <= limits[:, 1])).mean())
    for name, limits in found.items()
  }


def false_changes(
  case: CoverageCase, correlation: float, *, repeats: int = 500, draws: int = 1000, seed: int = 0
) -> dict[str, float]:
  """Shares of cases without a true change: intervals that hold 0, and p-values below .05."""
  rng = np.random.default_rng(seed)
  nest = np.zeros(case.videos, int)
  sizes = _sizes(rng, case, nest)
  metric = aggregation.get("micro")
  held = small = 0
  weights = list(statistics.resample_clusters(nest, draws, seed))
  for _ in range(repeats):
    # Both policies find the same videos hard.
    chance = _chances(rng, (case.videos,), ACCURACY, correlation)[:, None]
    sides = [
      group_sums.GroupSums(
        groups=("all",),
        clusters=tuple(map(str, range(case.videos))),
        sums=rng.binomial(sizes.astype(int), chance).astype(float),
        counts=sizes,
        nest=nest,
      )
      for _ in range(2)
    ]
    changes = [np.concatenate([side.means(chunk)["all"] for chunk in weights]) for side in sides]
    low, high, _ = statistics.interval_of_draws(changes[1] - changes[0], case.videos)
    held += low <= 0 <= high
    p_values = statistics.sign_flip_p_values(metric, *sides, flips=draws, seed=seed)
    small += p_values["accuracy"] < 0.05
  return {"ours": held / repeats, "p < .05": small / repeats}


def _sizes(
  rng: np.random.Generator, case: CoverageCase, nest: np.ndarray
) -> Float[np.ndarray, "videos tasks"]:
  """The number of questions of each video and task."""
  if case.nested:
    sizes = np.zeros((case.videos, case.tasks))
    sizes[np.arange(case.videos), nest] = rng.integers(1, 2 * case.questions, case.videos)
    return sizes
  each = case.questions // case.tasks
  return rng.integers(1, 2 * each, (case.videos, case.tasks)).astype(float)


def _simulate(
  rng: np.random.Generator,
  sizes: Float[np.ndarray, "videos tasks"],
  truth: Float[np.ndarray, "tasks"],
  correlation: float,
  repeats: int,
) -> Float[np.ndarray, "repeats videos tasks"]:
  """Numbers of right answers. A video that is hard for one task is hard for all."""
  rank = rng.random((repeats, sizes.shape[0], 1)) if correlation else None
  chance = _chances(rng, (repeats, *sizes.shape), truth, correlation, rank)
  return rng.binomial(sizes.astype(int), chance).astype(float)


def _chances(
  rng: np.random.Generator,
  shape: tuple[int, ...],
  mean: Float[np.ndarray, "tasks"] | float,
  correlation: float,
  rank: np.ndarray | None = None,
) -> np.ndarray:
  if not correlation:
    return np.broadcast_to(mean, shape)
  spread = (1 - correlation) / correlation
  a, b = np.asarray(mean) * spread, (1 - np.asarray(mean)) * spread
  return rng.beta(a, b, shape) if rank is None else _beta_quantiles(a, b, rank, shape)


def _beta_quantiles(
  a: np.ndarray, b: np.ndarray, rank: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
  """Quantiles of beta distributions, interpolated: the exact ones take a minute."""
  grid = np.linspace(0, 1, 2001)
  columns = [
    np.interp(rank[..., 0], grid, stats.beta.ppf(grid, a_task, b_task))
    for a_task, b_task in zip(np.atleast_1d(a), np.atleast_1d(b), strict=True)
  ]
  return np.broadcast_to(np.stack(columns, axis=-1), shape)


def _average(means: group_sums.Means, repeats: int) -> Float[np.ndarray, "draws repeats"]:
  """The mean over tasks of each repeat."""
  arrays = np.stack(list(means.values()), axis=1)
  return arrays.reshape(len(arrays), repeats, -1).mean(axis=2)


def _as_if_independent(
  means: Float[np.ndarray, "repeats tasks"], questions: Float[np.ndarray, "tasks"]
) -> Float[np.ndarray, "repeats 2"]:
  error = np.sqrt((means * (1 - means) / questions).sum(axis=1)) / means.shape[1]
  middle = means.mean(axis=1)
  return np.stack([middle - 1.96 * error, middle + 1.96 * error], axis=1)


def main(cases: Sequence[CoverageCase] = CASES) -> None:
  """Prints the table."""
  print("| simulated | ICC | percentile | ours | independent |\n|---|---|---|---|---|")
  for case in cases:
    for correlation in CORRELATIONS:
      found = coverage(case, correlation)
      shares = " | ".join(
        f"{100 * found[name]:.1f}" for name in ("percentile", "ours", "independent")
      )
      print(f"| {case.name} | {correlation:g} | {shares} |", flush=True)
  print("\n| no change | ICC | interval holds 0 | p < .05 |\n|---|---|---|---|")
  for case in cases:
    if case.tasks == 1 and case.videos <= 207:
      found = false_changes(case, 0.1)
      print(f"| {case.name} | 0.1 | {100 * found['ours']:.1f} | {100 * found['p < .05']:.1f} |")


if __name__ == "__main__":
  main()
