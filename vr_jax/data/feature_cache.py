"""The feature cache: features that a frozen vision tower computed, on disk beside the frame store.

    features/<fingerprint>/about.json           the tower and its preprocessing, whose hash is the
                                                fingerprint
    features/<fingerprint>/<clip>.safetensors   features [media, embed] of one clip, their CRC-32,
                                                and the fingerprint

A clip is identified by its video, its frames' indices and the checksums of these frames. Everything
may be deleted at any time, even while runs use it: they compute missing features again. Files are
written completely or not at all, so processes may share the directory.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
import contextlib
import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any
import zlib

from jaxtyping import Float
import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from vr_jax import atomic, plain_json
from vr_jax.data import batches
from vr_jax.errors import InputError

FORMAT = 2  # increase if the files, or the conversion of a clip to pixels, change
GIB = 2**30
_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_BACKLOG = 4  # most batches that wait to be written; the next call waits for the oldest
_TRIM_TO = 15 / 16  # removing entries stops at this fraction of the size limit
_MEASUREMENTS = 32  # the size is measured again after writing 1 / 32 of the limit

Entries = Iterable[tuple[str, Float[np.ndarray, "media embed"]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheLookup:
  """The result of a lookup.

  features: None if the cache has none.
  damaged: an entry existed, but was damaged and has been removed.
  """

  features: Float[np.ndarray, "media embed"] | None = None
  damaged: bool = False


class FeatureCache:
  """The features of one tower. `get` may be called from several threads, all else from one."""

  def __init__(self, root: Path, about: Mapping[str, Any], *, dtype: np.dtype, gibibytes: float):
    """Opens the cache of a tower below `root`, or creates it.

    about: everything that features depend on except the clip; JSON-able.
    dtype: of the features; float32, float16 or bfloat16.
    gibibytes: size limit of the entries of all towers below `root`. The least recently used entries
      are removed first.

    Raises:
      InputError: the directory belongs to another tower or preprocessing, or can't be written.
    """
    self._about = json.loads(json.dumps({"format": FORMAT, **about}))
    self._root, self._dtype, self._bound = root, dtype, gibibytes * GIB
    text = json.dumps(self._about, sort_keys=True)
    self._fingerprint = hashlib.sha256(text.encode()).hexdigest()
    self.directory = root / self._fingerprint[:16]
    # Bytes at the last measurement, and bytes that this run has written since.
    self._measured, self._written = 0, 0
    self._writer = futures.ThreadPoolExecutor(1, "feature-cache")
    self._pending: list[futures.Future] = []
    with contextlib.suppress(FileNotFoundError), self._input_errors():
      self._claim()
      self._trim()

  def get(self, name: str, shape: tuple[int, int]) -> CacheLookup:
    """Looks up the features of a clip.

    shape: of the features, (media, embed).

    An entry that is damaged or of another tower is removed. Raises InputError if an entry exists
    but can't be read.
    """
    path = self._path(name)
    try:
      features = _parse(path.read_bytes(), shape, self._dtype, self._fingerprint)
      if features is None:
        path.unlink()
        return CacheLookup(damaged=True)
    except FileNotFoundError:
      return CacheLookup()
    except OSError as error:
      raise InputError(f"{path}: cannot be read ({error.strerror}); delete {self._root}") from error
    with contextlib.suppress(OSError):  # it was just deleted, or is read-only
      os.utime(path)
    return CacheLookup(features=features)

  def put(self, name: str, features: Float[np.ndarray, "media embed"]) -> None:
    """Writes an entry, unless it exists. It may be lost if the directory is deleted meanwhile."""
    path = self._path(name)
    if path.exists():
      return
    content = _serialize(features, self._fingerprint)
    with contextlib.suppress(FileNotFoundError), self._input_errors():
      self._claim()
      with atomic.file(path) as partial:
        partial.write_bytes(content)
      self._written += len(content)
      full = self._measured + self._written > self._bound
      if full or self._written > self._bound / _MEASUREMENTS:
        self._trim()

  def put_later(self, make: Callable[[], Entries]) -> None:
    """Writes the entries that `make` returns, in a background thread.

    Raises the InputError of an earlier call, if it failed.
    """
    while self._pending and (self._pending[0].done() or len(self._pending) >= _BACKLOG):
      self._pending.pop(0).result()
    self._pending.append(self._writer.submit(self._put_all, make))

  def close(self) -> None:
    """Waits until everything is written. Raises the InputError of an entry that could not be."""
    self._writer.shutdown()
    for future in self._pending:
      future.result()

  def _put_all(self, make: Callable[[], Entries]) -> None:
    for name, features in make():
      self.put(name, features)

  def _path(self, name: str) -> Path:
    return self.directory / f"{name}.safetensors"

  def _claim(self) -> None:
    """Creates the directory for this tower, or checks that it belongs to it."""
    path = self.directory / "about.json"
    try:
      stored = plain_json.parse(path.read_bytes())
    except FileNotFoundError:
      self.directory.mkdir(parents=True, exist_ok=True)
      with atomic.file(path) as partial:
        partial.write_text(json.dumps(self._about, indent=1) + "\n")
      return
    except ValueError:
      stored = None
    if stored != self._about:
      raise InputError(
        f"{path}: is {_describe_difference(stored, self._about)}; delete {self.directory}, "
        "or the file if its entries are right"
      )

  def _trim(self) -> None:
    """Measures the entries of all towers. Above the limit, removes the least recently used ones."""
    entries = []
    for path in self._root.glob("*/*"):
      with contextlib.suppress(FileNotFoundError):
        stat = path.stat()
        entries.append((stat.st_mtime_ns, stat.st_size, path))
    total = sum(size for _, size, _ in entries)
    if total > self._bound:
      for _, size, path in sorted(entries):
        if path.name == "about.json":
          continue
        path.unlink(missing_ok=True)
        total -= size
        if total <= _TRIM_TO * self._bound:
          break
    self._measured, self._written = total, 0

  @contextlib.contextmanager
  def _input_errors(self) -> Iterator[None]:
    """Turns OSError into InputError, except FileNotFoundError: others may delete files any time."""
    try:
      yield
    except FileNotFoundError:
      raise
    except OSError as error:
      raise InputError(
        f"{self.directory}: cannot be written ({error.strerror}); "
        "free some space, or set config.model.feature_cache_gib=0"
      ) from error


def entry_name(clip: batches.Clip, size: tuple[int, int] | None = None) -> str:
  """The name of a clip's entry: a hash of its video's name, frame indices and checksums.

  size: height and width that its frames are shown at; None: as the limits of pixels say.
  """
  identity = [clip.example.video, clip.frame_indices.tolist(), clip.checksums.tolist()]
  if size is not None:
    identity.append(list(size))
  return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:40]


def _serialize(features: Float[np.ndarray, "media embed"], fingerprint: str) -> bytes:
  features = np.ascontiguousarray(features)
  checksum = np.array([_checksum(features)], np.uint32)
  fields = {"features": features, "checksum": checksum}
  return safetensors_numpy.save(fields, metadata={"of": fingerprint})


def _checksum(features: Float[np.ndarray, "media embed"]) -> int:
  return zlib.crc32(features.reshape(-1).view(np.uint8).data)


def _parse(
  content: bytes, shape: tuple[int, int], dtype: np.dtype, fingerprint: str
) -> Float[np.ndarray, "media embed"] | None:
  """Parses a file's content. Returns None if it is damaged or of another tower, shape or dtype."""
  try:
    fields = dict(safetensors.deserialize(content))
  except safetensors.SafetensorError:
    return None
  # `deserialize` has checked the header but does not return its metadata. The header is its length,
  # then JSON.
  header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
  if header.get("__metadata__", {}).get("of") != fingerprint:
    return None
  features, checksum = fields.get("features"), fields.get("checksum")
  if not features or not checksum or checksum["dtype"] != "U32" or checksum["shape"] != [1]:
    return None
  if features["shape"] != list(shape) or features["dtype"] != _CODES[dtype.name]:
    return None
  array = np.frombuffer(features["data"], dtype).reshape(shape)
  return array if _checksum(array) == np.frombuffer(checksum["data"], np.uint32)[0] else None


def _describe_difference(stored: Any, own: Mapping[str, Any]) -> str:
  """Says how another cache's about.json differs from ours."""
  if not isinstance(stored, dict):
    return "damaged"
  name = next(n for n in sorted({*stored, *own}) if stored.get(n) != own.get(n))
  theirs, ours = stored.get(name), own.get(name)
  if isinstance(theirs, dict) and isinstance(ours, dict):
    field = next(f for f in sorted({*theirs, *ours}) if theirs.get(f) != ours.get(f))
    return f"of another {name}: {field} is {theirs.get(field)!r} there, {ours.get(field)!r} here"
  return f"of another {name}: {theirs!r} there, {ours!r} here"
