"""Compares videos by their frames: exactly, by checksums, and roughly, by a perceptual hash.

The hash of a frame is a difference hash: the frame, grey and shrunk to 17 x 17 cells, is compared
with itself one cell to the right and one down. For each of 16 x 16 cells it has four bits: clearly
darker or brighter than the cell to the right, and than the one below ("clearly": by more than
`_CLEARLY` of 256 levels). Flat parts have no bit, so noise of a codec sets none.

Two frames are alike if |bits of both| / |bits of either| reaches a threshold. A frame with fewer
than `_LEAST_BITS` bits, such as a black one, is like no other.

Source: N. Krawetz, "Kind of Like That", 2013, for difference hashes. Reconstruction: the paper
doesn't say whether or how it was decontaminated; cells, margin and thresholds are ours.
"""

from collections import Counter
from collections.abc import Sequence
import dataclasses
import io
from typing import Any
import zlib

from jaxtyping import Bool, Float, UInt8
import numpy as np
from PIL import Image

_CELLS = 16
_CLEARLY = 6.0  # levels of 256
_LEAST_BITS = 24  # of the 1,024 of a frame
_BITS = 4 * _CELLS * _CELLS
_BLOCK = 4096  # frames compared at once


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FrameHashes:
  """What is known of the sampled frames of a video.

  checksums: CRC-32 of each frame's JPEG.
  times: of the frames in seconds.
  hashes: packed bits of each frame's hash.
  duration: of the video in seconds.
  """

  name: str
  checksums: tuple[int, ...]
  times: tuple[float, ...]
  hashes: UInt8[np.ndarray, "frames bytes"]
  duration: float

  def to_json(self) -> dict[str, Any]:
    """The fields as JSON."""
    return {
      "name": self.name,
      "checksums": list(self.checksums),
      "times": list(self.times),
      "hashes": [row.tobytes().hex() for row in self.hashes],
      "duration": self.duration,
    }


def from_json(value: Any) -> FrameHashes:
  """Makes what `FrameHashes.to_json` has written. Raises ValueError, KeyError or TypeError."""
  rows = [np.frombuffer(bytes.fromhex(row), np.uint8) for row in value["hashes"]]
  hashes = np.array(rows, np.uint8).reshape(len(rows), _BITS // 8)
  if not len(rows) == len(value["checksums"]) == len(value["times"]):
    raise ValueError("as many hashes, checksums and times are needed")
  return FrameHashes(
    name=str(value["name"]),
    checksums=tuple(map(int, value["checksums"])),
    times=tuple(map(float, value["times"])),
    hashes=hashes,
    duration=float(value["duration"]),
  )


def of_jpegs(
  name: str, jpegs: Sequence[bytes], times: Sequence[float], duration: float
) -> FrameHashes:
  """Describes the sampled frames of a video."""
  hashes = [hash_frame(np.asarray(Image.open(io.BytesIO(jpeg)).convert("L"))) for jpeg in jpegs]
  return FrameHashes(
    name=name,
    checksums=tuple(zlib.crc32(jpeg) for jpeg in jpegs),
    times=tuple(float(time) for time in times),
    hashes=np.array(hashes, np.uint8).reshape(len(jpegs), _BITS // 8),
    duration=duration,
  )


def hash_frame(grey: UInt8[np.ndarray, "height width"]) -> UInt8[np.ndarray, "bytes"]:
  """The packed bits of a frame's difference hash."""
  size = (_CELLS + 1, _CELLS + 1)
  small = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BOX), np.float32)
  return np.packbits(_difference_bits(small))


def _difference_bits(small: Float[np.ndarray, "rows columns"]) -> Bool[np.ndarray, "bits"]:
  right = small[:-1, 1:] - small[:-1, :-1]
  down = small[1:, :-1] - small[:-1, :-1]
  signs = [right > _CLEARLY, right < -_CLEARLY, down > _CLEARLY, down < -_CLEARLY]
  return np.concatenate([each.ravel() for each in signs])


def find_copies(videos: Sequence[FrameHashes]) -> dict[str, str]:
  """Maps each video that has the same frames as others to the first of them by name."""
  first: dict[tuple[Any, ...], str] = {}
  copies = {}
  for video in sorted(videos, key=lambda video: video.name):
    key = (video.checksums, video.hashes.tobytes())
    if first.setdefault(key, video.name) != video.name:
      copies[video.name] = first[key]
  return copies


class HashedFrames:
  """The frames of benchmarks, to find videos that have some of them."""

  def __init__(self, videos: Sequence[FrameHashes], *, similarity: float, share: float):
    """Indexes videos.

    similarity: of the bits of two frames that are alike, in (0, 1].
    share: of a video's frames that have to be like frames of one benchmark video, in (0, 1].
    """
    self._similarity, self._share = similarity, share
    self._names = [video.name for video in videos]
    self._owner = np.repeat(np.arange(len(videos)), [len(video.hashes) for video in videos])
    rows = [video.hashes for video in videos] or [np.zeros((0, _BITS // 8), np.uint8)]
    self._bits = np.unpackbits(np.concatenate(rows), axis=1)
    self._owners: dict[int, set[int]] = {}  # of frames by checksum
    for number, video in enumerate(videos):
      for checksum in video.checksums:
        self._owners.setdefault(checksum, set()).add(number)

  def find(self, video: FrameHashes) -> str:
    """Which benchmark video a video has frames of, and how many; "" if of none."""
    checksums = set(video.checksums)
    owners = Counter(owner for each in checksums for owner in self._owners.get(each, ()))
    for owner, shared in owners.most_common(1):
      if shared >= self._share * len(checksums):
        return f"{shared} of {len(checksums)} frames are those of {self._names[owner]}"
    bits = np.unpackbits(video.hashes, axis=1)
    bits = bits[bits.sum(axis=1) >= _LEAST_BITS]
    if not len(bits) or not self._names:
      return ""
    counts = self._alike_frames(bits)
    best = int(counts.argmax())
    if counts[best] < self._share * len(bits):
      return ""
    return f"{counts[best]} of {len(bits)} frames look like those of {self._names[best]}"

  def _alike_frames(self, bits: UInt8[np.ndarray, "frames bits"]) -> np.ndarray:
    """How many of the frames each benchmark video has one like, int64 [videos]."""
    wanted = bits.astype(np.float32)
    size = wanted.sum(axis=1)[:, None]
    alike = np.zeros((len(bits), len(self._names)), bool)
    for start in range(0, len(self._bits), _BLOCK):
      known = self._bits[start : start + _BLOCK].astype(np.float32)
      both = wanted @ known.T
      known_size = known.sum(axis=1)
      found = both >= self._similarity * (size + known_size - both)
      found &= known_size >= _LEAST_BITS
      frames, places = np.nonzero(found)
      alike[frames, self._owner[start + places]] = True
    return alike.sum(axis=0)
