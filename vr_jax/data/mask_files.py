"""Mask files: the run-length masks of all instances of one video, as annotations name them.

    {"height": 480, "width": 854, "frames": ["00000", "00005", …], "instances": {"1": [mask, …]}}

The masks are in the form of run_length.py, one a frame: null where an instance is not visible, and
false where it was not annotated. Where the video is a folder of pictures, "frames" are the names of
its frames without suffix; other pictures there are none of it. Where it is a video file, "times"
are those of the annotated frames, in seconds.
"""

from collections.abc import Sequence
import dataclasses
import functools
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np

from vr_jax import inner_path, plain_json, records, run_length
from vr_jax.data import image_folder, segmented_video
from vr_jax.errors import InputError

_MICROSECONDS = 1_000_000
_SLOWEST = 1e-3  # frames a second


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskFile:
  """The masks of a video.

  height, width: of the video's frames, in pixels.
  frames: names of the video's frames, in their order; () if the masks' times are given.
  times: of the masks, in seconds; () if they are given by frames.
  instances: run-length masks of each, one a frame; None where it isn't visible, False where it
    wasn't annotated.
  """

  height: int
  width: int
  frames: tuple[str, ...]
  times: tuple[float, ...]
  instances: dict[str, list[run_length.RunLength | bool | None]]

  def object_masks(self, names: Sequence[str]) -> dict[int, run_length.RunLength | None]:
    """See `segmented_video.object_masks`."""
    frames = len(self.frames or self.times)
    return segmented_video.object_masks(self.instances, names, frames)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskReference:
  """What the record of a query says about its masks.

  masks: the file.
  instances: of the object that the query means; () if it isn't in the video.
  frame_rate: of a video that is a folder of pictures, in frames a second; None for a video file.
  """

  masks: Path
  instances: tuple[str, ...]
  frame_rate: float | None


def read(path: Path) -> MaskFile:
  """Reads and checks a mask file; raises InputError naming the file and the mask at fault."""
  try:
    about = path.stat()
  except OSError as error:
    raise InputError(f"{path}: cannot be read: {error.strerror}") from error
  return _read(path, about.st_mtime_ns, about.st_size)


# Records about one video follow each other, so its file is parsed once.
@functools.lru_cache(maxsize=4)
def _read(path: Path, modified: int, size: int) -> MaskFile:
  del modified, size
  try:
    return parse(plain_json.parse(path.read_bytes()), str(path))
  except (OSError, ValueError) as error:
    raise InputError(f"{path}: is not JSON: {error}") from error


def parse(value: Any, where: str) -> MaskFile:
  """Checks what a mask file holds. Raises InputError, which begins with `where`."""
  if not isinstance(value, dict) or not {"height", "width", "instances"} <= value.keys():
    raise InputError(f"{where}: needs 'height', 'width' and 'instances' (docs/data.md)")
  height, width, instances = value["height"], value["width"], value["instances"]
  if not all(type(side) is int and side > 0 for side in (height, width)):
    raise InputError(f"{where}: 'height' and 'width' are no numbers of pixels")
  names: Any = value.get("frames")
  times: Any = value.get("times")
  if (names is None) == (times is None):
    raise InputError(
      f"{where}: needs either 'frames', their names, for a folder of pictures, or 'times' in "
      "seconds for a video file"
    )
  _check_frames(names, times, where)
  count = len(names if names is not None else times)
  if not isinstance(instances, dict):
    raise InputError(f"{where}: 'instances' is no object with lists of masks")
  for name, masks in instances.items():
    here = f"{where}: instance {name!r}"
    if not isinstance(masks, list) or len(masks) != count:
      found = f"{len(masks)} masks" if isinstance(masks, list) else "no list of masks"
      raise InputError(f"{here}: has {found} for {count} frames")
    for frame, mask in enumerate(masks):
      if mask is False:
        continue
      run_length.check(mask, height, width, f"{here}, frame {names[frame] if names else frame}")
  return MaskFile(
    height=height,
    width=width,
    frames=tuple(names or ()),
    times=tuple(float(time) for time in times or ()),
    instances=instances,
  )


