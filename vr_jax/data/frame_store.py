"""The frame store: videos are decoded to JPEG frames once, then read by (video, index).

On disk, in one directory:

    frames-00000.array_record   JPEG frames, one a record; a video is never split over two shards
    videos.npz, …               the index (frame_index.py), written last
"""

from collections.abc import Iterable, Sequence
import dataclasses
from pathlib import Path
import threading
from typing import Any
import zlib

from array_record.python import (
  array_record_module,  # pyright: ignore[reportAttributeAccessIssue] a C extension without stubs
)
from jaxtyping import Float, Int, UInt8, UInt32
import numpy as np
import simplejpeg

from vr_jax.data import frame_index, video_file
from vr_jax.errors import InputError

# JPEG does not compress further, and groups of one record make random access cheap.
_WRITER_OPTIONS = "group_size:1,uncompressed"
_READER_OPTIONS = "readahead_buffer_size:0"


@dataclasses.dataclass(kw_only=True)
class _Shard:
  """A shard that is being written: its number and file, and how many records and bytes it has."""

  number: int
  path: Path
  writer: Any
  records: int = 0
  bytes: int = 0


class FrameStoreWriter:
  """Writes a frame store into an existing, empty directory. It can't be read before `close`.

  Every method raises InputError if a file can't be written; the store is of no use then.
  """

  def __init__(self, directory: Path, *, fps: float, shard_megabytes: float):
    """Starts an empty store.

    fps: frames sampled a second.
    shard_megabytes: a shard is closed after the video that makes it this large.
    """
    self._directory = directory
    self._fps = fps
    self._shard_bytes = shard_megabytes * 2**20
    self._shard: _Shard | None = None
    self._shards = 0
    self._entries: dict[str, frame_index.StoredVideo] = {}
    self._times: list[Float[np.ndarray, "frames"]] = []
    self._ends: list[Float[np.ndarray, "frames"]] = []
    self._checksums: list[int] = []

  def add(self, video: str, extracted: video_file.ExtractedVideo) -> None:
    """Writes the frames of one video under the name `video`.

    Raises ValueError if the store has a video of this name.
    """
    counts = {len(extracted.jpegs), len(extracted.timestamps), len(extracted.ends)}
    if video in self._entries or len(counts) != 1:
      raise ValueError(f"{video}: was added before, or has numbers of frames and times {counts}")
    shard = self._shard or self._open_shard()
    entry = frame_index.StoredVideo(
      shard=shard.number,
      record=shard.records,
      first=len(self._checksums),
      count=len(extracted.jpegs),
      height=extracted.height,
      width=extracted.width,
      duration=extracted.duration,
      original_height=extracted.original_height,
      original_width=extracted.original_width,
    )
    try:
      for jpeg in extracted.jpegs:
        shard.writer.write(jpeg)
    except RuntimeError as error:  # ArrayRecord raises nothing else
      raise _write_error(shard.path, error) from error
    self._entries[video] = entry
    self._times.append(extracted.timestamps)
    self._ends.append(extracted.ends)
    self._checksums.extend(zlib.crc32(jpeg) for jpeg in extracted.jpegs)
    shard.records += len(extracted.jpegs)
    shard.bytes += sum(len(jpeg) for jpeg in extracted.jpegs)
    if shard.bytes >= self._shard_bytes:
      self._close_shard(shard)

  def close(self) -> None:
    """Closes the last shard and writes the index."""
    if self._shard is not None:
      self._close_shard(self._shard)
    try:
      frame_index.write(
        self._directory,
        self._entries,
        fps=self._fps,
        timestamps=self._times,
        ends=self._ends,
        checksums=self._checksums,
      )
    except OSError as error:
      raise InputError(f"{self._directory}: cannot write the index: {error.strerror}") from error

  def _open_shard(self) -> _Shard:
    number, path = self._shards, self._directory / _shard_name(self._shards)
    self._shards += 1
    try:
      writer = array_record_module.ArrayRecordWriter(str(path), _WRITER_OPTIONS)
    except RuntimeError as error:
      raise _write_error(path, error) from error
    self._shard = _Shard(number=number, path=path, writer=writer)
    return self._shard

  def _close_shard(self, shard: _Shard) -> None:
    try:
      shard.writer.close()
    except RuntimeError as error:
      raise _write_error(shard.path, error) from error
    self._shard = None


