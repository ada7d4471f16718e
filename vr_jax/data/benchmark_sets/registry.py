"""All benchmarks by name, and the function that reads one: `read_items`."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
from pathlib import Path

from vr_jax.data import benchmark_item, subtitles
from vr_jax.data.benchmark_sets import (
  benchmark_set,
  egoschema,
  longvideobench,
  lvbench,
  media_files,
  mlvu,
  mmvu,
  moss_video,
  mvbench,
  released_files,
  segmentation,
  tempcompass,
  vcr_bench,
  video_mme,
  video_mmmu,
  vsi_bench,
)
from vr_jax.errors import InputError

_MODULES = (
  *(mvbench, mmvu, video_mme, mlvu, egoschema, longvideobench, lvbench, tempcompass, vsi_bench),
  *(video_mmmu, vcr_bench, moss_video),
)
BENCHMARKS: Mapping[str, benchmark_set.BenchmarkSet] = {
  each.name: each for each in (*(module.BENCHMARK for module in _MODULES), *segmentation.BENCHMARKS)
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StratumCount:
  """How many questions of a stratum were read, and how many are published (None: not stated).

  kind, name: a stratum, as ("task", "Action Count"); or ("questions", "all"), ("videos", "all"),
    ("subtitles", "all"), which count the questions, distinct videos and files of subtitles.
  """

  kind: str
  name: str
  read: int
  published: int | None

  @property
  def differs(self) -> bool:
    """Whether another number is published."""
    return self.published is not None and self.read != self.published


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadItems:
  """A benchmark's split as it lies on this disk.

  missing: videos, pictures and subtitles that are not there, as paths below the benchmark's
    directory, by item id.
  counts: of each stratum, beside the published ones.
  """

  items: tuple[benchmark_item.Item, ...]
  missing: Mapping[str, tuple[str, ...]]
  counts: tuple[StratumCount, ...]

  @property
  def differing(self) -> tuple[StratumCount, ...]:
    """The counts that are not those published."""
    return tuple(count for count in self.counts if count.differs)


def read_items(name: str, root: Path, split: str | None = None) -> ReadItems:
  """Reads a benchmark's split from its directory, laid out as docs/benchmarks.md says.

  split: None for the benchmark's first.

  Raises InputError, naming the file and record, if there is no such benchmark or split, a file is
  absent or of a layout that is not known, or a record is bad or has the id of another.
  """
  if name not in BENCHMARKS:
    raise InputError(f"{name}: no such benchmark; one of {', '.join(BENCHMARKS)}")
  benchmark = BENCHMARKS[name]
  split = benchmark.splits[0] if split is None else split
  if split not in benchmark.splits:
    raise InputError(f"{name}: has no split {split!r}; one of {', '.join(benchmark.splits)}")
  items: list[benchmark_item.Item] = []
  places: dict[str, str] = {}
  for where, item in benchmark.read(root, split):
    benchmark_item.check(item, where)
    if item.id in places:
      raise InputError(f"{where}: id {item.id!r:.80} is taken by {places[item.id]}")
    places[item.id] = where
    items.append(item)
  if not items:
    raise InputError(f"{root}: split {split!r} of {name} has no questions")
  return ReadItems(
    items=tuple(items),
    missing=find_missing(items, root),
    counts=count_strata(items, benchmark.published.get(split, {})),
  )


def find_missing(items: Iterable[benchmark_item.Item], root: Path) -> dict[str, tuple[str, ...]]:
  """The files of items that are not below `root`, by item id."""
  files = media_files.MediaFiles(root=root)
  missing = {}
  for item in items:
    paths = [item.video, *item.images, *filter(None, [item.subtitles])]
    if absent := tuple(path for path in paths if not files.exists(path)):
      missing[item.id] = absent
  return missing


def count_strata(
  items: Sequence[benchmark_item.Item], published: benchmark_set.Counts
) -> tuple[StratumCount, ...]:
  """Counts the items of each stratum, and names the published count beside it."""
  read: dict[str, Counter[str]] = {
    benchmark_set.QUESTIONS: Counter({benchmark_set.ALL: len(items)}),
    benchmark_set.VIDEOS: Counter({benchmark_set.ALL: len({item.video for item in items})}),
    benchmark_set.SUBTITLES: Counter(
      {benchmark_set.ALL: len({item.subtitles for item in items} - {""})}
    ),
  }
  for item in items:
    for kind, names in item.strata.items():
      read.setdefault(kind, Counter()).update(names)
  found = []
  for kind, counts in read.items():
    stated = published.get(kind, {})
    found += [
      StratumCount(kind=kind, name=name, read=counts[name], published=stated.get(name))
      for name in dict.fromkeys((*stated, *counts))
    ]
  return tuple(found)


def read_subtitles(item: benchmark_item.Item, root: Path) -> tuple[subtitles.Subtitle, ...]:
  """The subtitles of an item with times of its video; none if it has no file of subtitles.

  Raises InputError if the file is absent or can't be read.
  """
  if not item.subtitles:
    return ()
  if item.benchmark != "longvideobench":
    return subtitles.read(root / item.subtitles)
  record = released_files.ReleasedRecord(where=item.id, fields=item.source_record)
  offset, duration = record.number("starting_timestamp_for_subtitles"), record.number("duration")
  return subtitles.read(root / item.subtitles, offset=offset, duration=duration)
