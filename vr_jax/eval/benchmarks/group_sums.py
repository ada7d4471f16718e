"""Sums of scores by source video and group: all that a metric and its bootstrap need.

A metric is a function of the means of groups, such as the tasks of a benchmark. A mean over
resampled videos is

    (weights @ sums) / (weights @ counts)

for weights [draws, clusters], so that 10,000 draws are two matrix products.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses

from jaxtyping import Float, Int
import numpy as np

from vr_jax.errors import InputError
from vr_jax.eval.benchmarks import scored_reply

# What a reply adds to the mean of each group that it belongs to.
Grouping = Callable[[scored_reply.ScoredReply], Mapping[str, float]]
Means = Mapping[str, Float[np.ndarray, "draws"]]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class GroupSums:
  """Scores by cluster and group.

  groups, clusters: names of the columns and rows.
  sums, counts: of the values in each cluster and group.
  nest: the stratum within which each cluster is resampled, as a number from 0.
  """

  groups: tuple[str, ...]
  clusters: tuple[str, ...]
  sums: Float[np.ndarray, "clusters groups"]
  counts: Float[np.ndarray, "clusters groups"]
  nest: Int[np.ndarray, "clusters"]

  def means(self, weights: Float[np.ndarray, "draws clusters"]) -> Means:
    """The mean of each group under weights of the clusters; NaN where a group has no weight."""
    return group_means(self.groups, weights @ self.sums, weights @ self.counts)

  def observed(self) -> Means:
    """The mean of each group, as arrays of one draw."""
    return self.means(np.ones((1, len(self.clusters))))


def group_means(
  groups: Sequence[str],
  sums: Float[np.ndarray, "draws groups"],
  counts: Float[np.ndarray, "draws groups"],
) -> Means:
  """The means of groups by name; NaN where a count is 0."""
  with np.errstate(invalid="ignore", divide="ignore"):
    means = np.where(counts > 0, sums / counts, np.nan)
  return dict(zip(groups, means.T, strict=True))


def add_up(
  replies: Sequence[scored_reply.ScoredReply], grouping: Grouping, nest: str = ""
) -> GroupSums:
  """Adds scores up by cluster and group; columns and rows are sorted.

  nest: the kind of stratum within which clusters are resampled. Where a cluster lies in several,
    the clusters don't nest, and all are resampled together; so, too, if it is "".

  Raises InputError if there is no reply, or one without a group.
  """
  if not replies:
    raise InputError("no replies to add up")
  values = [grouping(reply) for reply in replies]
  for reply, value in zip(replies, values, strict=True):
    if not value:
      raise InputError(f"{reply.id}: belongs to no group of this metric")
  groups = sorted({group for value in values for group in value})
  clusters = sorted({reply.cluster for reply in replies})
  column = {name: index for index, name in enumerate(groups)}
  row = {name: index for index, name in enumerate(clusters)}
  sums, counts = np.zeros((2, len(clusters), len(groups)))
  for reply, value in zip(replies, values, strict=True):
    for group, number in value.items():
      sums[row[reply.cluster], column[group]] += number
      counts[row[reply.cluster], column[group]] += 1
  return GroupSums(
    groups=tuple(groups),
    clusters=tuple(clusters),
    sums=sums,
    counts=counts,
    nest=_nests(replies, clusters, nest),
  )


def widen(sums: GroupSums, groups: Sequence[str]) -> GroupSums:
  """The same sums with more groups, which have no values."""
  columns = [groups.index(name) for name in sums.groups]
  wide = np.zeros((2, len(sums.clusters), len(groups)))
  wide[0][:, columns], wide[1][:, columns] = sums.sums, sums.counts
  return dataclasses.replace(sums, groups=tuple(groups), sums=wide[0], counts=wide[1])


def check_paired(
  before: Sequence[scored_reply.ScoredReply], after: Sequence[scored_reply.ScoredReply]
) -> None:
  """Raises InputError unless both have replies to the same questions."""
  ids = [{reply.id: reply.cluster for reply in replies} for replies in (before, after)]
  if different := set(ids[0].items()) ^ set(ids[1].items()):
    name = min(name for name, _ in different)
    raise InputError(f"{name}: not the same question in both; evaluate both on the same items")


def _nests(
  replies: Sequence[scored_reply.ScoredReply], clusters: Sequence[str], nest: str
) -> Int[np.ndarray, "clusters"]:
  if not nest:
    return np.zeros(len(clusters), int)
  found: dict[str, set[tuple[str, ...]]] = {name: set() for name in clusters}
  for reply in replies:
    found[reply.cluster].add(tuple(reply.strata.get(nest, ())))
  if any(len(names) > 1 for names in found.values()):
    return np.zeros(len(clusters), int)
  numbers = {names: index for index, names in enumerate(sorted({min(n) for n in found.values()}))}
  return np.array([numbers[min(found[name])] for name in clusters])