def _check_frames(names: Any, times: Any, where: str) -> None:
  if names is not None:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
      raise InputError(f"{where}: 'frames' is no list of names")
    if len(set(names)) < len(names):
      twice = next(name for name in names if names.count(name) > 1)
      raise InputError(f"{where}: 'frames': {twice!r} is there twice")
    return
  if not isinstance(times, list) or not all(
    isinstance(time, int | float) and not isinstance(time, bool) and 0 <= time < 1e9
    for time in times
  ):
    raise InputError(f"{where}: 'times' is no list of seconds")
  if any(after <= before for before, after in itertools.pairwise(times)):
    raise InputError(f"{where}: 'times' do not increase")


def parse_reference(
  value: dict[str, Any], directory: Path, folder: Sequence[str] | None, where: str
) -> MaskReference:
  """Checks what a record says about its masks.

  directory: of the annotation file, which the path of masks starts from.
  folder: the pictures of a video that is a folder, None if it is a file.
  """
  masks, instances, rate = (value.get(field) for field in ("masks", "instances", "frame_rate"))
  if not (isinstance(masks, str) and inner_path.is_inner(masks)):
    raise InputError(
      f"{where}: field 'masks': needs the path of a mask file below the annotation file's directory"
    )
  if not isinstance(instances, list) or not all(isinstance(name, str) for name in instances):
    raise InputError(
      f"{where}: field 'instances': needs the names of the instances in {masks} that the query "
      "means, as a list of texts; [] for an object that isn't in the video"
    )
  if folder is None and rate is not None:
    raise InputError(f"{where}: field 'frame_rate': a video file has its own; leave it out")
  if folder is not None and not (
    isinstance(rate, int | float) and not isinstance(rate, bool) and _SLOWEST <= rate < math.inf
  ):
    raise InputError(
      f"{where}: field 'frame_rate': the video is a folder of pictures; say how many are a second"
    )
  return MaskReference(
    masks=directory / masks,
    instances=tuple(dict.fromkeys(instances)),
    frame_rate=None if rate is None else float(rate),
  )


def object_track(
  reference: MaskReference, folder: Sequence[str] | None, where: str
) -> records.ObjectTrack:
  """Makes the track of the object that a record means.

  folder: the pictures of a video that is a folder, None if it is a file.

  Raises:
    InputError: the mask file is bad, or lacks an instance; or a frame is not there.
  """
  masks = read(reference.masks)
  for name in reference.instances:
    if name not in masks.instances:
      raise InputError(f"{where}: field 'instances': {reference.masks} has no {name!r}")
  times = annotated_times(reference, folder, where)
  found = masks.object_masks(reference.instances)
  boxes = [run_length.box(mask) for mask in found.values()]
  return records.ObjectTrack(
    times=np.array([times[frame] for frame in found], np.float64),
    boxes=np.array(boxes, np.float32).reshape(len(boxes), 4),
    height=masks.height,
    width=masks.width,
    instances=reference.instances,
  )


def annotated_times(
  reference: MaskReference, folder: Sequence[str] | None, where: str
) -> tuple[float, ...]:
  """The times of all masks of a file, in seconds, to the microsecond.

  folder: see `object_track`.

  Raises:
    InputError: a frame is not there.
  """
  frames = folder_frames(reference, folder, where)
  if frames is None:
    times = read(reference.masks).times
  else:
    times = tuple(index / frames.frame_rate for index in range(len(frames.names)))
  return tuple(round(time * _MICROSECONDS) / _MICROSECONDS for time in times)


def folder_frames(
  reference: MaskReference, folder: Sequence[str] | None, where: str
) -> image_folder.FolderFrames | None:
  """The frames of a video that is a folder of pictures; None if it is a file.

  Raises:
    InputError: a frame is not there, or the mask file is for the other kind of video.
  """
  masks = read(reference.masks)
  if (folder is None) == bool(masks.frames):
    needed = "'times', as the video is a file" if folder is None else "'frames', as it is a folder"
    raise InputError(f"{where}: {reference.masks} needs {needed}")
  if folder is None or reference.frame_rate is None:
    return None
  return image_folder.find_frames(folder, masks.frames, reference.frame_rate, where)
