"""Frames of a benchmark's videos, kept in one small frame store for each video and rate.

A protocol may ask for more frames of a short clip than of a long video, so a video is decoded at
the rate that its question needs: the next power of two.
"""

from collections.abc import Sequence
import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import math
from pathlib import Path
import shutil
import tempfile

import av

from vr_jax.data import frame_store, guarded_reader, image_folder, picture_file, video_file
from vr_jax.errors import InputError

MEGABYTES = 1 << 20  # of a shard: a video is one file
MOST_FRAMES = 20_000  # that are kept of one video
LOWEST_FPS = 2.0
_FORMAT = 1
_OPEN = 32  # stores that are kept open
_LAST = "videos.npz"  # of a frame store, which is complete with it


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameCache:
  """Decoded videos of a directory.

  videos: the directory that names are relative to.
  cache: where frames are kept.
  quality: of JPEG.
  max_side: pixels; larger frames are scaled down.
  """

  videos: Path
  cache: Path
  quality: int
  max_side: int
  limits: guarded_reader.DecodeLimits

  def open(self, name: str, *, fps: float, frame_rate: float | None) -> frame_store.FrameStore:
    """Opens the frames of one video, which the store calls `name`; decodes it if need be.

    fps: frames a second to keep, at least.
    frame_rate: of a folder of pictures; None if `name` is a file.

    Raises InputError if the video is missing or can't be decoded, OSError if frames can't be kept.
    """
    path = self.videos / name
    if not path.exists():
      raise InputError(f"{path}: no such {'folder' if frame_rate else 'file'}")
    directory = self._directory(path, name, fps, frame_rate)
    if not (directory / _LAST).is_file():
      folders = {path: _folder(path, frame_rate)} if frame_rate else {}
      (extracted,) = guarded_reader.extract_all(
        [path],
        fps=fps,
        quality=self.quality,
        max_side=self.max_side,
        limits=self.limits,
        folders=folders,
      )
      if isinstance(extracted, InputError):
        raise extracted
      _write(directory, name, extracted, fps)
    return _open(directory)

  def _directory(self, path: Path, name: str, fps: float, frame_rate: float | None) -> Path:
    """Where a video's frames are: another file of the same name has another place."""
    files = sorted(path.iterdir()) if frame_rate else [path]
    stats = [(each.name, each.stat().st_size, each.stat().st_mtime_ns) for each in files]
    made_of = [_FORMAT, av.__version__, name, stats, fps, frame_rate, self.quality, self.max_side]
    digest = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
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


def needed_fps(frames: float, seconds: float) -> float:
  """The rate to decode at so that `frames` frames spread over a clip are near their times.

  Four frames are kept for each that is shown, and the nearest is shown: it is off by an eighth of
  the distance between two that are shown, at most.
  """
  wanted = max(LOWEST_FPS, 4 * frames / max(seconds, 1e-3))
  return min(2.0 ** math.ceil(math.log2(wanted)), 64.0)


def _folder(path: Path, frame_rate: float) -> image_folder.FolderFrames:
  names = [each.name for each in path.iterdir() if picture_file.is_picture(each.name)]
  if not names:
    raise InputError(f"{path}: holds no pictures")
  ordered: Sequence[str] = image_folder.order_frames(names)
  return image_folder.FolderFrames(names=tuple(ordered), frame_rate=frame_rate)
