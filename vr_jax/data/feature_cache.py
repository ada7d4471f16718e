"""The feature cache: what a frozen vision tower made of clips, kept on disk beside the frame store.

    features/<fingerprint>/about.json           which tower, with which preprocessing; its hash is the fingerprint
    features/<fingerprint>/<clip>.safetensors   features [media, embed] of one clip, their CRC-32, and whose they are

A clip is a video, indices of frames, and the checksums of these frames. Everything here may be deleted at any time, also while
runs read and write it: they make anew what they miss. Files appear whole or not at all, so processes may share the directory.
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

from vr_jax import atomic
from vr_jax.data import batches
from vr_jax.errors import InputError

FORMAT = 2  # another one where what is kept, or how a clip becomes pixels, changes
GIB = 2**30
_CODES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_BACKLOG = 4  # batches that wait to be written; the next one waits for the first of them
_ROOM = 15 / 16  # of the bound, which is left when entries had to go
_LOOKS = 32  # the directory is measured again when a run has written this part of the bound

Entries = Iterable[tuple[str, Float[np.ndarray, "media embed"]]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
  """What the cache has of a clip. damaged: there was an entry, which had to be removed."""

  features: Float[np.ndarray, "media embed"] | None = None
  damaged: bool = False


class FeatureCache:
  """The features of one tower. `get` may be called from several threads, all else from one."""

  def __init__(self, root: Path, about: Mapping[str, Any], *, dtype: np.dtype, gibibytes: float):
    """Opens or makes the cache of a tower below `root`.

    about: JSON-able; all that features depend on beside the clip. dtype: float32, float16 or bfloat16, of the features.
    gibibytes: what the entries of all towers below `root` may take; those that were used longest ago leave first.

    Raises:
      InputError: the directory belongs to another tower or preprocessing, or can't be written.
    """
    self._about = json.loads(json.dumps({"format": FORMAT, **about}))
    self._root, self._dtype, self._bound = root, dtype, gibibytes * GIB
    text = json.dumps(self._about, sort_keys=True)
    self._fingerprint = hashlib.sha256(text.encode()).hexdigest()
    self.directory = root / self._fingerprint[:16]
    self._known, self._unseen = 0, 0  # bytes when last measured, and written by this run since
    self._writer = futures.ThreadPoolExecutor(1, "feature-cache")
    self._pending: list[futures.Future] = []
    with contextlib.suppress(FileNotFoundError), self._explained():
      self._claim()
      self._trim()

  def get(self, name: str, shape: tuple[int, int]) -> Found:
    """The entry of a clip, of which its features have `shape`; one that is damaged, or of another tower, is removed.

    Raises InputError where it is there and can't be read.
    """
    path = self._path(name)
    try:
      features = _parse(path.read_bytes(), shape, self._dtype, self._fingerprint)
      if features is None:
        path.unlink()
        return Found(damaged=True)
    except FileNotFoundError:
      return Found()
    except OSError as error:
      raise InputError(f"{path}: cannot be read ({error.strerror}); delete {self._root}") from error
    with contextlib.suppress(OSError):  # it has just left, or may only be read
      os.utime(path)
    return Found(features=features)

  def put(self, name: str, features: Float[np.ndarray, "media embed"]) -> None:
    """Writes an entry, unless there is one; where the directory is deleted meanwhile it may be lost."""
    path = self._path(name)
    if path.exists():
      return
    content = _content(features, self._fingerprint)
    with contextlib.suppress(FileNotFoundError), self._explained():
      self._claim()
      with atomic.file(path) as partial:
        partial.write_bytes(content)
      self._unseen += len(content)
      full = self._known + self._unseen > self._bound
      if full or self._unseen > self._bound / _LOOKS:
        self._trim()

  def put_later(self, make: Callable[[], Entries]) -> None:
    """Writes what `make` gives, in a thread of its own. Raises the InputError of an earlier call, if it had one."""
    while self._pending and (self._pending[0].done() or len(self._pending) >= _BACKLOG):
      self._pending.pop(0).result()
    self._pending.append(self._writer.submit(self._put_all, make))

  def close(self) -> None:
    """Waits for what is still to be written; raises the InputError of what could not."""
    self._writer.shutdown()
    for one in self._pending:
      one.result()

  def _put_all(self, make: Callable[[], Entries]) -> None:
    for name, features in make():
      self.put(name, features)

  def _path(self, name: str) -> Path:
    return self.directory / f"{name}.safetensors"

  def _claim(self) -> None:
    """Makes the directory this tower's, or sees that it is."""
    path = self.directory / "about.json"
    try:
      there = json.loads(path.read_bytes())
    except FileNotFoundError:
      self.directory.mkdir(parents=True, exist_ok=True)
      with atomic.file(path) as partial:
        partial.write_text(json.dumps(self._about, indent=1) + "\n")
      return
    except ValueError:
      there = None
    if there != self._about:
      raise InputError(
        f"{path}: is {_difference(there, self._about)}; delete {self.directory}, or the file if its entries are right"
      )

  def _trim(self) -> None:
    """Measures the entries of all towers; where they take more than the bound, removes those used longest ago."""
    entries = []
    for path in self._root.glob("*/*"):
      with contextlib.suppress(FileNotFoundError):
        found = path.stat()
        entries.append((found.st_mtime_ns, found.st_size, path))
    total = sum(size for _, size, _ in entries)
    if total > self._bound:
      for _, size, path in sorted(entries):
        if path.name == "about.json":
          continue
        path.unlink(missing_ok=True)
        total -= size
        if total <= _ROOM * self._bound:
          break
    self._known, self._unseen = total, 0

  @contextlib.contextmanager
  def _explained(self) -> Iterator[None]:
    """An OSError becomes an InputError; a file that is not there does not, since others may delete at any time."""
    try:
      yield
    except FileNotFoundError:
      raise
    except OSError as error:
      raise InputError(
        f"{self.directory}: cannot be written ({error.strerror}); free some space, or set config.model.feature_cache_gib=0"
      ) from error


