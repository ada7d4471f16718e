"""Converts released segmentation sets to records and mask files that ingestion reads.

    python -m vr_jax.data.segmentation_sets mevis sets/MeViS converted/mevis --split=train \\
      --videos=sets

The layouts: mevis, ref_youtube_vos, ref_davis17, revos, lv_vis, reason_vos (docs/data.md). Written
are annotations.jsonl, whose videos are folders of pictures below --videos, and masks/; the pictures
stay where they are. Records of several sets may be ingested together.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import json
from pathlib import Path
import sys
from typing import Any

from absl import flags

from vr_jax import atomic, records
from vr_jax.data import expression_sets, label_sets, segmented_video
from vr_jax.errors import InputError

_USAGE = "LAYOUT ROOT OUTPUT [--split=train] [--videos=DIRECTORY] [--frame_rate=RATE]"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetLayout:
  """How one set is read.

  read: gives the videos of a split, from the set's root.
  split: that is taken if none is given.
  frame_rate: of its frames, a second. Known of Ref-YouTube-VOS (every fifth of 30), DAVIS and
    MeViS; the others don't say, and 6 is taken.
  """

  title: str
  read: Callable[[Path, str], Iterator[segmented_video.SegmentedVideo]]
  split: str = "train"
  frame_rate: float = 6.0


LAYOUTS: Mapping[str, SetLayout] = {
  "mevis": SetLayout(title="MeViS", read=expression_sets.read_mevis),
  "ref_youtube_vos": SetLayout(title="Ref-YouTube-VOS", read=label_sets.read_ref_youtube_vos),
  "ref_davis17": SetLayout(title="Ref-DAVIS17", read=label_sets.read_ref_davis17, frame_rate=24.0),
  "revos": SetLayout(title="ReVOS", read=expression_sets.read_revos),
  "lv_vis": SetLayout(title="LV-VIS", read=expression_sets.read_lv_vis),
  "reason_vos": SetLayout(title="ReasonVOS", read=label_sets.read_reason_vos, split=""),
}


def read(
  layout: str, root: Path, split: str | None = None
) -> Iterator[segmented_video.SegmentedVideo]:
  """Reads the videos of a set one after the other.

  Raises:
    InputError: there is no such layout, or a file is missing or bad; names it.
  """
  if layout not in LAYOUTS:
    raise InputError(f"{layout}: no such layout; one of {', '.join(LAYOUTS)}")
  if not root.is_dir():
    raise InputError(f"{root}: there is no such directory")
  return LAYOUTS[layout].read(root, LAYOUTS[layout].split if split is None else split)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertedSet:
  """How much was written."""

  videos: int
  queries: int


def convert(
  layout: str,
  root: Path,
  output: Path,
  *,
  split: str | None = None,
  videos: Path | None = None,
  frame_rate: float | None = None,
) -> ConvertedSet:
  """Writes the records and mask files of a set's split into a new directory, all or nothing.

  videos: the directory that will be config.data.videos; default: `root`.
  frame_rate: of the set's frames, a second; None: as in LAYOUTS.

  Raises:
    InputError: what `read` raises; the split has no masks, or a video is outside of `videos`; or
      `output` is not empty.
  """
  if output.is_dir() and any(output.iterdir()):
    raise InputError(f"{output}: is not empty; choose another directory")
  rate = LAYOUTS[layout].frame_rate if frame_rate is None and layout in LAYOUTS else frame_rate
  below, count, queries = (root if videos is None else videos).resolve(), 0, 0
  found = read(layout, root, split)
  with (
    atomic.directory(output.absolute()) as partial,
    (partial / "annotations.jsonl").open("w", encoding="utf-8") as annotations,
  ):
    for video in found:
      if video.instances is None:
        raise InputError(
          f"{root}: this split has no masks, so it can't be trained on; give a --split that has"
        )
      masks = Path("masks") / layout / f"{video.name}.json"
      (partial / masks).parent.mkdir(parents=True, exist_ok=True)
      (partial / masks).write_text(json.dumps(_mask_file(video), separators=(",", ":")) + "\n")
      for query in video.queries:
        record = _record(layout, video, query, below, masks, rate)
        annotations.write(json.dumps(record, ensure_ascii=False) + "\n")
      count, queries = count + 1, queries + len(video.queries)
    if not queries:
      raise InputError(f"{root}: this split has no queries")
  return ConvertedSet(videos=count, queries=queries)


def _mask_file(video: segmented_video.SegmentedVideo) -> dict[str, Any]:
  return {
    "height": video.height,
    "width": video.width,
    "frames": list(video.frames),
    "instances": {name: list(masks) for name, masks in (video.instances or {}).items()},
  }


def _record(
  layout: str,
  video: segmented_video.SegmentedVideo,
  query: segmented_video.SegmentedQuery,
  below: Path,
  masks: Path,
  frame_rate: float | None,
) -> dict[str, Any]:
  folder = video.folder.resolve()
  if not folder.is_relative_to(below):
    raise InputError(f"{folder}: is not below --videos={below}")
  return {
    "id": f"{layout}_{video.name}_{query.name}",
    "video": folder.relative_to(below).as_posix(),
    "question": query.text,
    "problem_type": records.SEGMENTATION,
    "masks": masks.as_posix(),
    "instances": list(query.instances),
    "frame_rate": frame_rate,
    "source": LAYOUTS[layout].title,
    **query.extra,
  }


def run(argv: list[str]) -> None:
  """Runs the command; raises InputError for what is wrong with its input."""
  values = flags.FlagValues()
  flags.DEFINE_string("split", None, "Of the set.", flag_values=values)
  flags.DEFINE_string("videos", None, "The later config.data.videos.", flag_values=values)
  flags.DEFINE_float("frame_rate", None, "Frames a second.", 0.001, flag_values=values)
  try:
    rest = values(["segmentation_sets", *argv])[1:]
  except flags.Error as error:
    raise InputError(f"{' '.join(str(error).split())}; usage: {_USAGE}") from error
  if len(rest) != 3:
    raise InputError(f"usage: {_USAGE}; layouts: {', '.join(LAYOUTS)}")
  layout, root, output = rest
  done = convert(
    layout,
    Path(root),
    Path(output),
    split=values["split"].value,
    videos=Path(values["videos"].value) if values["videos"].value else None,
    frame_rate=values["frame_rate"].value,
  )
  print(f"{output}: {done.queries} queries about {done.videos} videos")


if __name__ == "__main__":
  try:
    run(sys.argv[1:])
  except InputError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
