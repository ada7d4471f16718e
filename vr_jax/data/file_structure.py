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

# Windows Media (ASF): the kinds of objects, each of which begins with its kind and its size.
_ASF_HEADER = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_ASF_PACKETS = 50  # bytes of the data object before its packets
_ASF_LIVE = 1  # flag: the file was written while it was recorded, and has no sizes
_ASF_PACKET = b"\x82\0\0"  # how nearly all programs begin each packet of data

# MPEG-PS: a start code, then its kind: a pack, the end of the program; other parts have a length.
_PS_START, _PS_PACK, _PS_END = b"\0\0\1", 0xBA, 0xB9
_PS_MPEG1, _PS_MPEG1_SIZE, _PS_SIZE = 0x20, 12, 14  # of a pack's head

# What fragmented MP4 may hold.
_MP4_BOXES = {b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"mfra", b"sidx", b"ssix", b"prft"}
_MP4_BOXES |= {b"emsg", b"free", b"skip", b"wide", b"uuid", b"pdin", b"meta", b"udta", b"mfro"}


def is_whole(path: Path, format_name: str) -> bool:
  """Whether each part of a file ends where the next one begins, and the last at the file's end.

  format_name: as FFmpeg calls its format. MPEG-TS, MPEG-PS, FLV, Matroska (WebM), Windows Media
    and fragmented MP4 are looked at; others pass.

  Raises OSError if the file can't be read.
  """
  checks: dict[str, Callable[[BinaryIO, int], bool]] = {
    "mpegts": _has_whole_packets,
    "mpeg": _has_whole_packs,
    "asf": _has_whole_objects,
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


def _has_whole_packs(file: BinaryIO, size: int) -> bool:
  """MPEG-PS: packs, and packets that tell their length. Zeros may stand between them."""
  place = 0
  while place < size:
    file.seek(place)
    head = file.read(_PS_SIZE)
    kind = head[3] if len(head) >= 6 and head[:3] == _PS_START else 0
    if place == 0 and kind != _PS_PACK:
      return True  # begins within a packet, or has a wrapper, as a video CD has
    if kind == _PS_PACK:
      mpeg1 = head[4] & 0xF0 == _PS_MPEG1
      place += _PS_MPEG1_SIZE if mpeg1 else _PS_SIZE + (head[-1] & 7)
    elif kind == _PS_END:
      place += 4
    elif kind > _PS_PACK:
      length = int.from_bytes(head[4:6], "big")
      if not length:
        return True  # not allowed, but some recordings have packets without a length
      place += 6 + length
    elif head.startswith(b"\0"):
      place += 1
    else:  # what stands behind the last pack is no part of the video
      return not _follows(file, place, _PS_START + bytes([_PS_PACK]))
  return place == size


def _follows(file: BinaryIO, place: int, sign: bytes) -> bool:
  """Whether a few bytes occur somewhere behind a place."""
  file.seek(place)
  before = b""
  while chunk := file.read(1 << 20):
    if sign in before + chunk:
      return True
    before = chunk[1 - len(sign) :]
  return False


def _has_whole_objects(file: BinaryIO, size: int) -> bool:
  """Windows Media: a header, then data in packets, whose sizes they tell, then perhaps an index."""
  header = file.read(24)
  length = int.from_bytes(header[16:], "little")
  header += file.read(min(length, size))
  fields = header[header.find(_ASF_FILE) :][:104]
  if not header.startswith(_ASF_HEADER) or len(fields) < 104:
    return True  # a form in which it is sent over a network, or without sizes
  flags, smallest, packet = (int.from_bytes(fields[at : at + 4], "little") for at in (88, 92, 96))
  file.seek(length)
  data = file.read(24)
  if flags & _ASF_LIVE or smallest != packet or not packet or data[:16] != _ASF_DATA:
    return True
  end = length + int.from_bytes(data[16:], "little")
  return end <= size and _has_packets(file, length + _ASF_PACKETS, end, packet)


def _has_packets(file: BinaryIO, start: int, end: int, packet: int) -> bool:
  """Whether packets of a fixed size fill a part of a Windows Media file."""
  file.seek(start)
  if file.read(len(_ASF_PACKET)) != _ASF_PACKET:
    return True  # written in another form, which says nothing
  for place in range(start, end, packet):
    file.seek(place)
    if file.read(len(_ASF_PACKET)) != _ASF_PACKET:
      return False
  return (end - start) % packet == 0


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
