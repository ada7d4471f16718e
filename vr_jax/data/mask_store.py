"""The mask store: run-length masks of the instances in each video, beside its frames.

On disk, in one directory:

    masks.array_record   one record a video: its mask file (mask_files.py) as JSON
    index.json           the record and the times of annotated frames of each video; written last
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import json
from pathlib import Path

from array_record.python import (
  array_record_module,  # pyright: ignore[reportAttributeAccessIssue] a C extension without stubs
)
from jaxtyping import Bool, Float
import numpy as np

from vr_jax import plain_json, run_length
from vr_jax.data import mask_files
from vr_jax.errors import InputError

_FORMAT = 1
_FILE = "masks.array_record"


def write(directory: Path, files: Mapping[str, tuple[Path, Sequence[float]]]) -> None:
  """Writes the masks of videos into a new directory; nothing is written if there are none.

  files: the mask file of each video, and the times of its annotated frames in seconds.

  Raises:
    InputError: a mask file is bad, or writing fails.
  """
  if not files:
    return
  directory.mkdir()
  try:
    writer = array_record_module.ArrayRecordWriter(str(directory / _FILE), "group_size:1")
    for path, _ in files.values():
      mask_files.read(path)  # checked once more: it is copied as it is now
      writer.write(path.read_bytes())
    writer.close()
  except RuntimeError as error:  # the only exception that ArrayRecord raises
    raise InputError(f"{directory / _FILE}: cannot write masks: {error}") from error
  videos = {
    name: {"record": record, "times": list(times)}
    for record, (name, (_, times)) in enumerate(files.items())
  }
  index = {"format": _FORMAT, "videos": videos}
  (directory / "index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _StoredMasks:
  """An entry of the index: the record of a video's masks, and their times in seconds."""

  record: int
  times: tuple[float, ...]


class MaskStore:
  """Random access to the masks of videos. Safe to use from several threads."""

  def __init__(self, directory: Path):
    """Opens the store in `directory`. Raises InputError if there is none or it is damaged."""
    self._path = directory / _FILE
    index_path = directory / "index.json"
    try:
      index = plain_json.parse(index_path.read_bytes())
      if index["format"] != _FORMAT:
        raise InputError(
          f"{index_path}: has format {index['format']!r}, not {_FORMAT}; ingest again"
        )
      entries = {n: plain_json.build(_StoredMasks, each) for n, each in index["videos"].items()}
      self._records = {name: entry.record for name, entry in entries.items()}
      self._times = {name: entry.times for name, entry in entries.items()}
      if sorted(self._records.values()) != list(range(len(entries))):
        raise ValueError("its records are not numbered from 0 on")
      self._reader = array_record_module.ArrayRecordReader(
        str(self._path), options="readahead_buffer_size:0", file_reader_buffer_size=32768
      )
    except FileNotFoundError as error:
      raise InputError(f"{directory}: holds no mask store (no index.json)") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
      problem = " ".join(str(error).split())
      raise InputError(f"{directory}: is damaged: {problem}; ingest again") from error
    self._parsed = functools.lru_cache(maxsize=4)(self._parse)

  @property
  def videos(self) -> tuple[str, ...]:
    """The names of the videos that have masks."""
    return tuple(self._records)

  def size(self, video: str) -> tuple[int, int]:
    """Height and width of a video's masks, which are those of its original frames, in pixels."""
    masks = self._parsed(video)
    return masks.height, masks.width

  def instances(self, video: str) -> tuple[str, ...]:
    """The names of the instances in a video."""
    return tuple(self._parsed(video).instances)

  def frames(self, video: str, instances: Sequence[str] = ()) -> tuple[str, ...]:
    """Names of the frames in which some instances are annotated, as `read` gives their masks.

    () for a video that is a file, whose frames have no names.
    """
    masks = self._parsed(video)
    found = masks.object_masks(instances)
    return tuple(masks.frames[frame] for frame in found) if masks.frames else ()

  def times(self, video: str, instances: Sequence[str]) -> Float[np.ndarray, "frames"]:
    """Times of the frames in which some instances are annotated, as `read` gives their masks.

    In seconds, as in `ObjectTrack.times`.
    """
    found = self._parsed(video).object_masks(instances)
    return np.array([self._times[video][frame] for frame in found], np.float64)

  def read(
    self, video: str, instances: Sequence[str], frames: Sequence[int] | None = None
  ) -> Bool[np.ndarray, "frames height width"]:
    """Reads the union of the masks of some instances, as a query means them.

    instances: as in `ObjectTrack.instances`; () gives masks without a pixel.
    frames: indices of the frames in which all of them are annotated, as in `ObjectTrack.times`;
      None: all of these.

    Raises:
      InputError: the store has no such video or instance, or a record is damaged.
      IndexError: a frame is not among the annotated ones.
    """
    masks = self._parsed(video)
    for name in instances:
      if name not in masks.instances:
        raise InputError(f"{self._path}: video {video!r} has no instance {name!r}")
    each = list(masks.object_masks(instances).values())
    chosen = range(len(each)) if frames is None else frames
    if outside := [frame for frame in chosen if not 0 <= frame < len(each)]:
      raise IndexError(f"{video}: no annotated frame {outside[0]} among {len(each)}")
    height, width = masks.height, masks.width
    found = [run_length.decode(each[frame], height, width) for frame in chosen]
    return np.stack(found) if found else np.zeros((0, height, width), bool)

  def _parse(self, video: str) -> mask_files.MaskFile:
    if video not in self._records:
      raise InputError(f"{self._path}: the mask store has no video {video!r}")
    record = self._records[video]
    try:
      (content,) = self._reader.read([record])
      masks = mask_files.parse(plain_json.parse(content), f"{self._path}: record {record}")
      if len(self._times[video]) != len(masks.frames or masks.times):
        raise ValueError("the index has other times")
      return masks
    except (RuntimeError, IndexError, ValueError) as error:
      raise InputError(
        f"{self._path}: record {record} is damaged: {' '.join(str(error).split())}; ingest again"
      ) from error
