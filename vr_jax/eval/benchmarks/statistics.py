"""How sure a benchmark's numbers are: a bootstrap over source videos, and tests of a change.

Questions about one video are answered alike, so videos are resampled, with all their questions, and
the whole metric is computed again for each draw, means of tasks and differences of tracks included.
Videos are resampled within a stratum where the metric says so (MLVU's tasks, Video-MME's
durations), else all together.

The interval is a percentile interval, but further out: with C videos in K strata, the bootstrap's
variance is too small by (C - K) / C, and the normal distribution's tails are thinner than Student's
t with C - K degrees of freedom. So the 95 % interval reaches from the quantile Φ(-q) to Φ(q), with
q = √(C / (C - K)) · t(.975, C - K). With 200 videos that is 2.4 to 97.6 % of the draws; with ten,
1 to 99 %. `python -m benchmarks.interval_coverage` shows how often either holds the true value.

Two policies are compared on the same draws. The p-value is of sign flips: under the hypothesis that
both are alike, they could have swapped their replies to any video.

Sources: Field and Welsh, J. R. Statist. Soc. B 69 (2007), for the cluster bootstrap; Hesterberg,
The American Statistician 69 (2015), for the expanded percentile interval; Holm, Scandinavian
Journal of Statistics 6 (1979).
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import math

from jaxtyping import Float, Int
import numpy as np
from scipy import stats

from vr_jax.errors import InputError
from vr_jax.eval import intervals
from vr_jax.eval.benchmarks import aggregation, group_sums, scored_reply

DRAWS = 10_000
_ENTRIES = 4_000_000  # of a matrix [draws, clusters] held at once
_MOST_UNDEFINED = 0.05  # of the draws; a value that more of them don't have gets no interval
_MOST_EXACT = 13  # clusters whose flips are all counted: 2 ** 13 of them
_ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricInterval:
  """A value with its 95 % confidence interval and standard error.

  low, high, standard_error: NaN where there is no telling: a group of one video, or so few that
    many draws lack it.
  clusters: number of source videos that were resampled.
  """

  value: float
  low: float
  high: float
  standard_error: float
  clusters: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricChange:
  """The change of a value between two policies: after - before. See `MetricInterval`.

  p_value: of sign flips by source video, two-sided.
  """

  change: float
  low: float
  high: float
  standard_error: float
  clusters: int
  p_value: float


def estimate(
  metric: aggregation.BenchmarkMetric,
  replies: Sequence[scored_reply.ScoredReply],
  *,
  draws: int = DRAWS,
  seed: int = 0,
) -> Mapping[str, MetricInterval]:
  """The values of a metric by name, with intervals."""
  sums = group_sums.add_up(replies, metric.grouping, metric.nest)
  observed = metric.combine(sums.observed())
  drawn = _draw(metric, [sums], draws, seed)[0]
  return {
    name: _interval(name, float(value[0]), drawn[name], sums, metric)
    for name, value in observed.items()
  }


def compare(
  metric: aggregation.BenchmarkMetric,
  before: Sequence[scored_reply.ScoredReply],
  after: Sequence[scored_reply.ScoredReply],
  *,
  draws: int = DRAWS,
  seed: int = 0,
) -> Mapping[str, MetricChange]:
  """The change of each value on the same questions, from the same draws of videos.

  Raises InputError unless both sides have replies to the same questions.
  """
  group_sums.check_paired(before, after)
  old, new = _aligned(metric, before, after)
  observed = [metric.combine(sums.observed()) for sums in (old, new)]
  drawn = _draw(metric, [old, new], draws, seed)
  p_values = sign_flip_p_values(metric, old, new, flips=draws, seed=seed)
  changes = {}
  for name in observed[0]:
    change = float(observed[1][name][0] - observed[0][name][0])
    found = _interval(name, change, drawn[1][name] - drawn[0][name], old, None)
    changes[name] = MetricChange(
      change=change,
      low=found.low,
      high=found.high,
      standard_error=found.standard_error,
      clusters=found.clusters,
      p_value=p_values[name],
    )
  return changes


def sign_flip_p_values(
  metric: aggregation.BenchmarkMetric,
  before: group_sums.GroupSums,
  after: group_sums.GroupSums,
  *,
  flips: int = DRAWS,
  seed: int = 0,
) -> Mapping[str, float]:
  """The p-value of each value's change: had the policies swapped their replies to some videos.

  Clusters, groups and nests of both have to be the same. Exact for up to 13 videos that differ;
  else from `flips` random ones, where the observed change counts as one more.
  """
  differ = np.flatnonzero(
    (before.sums != after.sums).any(axis=1) | (before.counts != after.counts).any(axis=1)
  )
  sides = (before, after)
  swaps = [  # what a side gains where a video's replies are swapped
    (other.sums[differ] - side.sums[differ], other.counts[differ] - side.counts[differ])
    for side, other in (sides, sides[::-1])
  ]
  observed = [metric.combine(side.observed()) for side in sides]
  limits = {
    name: abs(float(observed[1][name][0] - value[0])) - _ROUNDING
    for name, value in observed[0].items()
  }
  extreme, total = dict.fromkeys(limits, 0), 0
  exact = len(differ) <= _MOST_EXACT
  for flipped in _all_flips(len(differ)) if exact else _random_flips(len(differ), flips, seed):
    means = [
      group_sums.group_means(
        side.groups, side.sums.sum(0) + flipped @ sums, side.counts.sum(0) + flipped @ counts
      )
      for side, (sums, counts) in zip(sides, swaps, strict=True)
    ]
    values = [metric.combine(each) for each in means]
    total += len(flipped)
    for name, limit in limits.items():
      extreme[name] += int((np.abs(values[1][name] - values[0][name]) >= limit).sum())
  more = 0 if exact else 1  # the observed change, which random flips may lack
  return {
    name: math.nan if math.isnan(limit) else (extreme[name] + more) / (total + more)
    for name, limit in limits.items()
  }


def holm(p_values: Mapping[str, float]) -> Mapping[str, float]:
  """Holm's adjusted p-values: of several tests, those below .05 hold together at the 5 % level.

  Raises InputError if one is outside of [0, 1].
  """
  for name, value in p_values.items():
    if not 0 <= value <= 1:
      raise InputError(f"{name}: a p-value of {value:g}; it has to be within 0 and 1")
  adjusted, largest = {}, 0.0
  for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
    largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
    adjusted[name] = largest
  return {name: adjusted[name] for name in p_values}


def mean_over_benchmarks(values: Sequence[MetricInterval]) -> tuple[float, float]:
  """The mean of several benchmarks' values, and its standard error: the errors are independent.

  Raises InputError if there is no value.
  """
  if not values:
    raise InputError("no benchmark to average over")
  mean = math.fsum(each.value for each in values) / len(values)
  return mean, math.hypot(*(each.standard_error for each in values)) / len(values)


def seed_spread(values: Sequence[float]) -> tuple[float, float]:
  """Mean and standard deviation of a value over training seeds (n - 1 in the denominator).

  This is how much training varies. It is no error of the questions, so the two are not added up.

  Raises InputError for fewer than two seeds.
  """
  if len(values) < 2:
    raise InputError(f"{len(values)} training seeds: their spread needs at least two")
  return float(np.mean(values)), float(np.std(values, ddof=1))


def resample_clusters(
  nest: Int[np.ndarray, "clusters"], draws: int, seed: int
) -> Iterator[Float[np.ndarray, "chunk clusters"]]:
  """How often each cluster is drawn, in chunks of draws; as many of each nest as it has."""
  rng = np.random.default_rng(seed)
  chunk = max(1, _ENTRIES // len(nest))
  members = [np.flatnonzero(nest == number) for number in np.unique(nest)]
  for start in range(0, draws, chunk):
    size = min(chunk, draws - start)
    weights = np.zeros((size, len(nest)))
    for columns in members:
      count = len(columns)
      drawn = rng.integers(0, count, (size, count)) + count * np.arange(size)[:, None]
      weights[:, columns] = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
    yield weights


def expanded_levels(clusters: int, nests: int = 1) -> tuple[float, float]:
  """The quantiles of the draws between which the 95 % interval lies. See the module's text."""
  free = max(clusters - nests, 1)
  reach = math.sqrt(clusters / free) * stats.t.ppf(0.975, free)
  return float(stats.norm.cdf(-reach)), float(stats.norm.cdf(reach))


