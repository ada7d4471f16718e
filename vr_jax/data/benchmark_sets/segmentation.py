"""MeViS, Ref-YouTube-VOS, Ref-DAVIS17, ReVOS and ReasonVOS: a question is an expression of a video.

What it means is masks, which `segmentation_sets` reads; an item has no answer. Frames are those
that the set lists, and no other pictures of their folder.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from vr_jax.data import benchmark_item, label_sets, segmentation_sets, segmented_video
from vr_jax.data.benchmark_sets import benchmark_set
from vr_jax.errors import InputError

REVOS_TYPES = {0: "referring", 1: "reasoning"}  # of expressions; others are never averaged
_WHOLE = "test"  # how the split of a set is called that has one


def layout_split(split: str, layout: str) -> str:
  """A benchmark's split as the set's reader knows it."""
  return "" if segmentation_sets.LAYOUTS[layout].split == "" and split == _WHOLE else split


def item_id(
  layout: str, video: segmented_video.SegmentedVideo, query: segmented_video.SegmentedQuery
) -> str:
  """The id of an expression's item. In ReasonVOS, expressions are counted for each object."""
  parts = (*query.instances, query.name) if layout == "reason_vos" else (query.name,)
  return "/".join((video.name, *parts))


def _read(layout: str, root: Path, split: str) -> Iterator[tuple[str, benchmark_item.Item]]:
  """Reads the expressions of a split; videos and masks need not be there."""
  choice = segmented_video.ReadChoice(masks=lambda name: False, absent=True)
  name = layout_split(split, layout)
  for video in segmentation_sets.read(layout, root, name, choice):
    frames: tuple[str, ...] = ()
    if not choice.lacks(video.folder):
      pictures = segmented_video.find_pictures(video.folder)
      frames = tuple(pictures[frame].name for frame in video.frames)
    for query in video.queries:
      where = f"{root}: video {video.name!r:.80}, expression {query.name!r:.80}"
      yield (
        where,
        benchmark_item.Item(
          id=item_id(layout, video, query),
          benchmark=layout,
          split=split,
          video=video.folder.relative_to(root).as_posix(),
          question=query.text,
          scorer="masks",
          answer="",
          media="frames",
          frames_fps=segmentation_sets.LAYOUTS[layout].frame_rate,
          frames=frames,
          strata=_strata(layout, query, where),
          cluster=video.name,
        ),
      )


def _strata(
  layout: str, query: segmented_video.SegmentedQuery, where: str
) -> Mapping[str, tuple[str, ...]]:
  if layout == "ref_davis17":
    return {"annotator": (str(int(query.name) % len(label_sets.ANNOTATORS)),)}
  if layout == "revos":
    kind = query.extra.get("type_id")
    if not isinstance(kind, int):
      raise InputError(f"{where}: 'type_id' is no number")
    return {"type": (REVOS_TYPES.get(kind, "other"),)}
  return {}


def _make(
  layout: str,
  splits: tuple[str, ...],
  published: Mapping[str, benchmark_set.Counts],
  source: str,
  licence: str,
) -> benchmark_set.BenchmarkSet:
  return benchmark_set.BenchmarkSet(
    name=layout,
    title=segmentation_sets.LAYOUTS[layout].title,
    read=lambda root, split: _read(layout, root, split),
    splits=splits,
    published=published,
    source=source,
    licence=licence,
  )


BENCHMARKS = (
  _make(
    "mevis",
    ("valid", "valid_u", "test"),
    {
      "valid": benchmark_set.in_all(2236, videos=140),
      "valid_u": benchmark_set.in_all(793, videos=50),
      "test": benchmark_set.in_all(2490, videos=154),
    },
    "github.com/henghuiding/MeViS",
    "CC BY-NC-SA 4.0",
  ),
  _make(
    "ref_youtube_vos",
    ("valid", "test"),
    {"valid": {benchmark_set.VIDEOS: {benchmark_set.ALL: 202}}},
    "github.com/skynbe/Refer-Youtube-VOS",
    "not stated",
  ),
  _make("ref_davis17", ("val",), {}, "github.com/wjn922/ReferFormer, docs/data.md", "not stated"),
  _make("revos", ("valid",), {}, "github.com/cilinyan/ReVOS-api", "CC BY-NC-SA 4.0"),
  _make("reason_vos", (_WHOLE,), {}, "github.com/showlab/VideoLISA", "not stated"),
)
