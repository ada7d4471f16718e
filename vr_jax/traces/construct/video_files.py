"""Finds the files of captioned videos, and compares their frames with each other and benchmarks."""

from collections.abc import Mapping, Sequence
import dataclasses
from pathlib import Path
import types

import ml_collections

from vr_jax import errors
from vr_jax.data import foreign_records, image_folder, ingest, video_file
from vr_jax.traces.construct import benchmark_files, frame_hashes, read_frames
from vr_jax.traces.construct import captions as captions_lib
from vr_jax.train import paths


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoKnowledge:
  """What was found out about videos by their frames.

  copies: maps a video to the one that it is a copy of.
  in_benchmark: what a video shares with a benchmark, by its name.
  compared: whether frames were read at all.
  comparison: with which files of benchmarks; None: with none.
  """

  copies: Mapping[str, str]
  in_benchmark: Mapping[str, str]
  compared: bool
  comparison: benchmark_files.BenchmarkComparison | None


def look(
  videos: Sequence[captions_lib.CaptionedVideo],
  config: ml_collections.ConfigDict,
  cache: Path,
  bad: ingest.BadInputs,
) -> tuple[list[captions_lib.CaptionedVideo], VideoKnowledge]:
  """Returns the videos that have a good file, under its name, and what their frames tell.

  Without config.construct.videos no file is looked at, and all videos are returned.

  cache: directory of what is read of frames.
  bad: gets videos without a good file; may raise the error.

  Raises:
    InputError: what `bad` raises; there is no such directory; or a benchmark's video can't be read,
      as it then can't be compared.
  """
  section = config.construct
  if not section.videos:
    nothing = VideoKnowledge(copies={}, in_benchmark={}, compared=False, comparison=None)
    return list(videos), nothing
  folder = Path(section.videos)
  foreign_records.check_place(folder, "config.construct.videos")
  placed = _place(videos, video_file.find(folder), bad)
  frames = _read(folder, sorted({video.video for video in placed}), config, cache, bad)
  found, comparison = {}, None
  if section.benchmarks:
    known, comparison = _read_benchmarks(Path(section.benchmarks), config, cache)
    index = frame_hashes.HashedFrames(
      known, similarity=section.frame_similarity, share=section.frame_share
    )
    by_name = {video.name: video for video in frames}
    for video in placed:  # several may be parts of a file
      if video.video in by_name and not found.get(video.video):
        part = frame_hashes.within(by_name[video.video], video.span.start, video.span.end)
        found[video.video] = index.find(part)
  return _fitting(placed, frames, bad), VideoKnowledge(
    copies=frame_hashes.find_copies(frames),
    in_benchmark={name: detail for name, detail in found.items() if detail},
    compared=True,
    comparison=comparison,
  )


def _read_benchmarks(
  folder: Path, config: ml_collections.ConfigDict, cache: Path
) -> tuple[list[frame_hashes.FrameHashes], benchmark_files.BenchmarkComparison]:
  """The frames of benchmarks' videos, and of folders of pictures. Bad videos stop the run."""
  files = benchmark_files.find(folder)
  known = _read(folder, files.videos, config, cache, ingest.BadInputs("stop"))
  odd = ingest.BadInputs("skip")
  # Their rate is not known, so each picture is compared.
  pictures = {
    name: image_folder.FolderFrames(names=names, frame_rate=config.construct.frame_fps)
    for name, names in files.folders.items()
  }
  known += _read(folder, [*pictures], config, cache, odd, pictures)
  bad = [
    each | {"where": Path(each["where"]).relative_to(folder).as_posix()} for each in odd.entries
  ]
  return known, benchmark_files.compare(files, bad)


def _place(
  videos: Sequence[captions_lib.CaptionedVideo], files: Sequence[str], bad: ingest.BadInputs
) -> list[captions_lib.CaptionedVideo]:
  """Gives each video the path of its file. Archives may be unpacked into folders of their own.

  A file belongs to one path of the captions; another path that fits it, too, is bad.
  """
  known = frozenset(files)
  by_name: dict[str, list[str]] = {}
  for file in files:
    by_name.setdefault(Path(file).name, []).append(file)
  owner = {video.video: video.video for video in videos if video.video in known}
  placed = []
  for video in videos:
    same = [each for each in by_name.get(Path(video.video).name, []) if _fits(video, each)]
    file = video.video if video.video in known else same[0] if len(same) == 1 else ""
    if not file:
      bad(video.where, foreign_records.unknown_video(video.video, known, video.where))
    elif owner.setdefault(file, video.video) != video.video:
      problem = f"field 'video_path': {video.video!r} and {owner[file]!r} would both be {file!r}"
      bad(video.where, errors.InputError(f"{video.where}: {problem}; name its folders"))
    else:
      placed.append(dataclasses.replace(video, video=file))
  return placed


def _fits(video: captions_lib.CaptionedVideo, file: str) -> bool:
  """Whether a file may be the one of a caption line: as far as folders are known, they are equal.

  The directory of videos may lie above the folders that the line names, or below. The line's
  archive may have been unpacked into a folder of its name.
  """
  parts, path = Path(file).parts, Path(video.video)
  unpacked = Path(video.archive, path.name).parts if video.archive else path.parts
  return any(
    all(one == other for one, other in zip(reversed(parts), reversed(wanted), strict=False))
    for wanted in (path.parts, unpacked)
  )


def _read(
  folder: Path,
  names: Sequence[str],
  config: ml_collections.ConfigDict,
  cache: Path,
  bad: ingest.BadInputs,
  pictures: Mapping[str, image_folder.FolderFrames] = types.MappingProxyType({}),
) -> list[frame_hashes.FrameHashes]:
  return read_frames.read(
    folder,
    names,
    cache,
    fps=config.construct.frame_fps,
    limits=paths.decode_limits(config.data),
    on_bad=bad,
    pictures=pictures,
  )


def _fitting(
  placed: Sequence[captions_lib.CaptionedVideo],
  frames: Sequence[frame_hashes.FrameHashes],
  bad: ingest.BadInputs,
) -> list[captions_lib.CaptionedVideo]:
  """The videos that last as long as their captions; those with a bad file are listed already."""
  durations = {video.name: video.duration for video in frames}
  fitting = []
  for video in placed:
    end = durations.get(video.video)
    if end is None:
      continue
    if video.masked.end <= end + captions_lib.TOLERANCE:
      fitting.append(video)
    else:
      problem = f"captions until {video.masked.end:g} s, but {video.video!r} lasts {end:g} s"
      bad(video.where, errors.InputError(f"{video.where}: {problem}"))
  return fitting