class FrameStore:
  """Random access to the frames of a store. Safe to use from several threads."""

  def __init__(self, directory: Path):
    """Opens the store in `directory`.

    Raises InputError if there is none, a file is missing, or the index or the times are damaged.
    """
    self._directory = directory
    self._index = frame_index.read(directory)
    self.fps = self._index.fps
    for shard in np.unique(self._index.videos["shard"]).tolist():
      path = directory / _shard_name(shard)
      if not path.is_file():
        raise InputError(f"{path}: is missing; copy it here, or ingest again")
    self._readers: dict[str, array_record_module.ArrayRecordReader] = {}
    self._lock = threading.Lock()

  @property
  def videos(self) -> tuple[str, ...]:
    """The names of the videos, in the order written."""
    return tuple(self._index)

  def duration(self, video: str) -> float:
    """Seconds from the first frame of the video file to the end of its last."""
    return self._entry(video).duration

  def size(self, video: str) -> tuple[int, int]:
    """Height and width of the stored frames of `video`, in pixels."""
    entry = self._entry(video)
    return entry.height, entry.width

  def original_size(self, video: str) -> tuple[int, int] | None:
    """Height and width of `video` before it was scaled down, in pixels; None in older stores."""
    entry = self._entry(video)
    size = entry.original_height, entry.original_width
    return size if all(size) else None

  def timestamps(self, video: str) -> Float[np.ndarray, "frames"]:
    """The time of each stored frame: float64 seconds since the first frame, increasing."""
    entry = self._entry(video)
    return np.array(self._index.timestamps[entry.first : entry.first + entry.count])

  def ends(self, video: str) -> Float[np.ndarray, "frames"]:
    """When each stored frame left the screen: float64 seconds, not before its timestamp.

    In the oldest stores frames have no length: these are the timestamps again.
    """
    entry = self._entry(video)
    return np.array(self._index.ends[entry.first : entry.first + entry.count])

  def checksums(self, video: str) -> UInt32[np.ndarray, "frames"]:
    """The CRC-32 of each stored frame of `video`."""
    entry = self._entry(video)
    return np.array(self._index.checksums[entry.first : entry.first + entry.count])

  def find(self, extracted: video_file.ExtractedVideo) -> tuple[str, ...]:
    """Names of the stored videos that have exactly these frames at these times."""
    checksums = np.array([zlib.crc32(jpeg) for jpeg in extracted.jpegs], np.uint32)
    return tuple(
      name
      for name in self.videos
      if np.array_equal(self.checksums(name), checksums)
      and np.array_equal(self.timestamps(name), extracted.timestamps)
    )

  def read(
    self, video: str, indices: Sequence[int] | Int[np.ndarray, "frames"]
  ) -> UInt8[np.ndarray, "frames height width 3"]:
    """Reads frames of `video` as RGB, in the order of `indices`.

    indices: 0 is the video's first stored frame.

    Raises:
      InputError: the store has no such video, or a record is damaged; names shard and record.
      IndexError: an index is outside the stored frames of the video.
    """
    entry = self._entry(video)
    frames = np.empty((len(indices), entry.height, entry.width, 3), np.uint8)
    for position, jpeg in enumerate(self.jpegs(video, indices)):
      size = simplejpeg.decode_jpeg_header(jpeg)[:2]
      if size != (entry.height, entry.width):
        path = self._directory / _shard_name(entry.shard)
        where = f"{path}: record {entry.record + int(indices[position])}"
        raise InputError(f"{where} has size {size}, unlike the index; ingest again")
      simplejpeg.decode_jpeg(jpeg, colorspace="RGB", buffer=frames[position])
    return frames

  def jpegs(self, video: str, indices: Sequence[int] | Int[np.ndarray, "frames"]) -> list[bytes]:
    """Reads frames as the stored JPEG bytes. Raises what `read` raises."""
    entry = self._entry(video)
    outside = [int(index) for index in indices if not 0 <= index < entry.count]
    if outside:
      raise IndexError(f"{video}: no frame {outside[0]} among {entry.count}")
    if not len(indices):
      return []
    records = [entry.record + int(index) for index in indices]
    jpegs = list(self._read_records(entry, records))
    for record, jpeg in zip(records, jpegs, strict=True):
      if zlib.crc32(jpeg) != self._index.checksums[entry.first + record - entry.record]:
        where = f"{self._directory / _shard_name(entry.shard)}: record {record}"
        raise InputError(f"{where} is damaged: its checksum differs; ingest again")
    return jpegs

  def _entry(self, video: str) -> frame_index.StoredVideo:
    entry = self._index.find(video)
    if entry is None:
      raise InputError(f"{self._directory}: the frame store has no video {video!r}")
    return entry

  def _read_records(
    self, entry: frame_index.StoredVideo, records: Sequence[int]
  ) -> Sequence[bytes]:
    path = self._directory / _shard_name(entry.shard)
    try:
      return self._reader(path).read(records)
    except (RuntimeError, IndexError) as error:
      # The error does not say which record is damaged, so read them one by one.
      for record in records:
        self._check_record(path, record)
      raise InputError(f"{path}: cannot be read: {_one_line(error)}") from error

  def _check_record(self, path: Path, record: int) -> None:
    """Raises InputError if a record can't be read."""
    try:
      self._reader(path).read([record])
    except (RuntimeError, IndexError) as error:
      raise InputError(
        f"{path}: record {record} is damaged: {_one_line(error)}; ingest again"
      ) from error

  def _reader(self, path: Path) -> array_record_module.ArrayRecordReader:
    with self._lock:
      if path.name not in self._readers:
        self._readers[path.name] = array_record_module.ArrayRecordReader(
          str(path), options=_READER_OPTIONS, file_reader_buffer_size=32768
        )
      return self._readers[path.name]


def write(
  directory: Path,
  videos: Iterable[tuple[str, Path]],
  *,
  fps: float,
  quality: int,
  max_side: int,
  shard_megabytes: float,
) -> FrameStore:
  """Writes videos, given as (name, file), into a new store.

  directory: exists and is empty.
  fps: frames sampled a second.
  quality: of JPEG, 1 to 100.
  max_side: pixels of a stored frame's longer side, at most.

  Raises InputError at the first bad video.
  """
  writer = FrameStoreWriter(directory, fps=fps, shard_megabytes=shard_megabytes)
  for video, path in videos:
    writer.add(video, video_file.extract(path, fps=fps, quality=quality, max_side=max_side))
  writer.close()
  return FrameStore(directory)


def _shard_name(number: int) -> str:
  return f"frames-{number:05d}.array_record"


def _write_error(path: Path, error: RuntimeError) -> InputError:
  return InputError(f"{path}: cannot write frames: {_one_line(error)}")


def _one_line(error: Exception) -> str:
  return " ".join(str(error).split())
