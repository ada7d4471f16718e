"""Checks that the parts of a video file follow each other from its start to its end.

FFmpeg goes on at the next part that it recognizes, wherever a file is damaged, and stops without an
error where one was cut. So frames may be missing from what it decodes. In the formats below each
part says how long it is, so a gap or a missing end shows. A file that was cut just between two
parts can't be told from a shorter one.
"""

from collections.abc import Callable
import os
from pathlib import Path
from typing import BinaryIO

_TS_PACKETS = (188, 192, 204)  # bytes: plain, with a time before each, with a check sum
_TS_SYNC = 0x47  # the first byte of a packet
_TS_RECOGNIZED = 5  # packets by which their size is recognized

_FLV_KINDS = (8, 9, 18)  # sound, picture, script

_EBML, _SEGMENT, _CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675
# What a segment may hold: clusters, then seek head, info, tracks, cues, tags, chapters,
# attachments, void, check sum.
_IN_SEGMENT = {_CLUSTER, 0x114D9B74, 0x1549A966, 0x1654AE6B, 0x1C53BB6B, 0x1254C367, 0x1043A770}
_IN_SEGMENT |= {0x1941A469, 0xEC, 0xBF}
# What a cluster may hold: time, blocks in three forms, position, size before, silent tracks, void,
# check sum.
_IN_CLUSTER = {0xE7, 0xA3, 0xA0, 0xAF, 0xA7, 0xAB, 0x5854, 0xEC, 0xBF}

# What fragmented MP4 may hold.
_MP4_BOXES = {b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"mfra", b"sidx", b"ssix", b"prft"}
_MP4_BOXES |= {b"emsg", b"free", b"skip", b"wide", b"uuid", b"pdin", b"meta", b"udta", b"mfro"}


def is_whole(path: Path, format_name: str) -> bool:
  """Whether each part of a file ends where the next one begins, and the last at the file's end.

  format_name: as FFmpeg calls its format. MPEG-TS, FLV, Matroska (WebM) and fragmented MP4 are
    looked at; others pass.

  Raises OSError if the file can't be read.
  """
  checks: dict[str, Callable[[BinaryIO, int], bool]] = {
    "mpegts": _has_whole_packets,
    "flv": _has_whole_tags,
    "matroska": _has_whole_elements,
    "mp4": _has_whole_fragments,
  }
  with path.open("rb") as file:
    size = os.fstat(file.fileno()).st_size
    return all(
      check(file, size) for name, check in checks.items() if name in format_name.split(",")
    )


def _has_whole_packets(file: BinaryIO, size: int) -> bool:
  start = file.read(_TS_RECOGNIZED * max(_TS_PACKETS))
  for packet in _TS_PACKETS:
    first = 4 if packet == 192 else 0
    syncs = start[first : _TS_RECOGNIZED * packet : packet]
    if syncs and syncs.count(_TS_SYNC) == len(syncs):
      break
  else:
    return True  # begins within a packet, as the recording of a broadcast may
  file.seek(0)
  while chunk := file.read(packet << 12):
    syncs = chunk[first::packet]
    if syncs.count(_TS_SYNC) < len(syncs):
      return False
  return size % packet == 0


def _has_whole_tags(file: BinaryIO, size: int) -> bool:
  """FLV: a header, which says its length, then tags with four bytes before and after each."""
  place = int.from_bytes(file.read(9)[5:], "big") + 4
  while place < size:
    file.seek(place)
    header = file.read(11)
    if header[:1] and header[0] & 0x1F not in _FLV_KINDS:
      return False
    if len(header) < 11 or header[8:] != b"\0\0\0":
      return False
    place += 11 + int.from_bytes(header[1:4], "big") + 4
  return place - 4 <= size  # some programs leave out the last four bytes


def _has_whole_elements(file: BinaryIO, size: int) -> bool:
  """Matroska: a header and a segment, which holds clusters, which hold blocks."""
  place, segment_end, cluster_end = 0, size, None
  while place < segment_end:
    element = _read_element(file, place)
    if element is None:
      return False
    kind, content, end = element
    if kind == _SEGMENT:
      place, segment_end = content, size if end is None else end
    elif kind in _IN_SEGMENT and cluster_end in (None, place):
      place, cluster_end = (content, end) if kind == _CLUSTER else (end or size, None)
    elif kind in _IN_CLUSTER or (kind == _EBML and place == 0):
      place = end or size
    else:
      return False
  return place == segment_end <= size


def _read_element(file: BinaryIO, start: int) -> tuple[int, int, int | None] | None:
  """Reads the head of an element: (kind, where its content is, where it ends, if it says so).

  Returns None if there is no element.
  """
  file.seek(start)
  head = file.read(12)
  kind_bytes = 9 - head[0].bit_length() if head else 9
  if kind_bytes > 4 or len(head) <= kind_bytes:
    return None
  size_bytes = 9 - head[kind_bytes].bit_length()
  content = kind_bytes + size_bytes
  if size_bytes > 8 or len(head) < content:
    return None
  unknown = (1 << 7 * size_bytes) - 1
  length = int.from_bytes(head[kind_bytes:content], "big") & unknown
  end = None if length == unknown else start + content + length
  return int.from_bytes(head[:kind_bytes], "big"), start + content, end


def _has_whole_fragments(file: BinaryIO, size: int) -> bool:
  """MP4: boxes, each of which begins with its size. A fragment is `moof`, then `mdat`."""
  place, kinds = 0, []
  while place < size:
    file.seek(place)
    header = file.read(16)
    length = int.from_bytes(header[:4], "big")
    if length == 1:
      length = int.from_bytes(header[8:], "big")
    kinds.append(header[4:8])
    if length < 8:  # 0: to the end of the file
      length = size - place if len(header) >= 8 else size
    place += length
  if b"moof" not in kinds:
    return True
  return place == size and kinds[-1] != b"moof" and _MP4_BOXES.issuperset(kinds)