def interval_of_draws(
  drawn: Float[np.ndarray, "draws"], clusters: int, nests: int = 1
) -> tuple[float, float, float]:
  """The 95 % interval of a value from its draws, and its standard error.

  All are NaN if there is one cluster a nest, or over 5 % of the draws lack the value.
  """
  defined = drawn[~np.isnan(drawn)]
  if clusters <= nests or len(defined) < (1 - _MOST_UNDEFINED) * len(drawn):
    return math.nan, math.nan, math.nan
  low, high = map(float, np.quantile(defined, expanded_levels(clusters, nests)))
  if high - low < _ROUNDING:
    return low, low, 0.0
  return low, high, float(defined.std(ddof=1)) * math.sqrt(clusters / (clusters - nests))


def _draw(
  metric: aggregation.BenchmarkMetric,
  sides: Sequence[group_sums.GroupSums],
  draws: int,
  seed: int,
) -> list[group_sums.Means]:
  """The values of each side in the same draws."""
  chunks: list[list[group_sums.Means]] = [[] for _ in sides]
  for weights in resample_clusters(sides[0].nest, draws, seed):
    for side, found in zip(sides, chunks, strict=True):
      found.append(metric.combine(side.means(weights)))
  return [
    {name: np.concatenate([chunk[name] for chunk in found]) for name in found[0]}
    for found in chunks
  ]


