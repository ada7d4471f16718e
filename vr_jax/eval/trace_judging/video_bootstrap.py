"""95 % intervals of any statistic of ratings: a bootstrap over videos.

Ratings of questions about one video are alike, so videos are drawn, with all that belongs to them.
The interval is that of `benchmarks.statistics`, of one nest.
"""

from collections.abc import Callable, Hashable, Sequence
import dataclasses
import math

from jaxtyping import Float
import numpy as np

from vr_jax.eval.benchmarks import statistics

_DRAWS = 2000
_ENTRIES = 4_000_000  # of a matrix [draws, items] at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class BootstrappedValue:
  """A statistic with its 95 % interval; None for what can't be told.

  There is no interval with one video, where all draws have the same value, or where many have none.

  videos: number of videos that were drawn.
  """

  value: float | None
  low: float | None
  high: float | None
  videos: int


def of_items(
  statistic: Callable[[Float[np.ndarray, "draws items"]], Float[np.ndarray, "draws"]],
  videos: Sequence[Hashable],
  *,
  draws: int = _DRAWS,
  seed: int = 0,
) -> BootstrappedValue:
  """A statistic of items.

  statistic: takes how often each draw has each item.
  videos: the video of each item.
  """
  names = {video: index for index, video in enumerate(dict.fromkeys(videos))}
  if not names:
    return BootstrappedValue(value=None, low=None, high=None, videos=0)
  group = np.array([names[video] for video in videos])
  value = float(statistic(np.ones((1, len(group))))[0])
  rng, count = np.random.default_rng(seed), len(names)
  chunk = max(1, _ENTRIES // len(group))
  drawn = [
    statistic(_draw(rng, count, min(chunk, draws - start))[:, group])
    for start in range(0, draws, chunk)
  ]
  low, high = _bounds(np.concatenate(drawn), count)
  return BootstrappedValue(
    value=value if math.isfinite(value) else None, low=low, high=high, videos=count
  )


def of_tables(
  statistic: Callable[[Float[np.ndarray, "draws *axes"]], Float[np.ndarray, "draws"]],
  tables: Float[np.ndarray, "items *axes"],
  videos: Sequence[Hashable],
) -> BootstrappedValue:
  """A statistic of the sum of the items' tables. Arguments as in `of_items`."""
  flat = tables.reshape(len(tables), math.prod(tables.shape[1:]))
  return of_items(
    lambda weights: statistic((weights @ flat).reshape(-1, *tables.shape[1:])), videos
  )


def _draw(rng: np.random.Generator, videos: int, draws: int) -> Float[np.ndarray, "draws videos"]:
  """How often each draw of as many videos has each video."""
  return rng.multinomial(videos, np.full(videos, 1 / videos), size=draws).astype(float)


def _bounds(drawn: Float[np.ndarray, "draws"], videos: int) -> tuple[float | None, float | None]:
  low, high, _ = statistics.interval_of_draws(np.where(np.isfinite(drawn), drawn, np.nan), videos)
  return (low, high) if low < high else (None, None)  # also of NaN
