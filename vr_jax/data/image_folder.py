"""Reads a folder of pictures, one a frame, as a video of a stated frame rate."""

import bisect
from collections.abc import Callable, Iterable, Sequence
import dataclasses
import math
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from vr_jax import frame_times
from vr_jax.data import picture_file, video_file
from vr_jax.errors import InputError


@dataclasses.dataclass(frozen=True, kw_only=True)
class FolderFrames:
  """The frames of a video in a folder, which may hold other pictures, too.

  names: file names, in the order of frames.
  frame_rate: frames a second.
  """

  names: tuple[str, ...]
  frame_rate: float


def find_all(files: Iterable[str]) -> dict[str, tuple[str, ...]]:
  """The folders that hold pictures, among files by their relative paths.

  Returns the file names of each folder's pictures, in the order of frames.
  """
  folders: dict[str, list[str]] = {}
  for file in files:
    folder, _, name = file.rpartition("/")
    if folder and picture_file.is_picture(name):
      folders.setdefault(folder, []).append(name)
  return {folder: order_frames(names) for folder, names in folders.items()}


def order_frames(names: Iterable[str]) -> tuple[str, ...]:
  """File names in the order of frames: by number if all are numbers, else by name."""
  names = sorted(names)
  stems = [PurePosixPath(name).stem for name in names]
  if all(stem.isdecimal() for stem in stems):
    names.sort(key=lambda name: int(PurePosixPath(name).stem))
  return tuple(names)


def find_frames(
  folder: Iterable[str], frames: Sequence[str], frame_rate: float, where: str
) -> FolderFrames:
  """The pictures of a folder that are the frames of these names without suffix.

  Raises:
    InputError: a frame is missing, or there twice, as 00001.jpg and 00001.png.
  """
  files: dict[str, list[str]] = {}
  for name in folder:
    files.setdefault(PurePosixPath(name).stem, []).append(name)
  if missing := [frame for frame in frames if frame not in files]:
    raise InputError(
      f"{where}: the frame {missing[0]!r} is not among the {len(files)} pictures of its video "
      f"({len(missing)} of {len(frames)} are missing)"
    )
  if twice := [files[frame] for frame in frames if len(files[frame]) > 1]:
    raise InputError(f"{where}: {' and '.join(twice[0])} are the same frame; remove one of them")
  return FolderFrames(names=tuple(files[frame][0] for frame in frames), frame_rate=frame_rate)


def extract(
  path: Path,
  *,
  names: Sequence[str],
  frame_rate: float,
  fps: float,
  quality: int,
  max_side: int,
  kept_pixels: int | None = None,
  max_pixels: int = video_file.MAX_PIXELS,
  at: Sequence[float] | None = None,
  progress: Callable[[], None] = lambda: None,
) -> video_file.ExtractedVideo:
  """Keeps frames of pictures in a folder, as `video_file.extract` does of a video.

  names, frame_rate: see FolderFrames.

  Raises:
    InputError: there is no frame, or one of them is bad or of another size than the first.
  """
  if not names:
    raise InputError(f"{path}: the video has no frames")
  jpegs, kept, tick, passed = [], [], 0, 0
  size, scaled = (0, 0), (0, 0)
  for index, name in enumerate(names):
    progress()
    time = index / frame_rate
    original = _size(path / name, max_pixels)
    size = size if index else original
    if original != size:
      raise InputError(
        f"{path / name}: has {original[0]} x {original[1]} pixels, the first frame of its folder "
        f"{size[0]} x {size[1]}"
      )
    if at is not None:
      end = (index + 1) / frame_rate
      before, passed = passed, bisect.bisect_left(at, end - frame_times.TOLERANCE)
      if passed == before:
        continue
    elif time + frame_times.TOLERANCE < tick / fps:
      continue
    else:
      tick = math.floor((time + frame_times.TOLERANCE) * fps) + 1
    frame = picture_file.extract(
      path / name,
      quality=quality,
      max_side=max_side,
      kept_pixels=kept_pixels,
      max_pixels=max_pixels,
    )
    scaled = frame.height, frame.width
    jpegs += frame.jpegs
    kept.append(index)
  return video_file.ExtractedVideo(
    jpegs=tuple(jpegs),
    timestamps=np.array(kept, np.float64) / frame_rate,
    ends=(np.array(kept, np.float64) + 1) / frame_rate,
    height=scaled[0],
    width=scaled[1],
    duration=len(names) / frame_rate,
    original_height=size[1],
    original_width=size[0],
  )


def _size(path: Path, max_pixels: int) -> tuple[int, int]:
  """Width and height of a picture as it is shown, from its header."""
  try:
    with Image.open(path, formats=picture_file.FORMATS) as image:
      video_file.check_size(path, *image.size, max_pixels)
      sideways = image.getexif().get(_ORIENTATION, 1) >= 5
      width, height = image.size
      return (height, width) if sideways else (width, height)
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
    raise picture_file.bad_picture(path, error) from error


_ORIENTATION = 0x0112  # the tag of Exif
