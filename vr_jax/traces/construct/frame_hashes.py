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

from jaxtyping import Bool, Float, Int, UInt8
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


def within(video: FrameHashes, start: float, end: float) -> FrameHashes:
  """A video's frames from `start` to `end` in seconds; the nearest one if there is none."""
  times = np.array(video.times)
  places = np.nonzero((times >= start) & (times <= end))[0]
  if not len(places):
    places = np.abs(times - start).argsort()[:1]
  return dataclasses.replace(
    video,
    checksums=tuple(video.checksums[place] for place in places),
    times=tuple(video.times[place] for place in places),
    hashes=video.hashes[places],
  )


class HashedFrames:
  """The frames of benchmarks, to find videos that have some of them.

  What is shared counts as a share of the shorter video: a benchmark's video may be a part of a long
  one, and the other way round.
  """

  def __init__(self, videos: Sequence[FrameHashes], *, similarity: float, share: float):
    """Indexes videos.

    similarity: of the bits of two frames that are alike, in (0, 1].
    share: of the shorter video's frames that have to be like frames of the other one, in (0, 1].
    """
    self._similarity, self._share = similarity, share
    self._names = [video.name for video in videos]
    owner = np.repeat(np.arange(len(videos)), [len(video.hashes) for video in videos])
    rows = [video.hashes for video in videos] or [np.zeros((0, _BITS // 8), np.uint8)]
    bits = np.unpackbits(np.concatenate(rows), axis=1)
    telling = bits.sum(axis=1) >= _LEAST_BITS
    self._bits, self._owner = bits[telling], owner[telling]
    self._sizes = np.bincount(self._owner, minlength=len(videos))
    self._distinct = [len(set(video.checksums)) for video in videos]
    self._owners: dict[int, set[int]] = {}  # of frames by checksum
    for number, video in enumerate(videos):
      for checksum in video.checksums:
        self._owners.setdefault(checksum, set()).add(number)

  def find(self, video: FrameHashes) -> str:
    """Which benchmark video a video shares frames with, and how many; "" if none."""
    checksums = set(video.checksums)
    owners = Counter(owner for each in checksums for owner in self._owners.get(each, ()))
    for owner, shared in owners.most_common():
      size = min(len(checksums), self._distinct[owner])
      if shared >= self._share * size:
        return f"{shared} of {size} frames are those of {self._names[owner]}"
    bits = np.unpackbits(video.hashes, axis=1)
    bits = bits[bits.sum(axis=1) >= _LEAST_BITS]
    if not len(bits) or not len(self._bits):
      return ""
    own, theirs = self._alike_frames(bits)
    sizes = np.minimum(len(bits), self._sizes)
    counts = np.where(self._sizes < len(bits), theirs, own)
    shares = counts / np.maximum(sizes, 1)
    best = int(shares.argmax())
    if shares[best] < self._share:
      return ""
    return f"{counts[best]} of {sizes[best]} frames look like those of {self._names[best]}"

  def _alike_frames(
    self, bits: UInt8[np.ndarray, "frames bits"]
  ) -> tuple[Int[np.ndarray, " videos"], Int[np.ndarray, " videos"]]:
    """How many of the frames are like one of each benchmark video, and of its frames like one."""
    wanted = bits.astype(np.float32)
    size = wanted.sum(axis=1)[:, None]
    own = np.zeros((len(bits), len(self._names)), bool)
    theirs = np.zeros(len(self._bits), bool)
    for start in range(0, len(self._bits), _BLOCK):
      known = self._bits[start : start + _BLOCK].astype(np.float32)
      both = wanted @ known.T
      found = both >= self._similarity * (size + known.sum(axis=1) - both)
      frames, places = np.nonzero(found)
      own[frames, self._owner[start + places]] = True
      theirs[start : start + _BLOCK] = found.any(axis=0)
    return own.sum(axis=0), np.bincount(self._owner[theirs], minlength=len(self._names))
