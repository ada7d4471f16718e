"""What is known of a benchmark: how its files are read, and what its authors publish about it."""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
from pathlib import Path

from vr_jax.data import benchmark_item

# Kinds of counts that are no strata.
QUESTIONS = "questions"
VIDEOS = "videos"
SUBTITLES = "subtitles"
ALL = "all"

Reader = Callable[[Path, str], Iterator[tuple[str, benchmark_item.Item]]]
# Numbers of questions by kind of stratum and name; of questions, videos and subtitle files in all
# under QUESTIONS, VIDEOS and SUBTITLES.
Counts = Mapping[str, Mapping[str, int]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkSet:
  """A benchmark and its converter.

  read: gives the items of a split and the places of their records, from the benchmark's directory.
  splits: that `read` knows; the first is the usual one.
  published: counts by split, as far as its authors state them.
  source: where to get it.
  licence: as its authors state it; "not stated" where we found nothing.
  """

  name: str
  title: str
  read: Reader
  splits: tuple[str, ...]
  published: Mapping[str, Counts]
  source: str
  licence: str


def in_all(questions: int, videos: int | None = None, subtitles: int | None = None) -> Counts:
  """Counts of a split's questions, and where they are known of its videos and subtitle files."""
  counts = {QUESTIONS: questions, VIDEOS: videos, SUBTITLES: subtitles}
  return {kind: {ALL: count} for kind, count in counts.items() if count is not None}
