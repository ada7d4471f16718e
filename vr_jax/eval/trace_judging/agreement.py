"""How far ratings agree: quadratic weighted kappa, Krippendorff's alpha, Spearman's correlation.

All take tables or weights with leading axes, so that a bootstrap's draws are computed at once.

Sources: Cohen, Psychological Bulletin 70 (1968), for weighted kappa; Krippendorff, Content Analysis
(4th edition, 2018), chapter 12, for alpha with the ordinal metric; Light, Psychological Bulletin 76
(1971), for the mean of kappas over pairs of raters.
"""

from collections.abc import Sequence
import itertools

from jaxtyping import Float
import numpy as np


def confusion(
  left: Sequence[int], right: Sequence[int], categories: int
) -> Float[np.ndarray, "categories categories"]:
  """One unit rated by two raters: all pairs of a rating of each, with weights that sum to 1.

  left, right: ratings from 1 to `categories`; a rater may have rated several times. The table is
  the expectation for one rating of each, drawn at random. Zeros if a rater has none.
  """
  table = np.zeros((categories, categories))
  for one, other in itertools.product(left, right):
    table[one - 1, other - 1] += 1 / (len(left) * len(right))
  return table


def coincidences(
  ratings: Sequence[int], categories: int
) -> Float[np.ndarray, "categories categories"]:
  """Krippendorff's coincidences of one unit: its ordered pairs of ratings, each 1 / (m - 1).

  ratings: those of m raters, from 1 to `categories`. Zeros if there are fewer than two.
  """
  table = np.zeros((categories, categories))
  for one, other in itertools.permutations(ratings, 2):
    table[one - 1, other - 1] += 1 / (len(ratings) - 1)
  return table


def weighted_kappa(
  tables: Float[np.ndarray, "*draws categories categories"],
) -> Float[np.ndarray, "*draws"]:
  """kappa = 1 - Σ w o / Σ w e, with w = (i - j)² and e what independent raters would give.

  tables: counts o, rows of one rater and columns of the other.
  NaN where Σ w e = 0: both raters always give one and the same value, or there is no rating.
  """
  levels = np.arange(tables.shape[-1])
  weights = (levels[:, None] - levels) ** 2.0
  total = tables.sum((-2, -1))
  observed = (weights * tables).sum((-2, -1))
  products = tables.sum(-1)[..., :, None] * tables.sum(-2)[..., None, :]
  return _one_minus_ratio(observed * total, (weights * products).sum((-2, -1)))


def ordinal_alpha(
  tables: Float[np.ndarray, "*draws categories categories"],
) -> Float[np.ndarray, "*draws"]:
  """alpha = 1 - (n - 1) Σ o δ² / Σ n_c n_k δ², with Krippendorff's ordinal δ.

  tables: coincidences o, symmetric; n_c are the sums of their rows, n is that of all.
  δ_ck = n_c / 2 + n_(c+1) + … + n_k / 2: the distance of the categories' middle ranks.
  NaN where the denominator is 0: all ratings are equal, or there is none.
  """
  totals = tables.sum(-1)
  middles = np.cumsum(totals, -1) - totals / 2
  squares = (middles[..., :, None] - middles[..., None, :]) ** 2
  count = totals.sum(-1)
  observed = (squares * tables).sum((-2, -1))
  products = totals[..., :, None] * totals[..., None, :]
  disagreement = (count - 1) * observed, (squares * products).sum((-2, -1))
  return _one_minus_ratio(*map(np.asarray, disagreement))


def spearman(
  left: Float[np.ndarray, "items"],
  right: Float[np.ndarray, "items"],
  weights: Float[np.ndarray, "*draws items"],
) -> Float[np.ndarray, "*draws"]:
  """Spearman's rank correlation, with mean ranks for ties.

  weights: how often a draw has each item.
  NaN where all that a draw has is equal on one side.
  """
  total = weights.sum(-1, keepdims=True)
  deviations = []
  for values in (left, right):
    ranks = _middle_ranks(values, weights)
    deviations.append(ranks - (weights * ranks).sum(-1, keepdims=True) / total)
  one, other = deviations
  spread = (weights * one**2).sum(-1) * (weights * other**2).sum(-1)
  # Rounding leaves a trace of a spread where all ranks are equal.
  defined = spread > 1e-12 * np.maximum(total[..., 0], 1) ** 6
  with np.errstate(invalid="ignore", divide="ignore"):
    return np.where(defined, (weights * one * other).sum(-1) / np.sqrt(spread), np.nan)


def _middle_ranks(
  values: Float[np.ndarray, "items"], weights: Float[np.ndarray, "*draws items"]
) -> Float[np.ndarray, "*draws items"]:
  """The rank of each item in a draw that has it `weights` times; equal items share the mean."""
  order = np.argsort(values, kind="stable")
  ordered = values[order]
  starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
  sums = np.add.reduceat(weights[..., order], starts, axis=-1)
  level = np.empty(len(values), int)
  level[order] = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(values)]))
  return (np.cumsum(sums, -1) - sums / 2)[..., level]


def _one_minus_ratio(
  observed: Float[np.ndarray, "*draws"], expected: Float[np.ndarray, "*draws"]
) -> Float[np.ndarray, "*draws"]:
  with np.errstate(invalid="ignore", divide="ignore"):
    return np.where(expected > 1e-9, 1 - observed / expected, np.nan)