def name_of(clip: batches.Clip) -> str:
  """What an entry is called: a hash of the video's name, the frames' indices and what they hold."""
  seen = [clip.example.video, clip.frame_indices.tolist(), clip.checksums.tolist()]
  return hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:40]


def _content(features: Float[np.ndarray, "media embed"], fingerprint: str) -> bytes:
  features = np.ascontiguousarray(features)
  checksum = np.array([_checksum(features)], np.uint32)
  fields = {"features": features, "checksum": checksum}
  return safetensors_numpy.save(fields, metadata={"of": fingerprint})


def _checksum(features: Float[np.ndarray, "media embed"]) -> int:
  return zlib.crc32(features.reshape(-1).view(np.uint8))


def _parse(
  content: bytes, shape: tuple[int, int], dtype: np.dtype, fingerprint: str
) -> Float[np.ndarray, "media embed"] | None:
  """The features of a file's content; None where it is not whole, or not of this tower, shape and dtype."""
  try:
    fields = dict(safetensors.deserialize(content))
  except safetensors.SafetensorError:
    return None
  # Its header, which `deserialize` has found whole but keeps the metadata of: its length, then JSON.
  header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
  if header.get("__metadata__", {}).get("of") != fingerprint:
    return None
  features, checksum = fields.get("features"), fields.get("checksum")
  if not features or not checksum or checksum["dtype"] != "U32" or checksum["shape"] != [1]:
    return None
  if features["shape"] != list(shape) or features["dtype"] != _CODES[dtype.name]:
    return None
  found = np.frombuffer(features["data"], dtype).reshape(shape)
  return found if _checksum(found) == np.frombuffer(checksum["data"], np.uint32)[0] else None


def _difference(there: Any, here: Mapping[str, Any]) -> str:
  """What an about.json that is not ours says."""
  if not isinstance(there, dict):
    return "damaged"
  name = next(n for n in sorted({*there, *here}) if there.get(n) != here.get(n))
  inner, wanted = there.get(name), here.get(name)
  if isinstance(inner, dict) and isinstance(wanted, dict):
    field = next(f for f in sorted({*inner, *wanted}) if inner.get(f) != wanted.get(f))
    return f"of another {name}: {field} is {inner.get(field)!r} there, {wanted.get(field)!r} here"
  return f"of another {name}: {inner!r} there, {wanted!r} here"