def _interval(
  name: str,
  value: float,
  drawn: Float[np.ndarray, "draws"],
  sums: group_sums.GroupSums,
  metric: aggregation.BenchmarkMetric | None,
) -> MetricInterval:
  """metric: None if the value is a change."""
  column = sums.groups.index(name) if name in sums.groups else None
  rows = sums.counts.any(axis=1) if column is None else sums.counts[:, column] > 0
  clusters, nests = int(rows.sum()), len(np.unique(sums.nest[rows]))
  low, high, error = interval_of_draws(drawn, clusters, nests)
  share = round(value / 100, 9) if metric and aggregation.is_percentage(metric, name) else -1
  if low == high and share in (0, 1):
    # All answers are right, or all wrong: draws don't vary, but the next video may.
    low, high = (100 * limit for limit in intervals.wilson(share, clusters))
  return MetricInterval(value=value, low=low, high=high, standard_error=error, clusters=clusters)


def _aligned(
  metric: aggregation.BenchmarkMetric,
  before: Sequence[scored_reply.ScoredReply],
  after: Sequence[scored_reply.ScoredReply],
) -> tuple[group_sums.GroupSums, group_sums.GroupSums]:
  """The sums of both sides with the same groups: one may lack a measure that the other has."""
  old, new = (group_sums.add_up(side, metric.grouping, metric.nest) for side in (before, after))
  groups = sorted({*old.groups, *new.groups})
  return group_sums.widen(old, groups), group_sums.widen(new, groups)


def _all_flips(clusters: int) -> Iterator[Float[np.ndarray, "flips clusters"]]:
  numbers = np.arange(2**clusters)[:, None]
  yield (numbers >> np.arange(clusters) & 1).astype(float)


def _random_flips(
  clusters: int, flips: int, seed: int
) -> Iterator[Float[np.ndarray, "flips clusters"]]:
  rng = np.random.default_rng(seed)
  chunk = max(1, _ENTRIES // clusters)
  for start in range(0, flips, chunk):
    size = min(chunk, flips - start)
    yield rng.integers(0, 2, (size, clusters), np.int8).astype(float)
