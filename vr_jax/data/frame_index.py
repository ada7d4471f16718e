"""The index of a frame store: where the frames of each video are, and when they are shown.

    videos.npz        an entry for each video; written last
    timestamps.npy    an entry for each frame, in the order written: seconds since the first frame
    ends.npy          seconds at which the frame left the screen
    checksums.npy     CRC-32 of its JPEG

Entries of videos are read whole, about 80 bytes each. Entries of frames are mapped: only what is
read takes memory, once for all processes of a host.

Older stores have index.json and times.npz instead, which are read whole.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from pathlib import Path
import re
import struct
import tokenize
from typing import Any
import zipfile
import zlib

from jaxtyping import Float, Int, UInt8, UInt32
import numpy as np

from vr_jax import plain_json
from vr_jax.errors import InputError

_FORMAT = 2
# What NumPy and zipfile raise for damaged files.
_DAMAGED = (
  *(OSError, ValueError, KeyError, EOFError, TypeError, SyntaxError, AttributeError, IndexError),
  *(MemoryError, OverflowError, RuntimeError, tokenize.TokenError, zipfile.BadZipFile),
  *(zlib.error, struct.error),
)
_FRAME_KINDS = {"timestamps": "f", "ends": "f", "checksums": "u"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoredVideo:
  """Where the frames of one video are.

  shard: number of the file.
  record: index of the first frame's record in the shard.
  first: index of the first frame's record in the whole store.
  count: number of frames.
  height, width: in pixels.
  duration: in seconds.
  original_height, original_width: of the video before it was scaled down; 0 in the oldest stores.
  """

  shard: int
  record: int
  first: int
  count: int
  height: int
  width: int
  duration: float
  original_height: int
  original_width: int


_SMALL = 4096  # frames; of a store with more, arrays with an entry for each are mapped
_COLUMNS = np.dtype(
  [(name, np.int32) for name in ("shard", "record")]
  + [("first", np.int64), ("count", np.int32)]
  + [(name, np.uint32) for name in ("height", "width", "original_height", "original_width")]
  + [("duration", np.float64)]
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FrameIndex:
  """A loaded index; maps names of videos to entries.

  names: of all videos as UTF-8, one behind the other; name i ends at `name_ends[i]`.
  order: the videos sorted by name.
  """

  fps: float
  videos: np.ndarray
  names: UInt8[np.ndarray, "bytes"]
  name_ends: Int[np.ndarray, "videos"]
  order: Int[np.ndarray, "videos"]
  timestamps: Float[np.ndarray, "frames"]
  ends: Float[np.ndarray, "frames"]
  checksums: UInt32[np.ndarray, "frames"]

  def __len__(self) -> int:
    """The number of videos."""
    return len(self.videos)

  def __iter__(self) -> Iterator[str]:
    """The names of the videos, in the order written."""
    return (_decode(self._name(number)) for number in range(len(self)))

  def find(self, video: str) -> StoredVideo | None:
    """The entry of a video; None if there is none."""
    wanted = _encode(video)
    low, high = 0, len(self)
    while low < high:
      middle = (low + high) // 2
      if self._name(int(self.order[middle])) < wanted:
        low = middle + 1
      else:
        high = middle
    if low == len(self) or self._name(int(self.order[low])) != wanted:
      return None
    entry = self.videos[int(self.order[low])]
    return StoredVideo(**{name: entry[name].item() for name in _COLUMNS.names or ()})

  def _name(self, number: int) -> bytes:
    start = int(self.name_ends[number - 1]) if number else 0
    return self.names[start : int(self.name_ends[number])].tobytes()


def write(
  directory: Path,
  videos: Mapping[str, StoredVideo],
  *,
  fps: float,
  timestamps: Sequence[Float[np.ndarray, "_"]],
  ends: Sequence[Float[np.ndarray, "_"]],
  checksums: Sequence[int],
) -> None:
  """Writes an index. timestamps, ends: an array for each video; checksums: of all frames."""
  np.save(directory / "timestamps.npy", np.concatenate([*timestamps, np.zeros(0)]))
  np.save(directory / "ends.npy", np.concatenate([*ends, np.zeros(0)]))
  np.save(directory / "checksums.npy", np.array(checksums, np.uint32))
  arrays: dict[str, Any] = {"format": np.int64(_FORMAT), "fps": np.float64(fps)}
  np.savez(directory / "videos.npz", **arrays, **_arrays(videos))


def _arrays(videos: Mapping[str, StoredVideo]) -> dict[str, Any]:
  """The entries of videos as arrays, by their names in a FrameIndex."""
  names = [_encode(name) for name in videos]
  columns = np.zeros(len(videos), _COLUMNS)
  for number, entry in enumerate(videos.values()):
    columns[number] = tuple(getattr(entry, name) for name in _COLUMNS.names or ())
  return {
    "videos": columns,
    "names": np.frombuffer(b"".join(names), np.uint8),
    "name_ends": np.cumsum([len(name) for name in names], dtype=np.int64),
    "order": np.array(sorted(range(len(names)), key=names.__getitem__), np.int32),
  }


def read(directory: Path) -> FrameIndex:
  """Reads the index of a store.

  Raises InputError if there is none, or it is damaged or of another version.
  """
  path = directory / "videos.npz"
  if not path.is_file():
    if (directory / "index.json").is_file():
      return _read_older(directory)
    raise InputError(f"{directory}: holds no frame store (no videos.npz)")
  try:
    with np.load(path, allow_pickle=False) as arrays:
      found = {name: arrays[name] for name in arrays.files}
    version = found.pop("format").item()
    if version != _FORMAT:
      raise InputError(f"{path}: has format {version!r}, not {_FORMAT}; ingest again")
    fps = float(found.pop("fps").item())
    _check_videos(found)
  except _DAMAGED as error:
    raise InputError(f"{path}: is damaged: {_one_line(error)}; ingest again") from error
  frames = int(found["videos"]["count"].sum(dtype=np.int64))
  for name, kind in _FRAME_KINDS.items():
    found[name] = _map(directory / f"{name}.npy", kind, frames)
  return FrameIndex(fps=fps, **found)


def _read_older(directory: Path) -> FrameIndex:
  """Reads the index of a store of format 1, whose oldest have no `ends` and original sizes."""
  path, times = directory / "index.json", directory / "times.npz"
  try:
    index = plain_json.parse(path.read_bytes())
    if index["format"] != 1:
      raise InputError(f"{path}: has format {index['format']!r}, not 1; ingest again")
    videos = {}
    for name, entry in index["videos"].items():
      shard = re.fullmatch(r"frames-([0-9]{5,9})\.array_record", entry["shard"])
      if shard is None:
        raise ValueError(f"{name!r:.60}: shard {entry['shard']!r:.60} is no file of this directory")
      unknown_size = {"original_height": 0, "original_width": 0}
      entry = {**unknown_size, **entry, "shard": int(shard[1])}
      videos[name] = plain_json.build(StoredVideo, entry)
    found, fps = _arrays(videos), float(index["fps"])
    _check_videos(found)
  except _DAMAGED as error:
    raise InputError(f"{path}: is damaged: {_one_line(error)}; ingest again") from error
  frames = int(found["videos"]["count"].sum(dtype=np.int64))
  try:
    with np.load(times, allow_pickle=False) as arrays:
      found |= {name: arrays[name] for name in ("timestamps", "checksums")}
      found["ends"] = arrays.get("ends", found["timestamps"])
  except _DAMAGED as error:
    raise InputError(f"{times}: is damaged: {_one_line(error)}; ingest again") from error
  if any(
    (found[name].shape, found[name].dtype.kind) != ((frames,), kind)
    for name, kind in _FRAME_KINDS.items()
  ):
    raise InputError(f"{times}: is damaged: not for {frames} frames; ingest again")
  return FrameIndex(fps=fps, **found)


def _map(path: Path, kind: str, frames: int) -> np.ndarray:
  """Maps an array with an entry for each frame. kind: of its dtype."""
  try:
    # NumPy can't map an array without entries, and reads a small one in half the time.
    mapped = np.load(path, mmap_mode="r" if frames > _SMALL else None, allow_pickle=False)
    matches = isinstance(mapped, np.ndarray) and (mapped.shape, mapped.dtype.kind) == (
      (frames,),
      kind,
    )
  except _DAMAGED as error:
    raise InputError(f"{path}: is damaged: {_one_line(error)}; ingest again") from error
  if not matches:
    raise InputError(f"{path}: is damaged: not for {frames} frames; ingest again")
  return mapped


def _check_videos(found: Mapping[str, np.ndarray]) -> None:
  """Raises ValueError unless the frames of all videos are those of the store, each once."""
  videos, names, ends, order = (found[name] for name in ("videos", "names", "name_ends", "order"))
  count = len(videos)
  if videos.dtype != _COLUMNS or set(found) != {"videos", "names", "name_ends", "order"}:
    raise ValueError("it has other columns")
  kinds = [(each.shape, each.dtype.kind) for each in (ends, order)]
  if kinds != [((count,), "i")] * 2 or names.dtype != np.uint8 or names.ndim != 1:
    raise ValueError("its names are not those of its videos")
  if not np.array_equal(np.sort(order), np.arange(count)):
    raise ValueError("its order is not one of its videos")
  if count and not ((np.diff(ends, prepend=0) > 0).all() and ends[-1] == len(names)):
    raise ValueError("its names are not those of its videos")
  numbers = ("shard", "record", "first", "count")
  if any((videos[name] < 0).any() for name in numbers) or any(
    (videos[name] < 1).any() for name in ("height", "width")
  ):
    raise ValueError("a number is below its least")
  if not (np.isfinite(videos["duration"]) & (videos["duration"] >= 0)).all():
    raise ValueError("a duration is negative or no number")
  following = np.cumsum(videos["count"], dtype=np.int64)
  if not np.array_equal(videos["first"], following - videos["count"]):
    raise ValueError("frames of a video do not follow those of the video before")


def _encode(name: str) -> bytes:
  """A name as bytes. Names of files that are not UTF-8 hold surrogates."""
  return name.encode("utf-8", "surrogatepass")


def _decode(name: bytes) -> str:
  return name.decode("utf-8", "surrogatepass")


def _one_line(error: Exception) -> str:
  return " ".join(str(error).split())
