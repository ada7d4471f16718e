"""Frames of a benchmark's videos, decoded once and kept in one small frame store a video.

A protocol may ask for more frames of a short clip than of a long video, so a video is decoded at
the rate that its question needs: the next power of two.
"""

from collections.abc import Sequence
import dataclasses
import hashlib
import json
import math
from pathlib import Path

from vr_jax import atomic
from vr_jax.data import frame_store, guarded_reader, image_folder, picture_file
from vr_jax.errors import InputError

MEGABYTES = 1 << 20  # of a shard: a video is one file
MOST_FRAMES = 20_000  # that are kept of one video
LOWEST_FPS = 2.0


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

    Raises InputError if the video is missing or can't be decoded.
    """
    path = self.videos / name
    if not path.exists():
      raise InputError(f"{path}: no such {'folder' if frame_rate else 'file'}")
    directory = self._directory(path, name, fps, frame_rate)
    if not directory.is_dir():
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
      with atomic.directory(directory) as partial:
        writer = frame_store.FrameStoreWriter(partial, fps=fps, shard_megabytes=MEGABYTES)
        writer.add(name, extracted)
        writer.close()
    return frame_store.FrameStore(directory)

  def _directory(self, path: Path, name: str, fps: float, frame_rate: float | None) -> Path:
    """Where a video's frames are: another file of the same name has another place."""
    stat = path.stat()
    made_of = [name, stat.st_size, stat.st_mtime_ns, fps, frame_rate, self.quality, self.max_side]
    digest = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
    return self.cache / digest[:2] / digest[2:34]


def needed_fps(frames: int, seconds: float) -> float:
  """The rate to decode at so that `frames` frames spread over a clip are near their times.

  Four frames are kept for each that is shown, so a frame is off by an eighth of the distance of
  two at most.
  """
  wanted = max(LOWEST_FPS, 4 * frames / max(seconds, 1e-3))
  return min(2.0 ** math.ceil(math.log2(wanted)), 64.0)


def _folder(path: Path, frame_rate: float) -> image_folder.FolderFrames:
  names = [each.name for each in path.iterdir() if picture_file.is_picture(each.name)]
  if not names:
    raise InputError(f"{path}: holds no pictures")
  ordered: Sequence[str] = image_folder.order_frames(names)
  return image_folder.FolderFrames(names=tuple(ordered), frame_rate=frame_rate)
