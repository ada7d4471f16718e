"""Checksums of the files of a checkpoint: written when it is complete, compared before it is read.

A disk or a copy may lose the end of a file, or flip a bit. Each process sums its share of the
files, so that a large checkpoint is read by all hosts together.
"""

from concurrent import futures
import contextlib
import dataclasses
import json
from pathlib import Path
import threading
import zlib

import jax

from vr_jax import atomic, errors, inner_path, plain_json
from vr_jax.parallel import processes

_PREFIX = "checksums"  # <prefix>-<process>-of-<processes>.json, in the checkpoint's directory
_PIECE = 2**22  # bytes read at a time
_POLL = 0.05  # seconds


@dataclasses.dataclass(frozen=True)
class _Work:
  """The sums of a checkpoint: its directory, what stops them, and their end."""

  directory: Path
  stop: threading.Event
  done: futures.Future[None]


class ChecksumWriter:
  """Sums the files of each checkpoint on a thread, once it is complete.

  One that never becomes complete, or may be deleted before all is summed, has no checksums.
  """

  def __init__(self) -> None:
    self._thread = futures.ThreadPoolExecutor(1, thread_name_prefix="checksums")
    self._works: list[_Work] = []

  def begin(self, directory: Path) -> None:
    """Sums the files of a checkpoint as soon as its directory, which is renamed, appears.

    By now all earlier ones are complete, or never will be.
    """
    for work in self._works:
      if not atomic.is_whole(work.directory):
        work.stop.set()
    stop = threading.Event()
    done = self._thread.submit(_write_when_complete, directory, stop)
    self._works.append(_Work(directory, stop, done))

  def leave(self, last: int) -> None:
    """Ends the work on all but the last checkpoints, as these may be deleted from now on."""
    ended = self._works[: max(0, len(self._works) - last)]
    for work in ended:
      work.stop.set()
    for work in ended:
      work.done.result()
    self._works = self._works[len(ended) :]

  def close(self) -> None:
    """Waits for the sums of what is complete, then ends the thread."""
    for work in self._works:
      if not atomic.is_whole(work.directory):
        work.stop.set()
    self._thread.shutdown()


def _write_when_complete(directory: Path, stop: threading.Event) -> None:
  while not atomic.is_whole(directory):
    if stop.wait(_POLL):
      return
  index, count = jax.process_index(), jax.process_count()
  found = {}
  # A disk that is full, say: the checkpoint is as good without.
  with contextlib.suppress(OSError):
    for path in _files(directory)[index::count]:
      crc = _crc(path, stop)
      if crc is None:
        return
      found[path.relative_to(directory).as_posix()] = [path.stat().st_size, crc]
    with atomic.file(directory / f"{_PREFIX}-{index}-of-{count}.json") as partial:
      partial.write_text(json.dumps(found), encoding="utf-8")


def find_damage(directory: Path) -> str:
  """What is wrong with the files of a checkpoint; "" if nothing is, or it has no checksums.

  All processes call this together, and get the same answer.

  Raises InputError if a file can't be read, perhaps only now.
  """
  index, count = jax.process_index(), jax.process_count()
  damage, unreadable = "", ""
  try:
    listed = _listed(directory)
    own = ((name, *listed[name]) for name in sorted(listed)[index::count])
    damage = next(filter(None, (_difference(directory, *each) for each in own)), "")
  except OSError as error:
    unreadable = f"{error.filename}: can't be read: {error.strerror}"
  except (ValueError, TypeError, AttributeError):
    damage = f"its {_PREFIX}-*.json are damaged"
  texts = processes.gather_texts("checksums", json.dumps([damage, unreadable]))
  damages, others = zip(*map(json.loads, texts), strict=True)
  if any(others):
    raise errors.InputError(next(filter(None, others)))
  return next(filter(None, damages), "")


def _difference(directory: Path, name: str, size: int, crc: int) -> str:
  """How a file differs from what was written; "" if it doesn't."""
  path = directory / name
  if not (inner_path.is_inner(name) and inner_path.stays_inside(path, directory)):
    return f"its {_PREFIX}-*.json name a file elsewhere"
  if not path.is_file():
    return f"{name} is missing"
  if path.stat().st_size != size:
    return f"{name} has {path.stat().st_size} bytes instead of {size}"
  return "" if _crc(path) == crc else f"{name} is damaged: its checksum differs"


def _files(directory: Path) -> list[Path]:
  """The files of a checkpoint, without its checksums, in the same order everywhere."""
  paths = (path for path in directory.rglob("*") if path.is_file())
  return sorted(path for path in paths if not path.name.startswith(_PREFIX))


def _listed(directory: Path) -> dict[str, list[int]]:
  """Size and CRC-32 by name, of all processes that wrote them."""
  listed: dict[str, list[int]] = {}
  for path in sorted(directory.glob(f"{_PREFIX}-*.json")):
    found = plain_json.parse(path.read_bytes())
    if not plain_json.has_type(found, dict[str, tuple[int, int]]):
      raise ValueError(f"{path}: holds other values than sizes and sums")
    listed |= found
  return listed


def _crc(path: Path, stop: threading.Event | None = None) -> int | None:
  """The CRC-32 of a file; None if it was stopped."""
  crc = 0
  with path.open("rb") as file:
    while piece := file.read(_PIECE):
      if stop is not None and stop.is_set():
        return None
      crc = zlib.crc32(piece, crc)
  return crc
