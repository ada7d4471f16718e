"""Converts released segmentation sets to records and mask files that ingestion reads.

    python -m vr_jax.data.segmentation_sets mevis sets/MeViS converted --split=train --videos=sets

The layouts: mevis, ref_youtube_vos, ref_davis17, revos, lv_vis, reason_vos (docs/data.md). Written
are mevis_train.jsonl, whose videos are folders of pictures below --videos, and the files that it
names in masks/; the pictures stay where they are. Several sets may share the directory, and be
ingested together as converted/*.jsonl.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import json
from pathlib import Path
import sys
from typing import Any

from absl import flags

from vr_jax import atomic, records
from vr_jax.data import expression_sets, label_sets, mask_files, segmented_video
from vr_jax.errors import InputError

_USAGE = "LAYOUT ROOT OUTPUT [--split=train] [--videos=DIRECTORY] [--frame_rate=RATE]"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SetLayout:
  """How one set is read.

  read: gives the videos of a split, from the set's root, as far as the choice says.
  split: that is taken if none is given.
  frame_rate: of its frames, a second. Known of Ref-YouTube-VOS (every fifth of 30), DAVIS and
    MeViS; the others don't say, and 6 is taken.
  """

  title: str
  read: Callable[[Path, str, segmented_video.ReadChoice], Iterator[segmented_video.SegmentedVideo]]
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
  layout: str,
  root: Path,
  split: str | None = None,
  choice: segmented_video.ReadChoice = segmented_video.EVERYTHING,
) -> Iterator[segmented_video.SegmentedVideo]:
  """Reads the videos of a set one after the other.

  Raises:
    InputError: there is no such layout, or a file is missing or bad; names it.
  """
  if layout not in LAYOUTS:
    raise InputError(f"{layout}: no such layout; one of {', '.join(LAYOUTS)}")
  if not root.is_dir():
    raise InputError(f"{root}: there is no such directory")
  return LAYOUTS[layout].read(root, LAYOUTS[layout].split if split is None else split, choice)


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
  """Writes the records and mask files of a set's split into a directory, all or nothing.

  videos: the directory that will be config.data.videos; default: `root`.
  frame_rate: of the set's frames, a second; None: as in LAYOUTS.

  Raises:
    InputError: what `read` raises; the split has no masks, or a video is outside of `videos`; or
      `output` has this split already.
  """
  found = read(layout, root, split)
  split = LAYOUTS[layout].split if split is None else split
  rate = LAYOUTS[layout].frame_rate if frame_rate is None else frame_rate
  name = "_".join(filter(None, (layout, split)))
  annotations, masks = output / f"{name}.jsonl", output / "masks" / name
  for path in (annotations, masks):
    if path.exists():
      raise InputError(f"{path}: is already there; remove it, or choose another directory")
  below, count, lines = (root if videos is None else videos).resolve(), 0, []
  with atomic.directory(masks.absolute()) as partial:
    for video in found:
      if video.instances is None:
        raise InputError(
          f"{root}: this split has no masks, so it can't be trained on; give a --split that has"
        )
      segmented_video.check_name(video.name, f"{root}: video {video.name!r:.80}")
      value = _mask_file(video)
      mask_files.parse(value, f"{root}: video {video.name!r}")
      file = partial / f"{video.name}.json"
      file.parent.mkdir(parents=True, exist_ok=True)
      file.write_text(json.dumps(value, separators=(",", ":")) + "\n")
      for query in video.queries:
        place = f"masks/{name}/{video.name}.json"
        record = _record(layout, video, query, below, place, rate)
        try:
          lines.append(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        except UnicodeEncodeError as error:
          raise InputError(
            f"{root}: video {video.name!r:.80}, expression {query.name!r:.80}: holds half a "
            "surrogate pair"
          ) from error
      count += 1
    if not lines:
      raise InputError(f"{root}: this split has no queries")
  atomic.write_bytes(annotations, lines)
  return ConvertedSet(videos=count, queries=len(lines))


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
  masks: str,
  frame_rate: float,
) -> dict[str, Any]:
  folder = video.folder.resolve()
  if not folder.is_relative_to(below):
    raise InputError(f"{folder}: is not below --videos={below}")
  return {
    "id": f"{layout}_{video.name}_{query.name}",
    "video": folder.relative_to(below).as_posix(),
    "question": query.text,
    "problem_type": records.SEGMENTATION,
    "masks": masks,
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
