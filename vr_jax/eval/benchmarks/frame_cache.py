"""Frames of a benchmark's videos, kept in one small frame store for each video and use.

A recipe's questions use all frames at the rate that the run's data has (`FrameCache.open`). A
protocol shows some frames of a video or clip (`FrameCache.open_chosen`), and only these are kept,
once for all questions that show the same: the frames that are on the screen at times that follow
from the video's length. They are kept as large as they are in the file, unless the protocol shows
them at under half of that width and height.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
from pathlib import Path
import shutil
import tempfile
from typing import Any

import av

from vr_jax import records
from vr_jax.data import (
  frame_store,
  guarded_reader,
  image_folder,
  picture_file,
  upright_images,
  video_file,
)
from vr_jax.errors import InputError
from vr_jax.eval.benchmarks import frame_choice

MEGABYTES = 1 << 20  # of a shard: a video is one file
_FORMAT = 2
_OPEN = 32  # stores that are kept open
_LAST = "videos.npz"  # of a frame store, which is complete with it
_QUALITY = 95  # of JPEG, for frames that a protocol shows
_ANY_SIDE = 1 << 15


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameCache:
  """Decoded videos of a directory.

  videos: the directory that names are relative to.
  cache: where frames are kept.
  """

  videos: Path
  cache: Path
  limits: guarded_reader.DecodeLimits

  def open(
    self,
    name: str,
    *,
    fps: float,
    quality: int,
    max_side: int,
    frame_rate: float | None,
    frames: tuple[str, ...] = (),
  ) -> frame_store.FrameStore:
    """Opens the frames of one video, which the store calls `name`; decodes it if need be.

    fps: frames a second to keep.
    quality, max_side: see `video_file.extract`.
    frame_rate: of a folder of pictures; None if `name` is a file.
    frames: names of those pictures that are the video's frames, in order; (): all.

    Raises InputError if the video is missing or can't be decoded, OSError if frames can't be kept.
    """
    path = self._existing(name, frame_rate)
    how = {"fps": fps, "quality": quality, "max_side": max_side}
    chosen = {"frames": frames} if frames else {}
    directory = self._directory(path, name, frame_rate, {**how, **chosen})
    if not (directory / _LAST).is_file():
      folder = _folder(path, frame_rate, frames)
      video = guarded_reader.extract(path, limits=self.limits, folder=folder, **how)
      _write(directory, name, video, fps)
    return _open(directory)

  def open_chosen(
    self,
    name: str,
    choice: frame_choice.FrameChoice,
    *,
    pixels: int,
    clip: records.Span | None,
    frame_rate: float | None,
  ) -> frame_store.FrameStore:
    """Opens the frames of one video, or a clip of it, that a rule chooses, and no others.

    pixels: that a frame is shown with, at most.
    frame_rate: see `open`.

    Raises what `open` does, and InputError if the clip shows no frame.
    """
    path = self._existing(name, frame_rate)
    how: dict[str, Any] = {
      "quality": _QUALITY,
      "max_side": _ANY_SIDE,
      "kept_pixels": upright_images.pixels_to_keep(pixels),
    }
    chosen = {"choice": dataclasses.asdict(choice), "clip": clip and [clip.start, clip.end]}
    directory = self._directory(path, name, frame_rate, how | chosen)
    if not (directory / _LAST).is_file():

      def choose(duration: float) -> list[float]:
        shown = frame_choice.shown_part(clip, duration, where=name)
        return frame_choice.choose_times(choice, duration, shown).tolist()

      folder = _folder(path, frame_rate)
      video = guarded_reader.extract_chosen(
        path, choose=choose, limits=self.limits, folder=folder, **how
      )
      _write(directory, name, video, frame_choice.FPS)
    return _open(directory)

  def _existing(self, name: str, frame_rate: float | None) -> Path:
    path = self.videos / name
    if not path.exists():
      raise InputError(f"{path}: no such {'folder' if frame_rate else 'file'}")
    return path

  def _directory(
    self, path: Path, name: str, frame_rate: float | None, how: dict[str, Any]
  ) -> Path:
    """Where a video's frames are: another file of the same name has another place."""
    files = sorted(path.iterdir()) if frame_rate else [path]
    stats = [(each.name, each.stat().st_size, each.stat().st_mtime_ns) for each in files]
    made_of = [_FORMAT, av.__version__, name, stats, frame_rate, how]
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
    return self.cache / digest[:2] / digest[2:34]


def _write(directory: Path, name: str, extracted: video_file.ExtractedVideo, fps: float) -> None:
  """Writes the store of a video. Threads and processes may write the same: the first one stays.

  Raises OSError if there is no room: that is no fault of the video.
  """
  directory.parent.mkdir(parents=True, exist_ok=True)
  partial = Path(tempfile.mkdtemp(prefix=f"{directory.name}.", dir=directory.parent))
  try:
    writer = frame_store.FrameStoreWriter(partial, fps=fps, shard_megabytes=MEGABYTES)
    writer.add(name, extracted)
    writer.close()
    if not (directory / _LAST).is_file():
      shutil.rmtree(directory, ignore_errors=True)  # one that a kill has cut
      with contextlib.suppress(OSError):  # another was first
        partial.rename(directory)
  except InputError as error:
    raise OSError(errno.EIO, f"cannot be written: {error}", str(directory)) from error
  finally:
    shutil.rmtree(partial, ignore_errors=True)


@functools.lru_cache(maxsize=_OPEN)
def _open(directory: Path) -> frame_store.FrameStore:
  """A store that is complete, and so never changes. Questions about one video follow each other."""
  return frame_store.FrameStore(directory)


def _folder(
  path: Path, frame_rate: float | None, frames: tuple[str, ...] = ()
) -> image_folder.FolderFrames | None:
  """The frames of a folder of pictures; None of a file, which has no frame rate of its own."""
  if not frame_rate:
    return None
  if frames:
    return image_folder.FolderFrames(names=frames, frame_rate=frame_rate)
  names = [each.name for each in path.iterdir() if picture_file.is_picture(each.name)]
  if not names:
    raise InputError(f"{path}: holds no pictures")
  ordered: Sequence[str] = image_folder.order_frames(names)
  return image_folder.FolderFrames(names=tuple(ordered), frame_rate=frame_rate)
