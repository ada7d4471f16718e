"""A bucket of object storage as a directory, with the habits that gcsfuse shows of one.

    python -m tests.fake_gcsfuse [-o x] [--flags] BUCKET DIRECTORY

It speaks the kernel's FUSE protocol (Linux; needs root), returns once the directory is mounted, and
serves it until it is unmounted. Objects live as long as that. Its habits, from gcsfuse's page on
semantics and its sources:

  - A file's content reaches the bucket when it is closed, whole; until then only this mount sees
    it. To change or lengthen an object is to write all of it again.
  - fsync does the same for an object that had content when it was opened. One that is new or empty
    is streamed (from 3.0 on): nobody else sees it until it is closed, renamed or read.
  - An object is written at most once a second: gcsfuse tries again, so the writer waits.
  - A directory is a prefix of names. In a flat bucket (FAKE_GCSFUSE_FLAT=1) one that holds
    anything can't be renamed (EMFILE, `--rename-dir-limit`); with hierarchical namespace it is
    renamed at once.
  - There are no hard links, and nothing is cached.

FAKE_GCSFUSE_LOG names a file that gets a JSON line for each write of an object: its name, the
seconds that it had to wait, and its size. FAKE_GCSFUSE_HURRY=0.1: it waits a tenth of that.
"""

from collections.abc import Callable, Iterator
import contextlib
import ctypes
import dataclasses
import errno
import itertools
import os
from pathlib import Path
import shutil
import stat
import struct
import sys
import tempfile
import threading
import time
from typing import IO

from tests import fake_bucket

_HEADER = struct.Struct("<IIQQIIIHH")
_ATTRIBUTES = struct.Struct("<6Q10I")
_WRITE = 2**20
_ROOT = 1


@dataclasses.dataclass
class _Inode:
  """A file or directory. stage: its content while it is written. streamed: fsync sends nothing."""

  path: str
  stage: IO[bytes] | None = None
  streamed: bool = False
  dirty: bool = False
  users: int = 0


class _Server:
  """Answers the kernel's requests. Each method takes (node, body) and returns the reply's body."""

  def __init__(
    self, device: int, bucket: fake_bucket.Bucket, directory: Path, *, flat: bool
  ) -> None:
    self._device, self._bucket, self._directory, self._flat = device, bucket, directory, flat
    self._inodes = {_ROOT: _Inode("")}
    self._numbers = itertools.count(2)
    self._by_path = {"": _ROOT}
    self._handles: dict[int, IO[bytes] | list[tuple[str, bool]] | int] = {}
    self._calls: dict[int, Callable[[int, bytes], bytes]] = {
      1: self._lookup, 3: self._getattr, 4: self._setattr, 9: self._mkdir, 10: self._unlink,
      11: self._rmdir, 12: self._rename, 14: self._open, 15: self._read, 16: self._write,
      17: self._statfs, 18: self._release, 20: self._sync, 25: self._flush, 26: self._init,
      27: self._opendir, 28: self._readdir, 29: self._release, 35: self._create,
      45: self._rename2,
    }  # fmt: skip

  def run(self) -> None:
    while True:
      try:
        request = os.read(self._device, _WRITE + 2**16)
      except OSError as error:
        if error.errno in (errno.EINTR, errno.ENOENT, errno.EAGAIN):
          continue
        return  # unmounted
      _, code, unique, node, *_ = _HEADER.unpack_from(request)
      if code in (2, 36, 42):  # FORGET, INTERRUPT, BATCH_FORGET
        continue
      try:
        reply, fault = self._calls[code](node, request[_HEADER.size :]), 0
      except _Later as later:
        threading.Timer(later.seconds, self._reply, (unique, later.body, 0)).start()
        continue
      except OSError as error:
        reply, fault = b"", error.errno or errno.EIO
      except KeyError:
        reply, fault = b"", errno.ENOSYS
      self._reply(unique, reply, fault)

  def _reply(self, unique: int, body: bytes, fault: int) -> None:
    with contextlib.suppress(OSError):  # the caller was killed
      os.write(self._device, struct.pack("<IiQ", 16 + len(body), -fault, unique) + body)

  def _init(self, node: int, body: bytes) -> bytes:
    readahead = struct.unpack_from("<III", body)[2]
    flags = 1 << 5 | 1 << 22  # big writes, of max_pages
    return struct.pack(
      "<IIIIHHIIHHI28x", 7, 31, readahead, flags, 16, 12, _WRITE, 1, _WRITE // 4096, 0, 0
    )

  def _child(self, node: int, name: bytes) -> str:
    path = self._inodes[node].path
    return f"{path}/{name.decode()}" if path else name.decode()

  def _number(self, path: str) -> int:
    if path not in self._by_path:
      number = self._by_path[path] = next(self._numbers)
      self._inodes[number] = _Inode(path)
    return self._by_path[path]

  def _attributes(self, number: int) -> bytes:
    inode = self._inodes[number]
    if inode.stage is not None:
      mode, size, when = stat.S_IFREG | 0o644, os.stat(inode.stage.name).st_size, time.time()
    elif found := self._bucket.get(inode.path):
      mode, size, when = stat.S_IFREG | 0o644, found.size, found.time
    elif self._bucket.is_directory(inode.path):
      mode, size, when = stat.S_IFDIR | 0o755, 0, 0.0
    else:
      raise OSError(errno.ENOENT, "")
    seconds, rest = int(when), int(when % 1 * 1e9)
    times = (seconds, seconds, seconds, rest, rest, rest)
    return _ATTRIBUTES.pack(number, size, size // 512 + 1, *times, mode, 1, 0, 0, 0, 4096, 0)

  def _entry(self, path: str) -> bytes:
    known = self._by_path.get(path)
    if known is None and not (self._bucket.get(path) or self._bucket.is_directory(path)):
      raise OSError(errno.ENOENT, "")
    number = self._number(path)
    return struct.pack("<QQQQII", number, 0, 0, 0, 0, 0) + self._attributes(number)

  def _lookup(self, node: int, body: bytes) -> bytes:
    return self._entry(self._child(node, body.rstrip(b"\0")))

  def _getattr(self, node: int, body: bytes) -> bytes:
    return struct.pack("<QII", 0, 0, 0) + self._attributes(node)

  def _setattr(self, node: int, body: bytes) -> bytes:
    valid, _, _, size = struct.unpack_from("<IIQQ", body)
    if valid & 8:
      inode = self._inodes[node]
      with self._staged(inode) as stage:
        os.truncate(stage.name, size)
        inode.dirty = True
    return self._getattr(node, b"")

  def _new_stage(self) -> IO[bytes]:
    return tempfile.NamedTemporaryFile(dir=self._directory, buffering=0)

  @contextlib.contextmanager
  def _staged(self, inode: _Inode) -> Iterator[IO[bytes]]:
    """The content that is changed: the whole object is fetched first."""
    if inode.stage is None:
      inode.stage = self._new_stage()
      inode.streamed = True
      if (found := self._bucket.get(inode.path)) and found.blob:
        shutil.copyfile(found.blob, inode.stage.name)
        inode.streamed = not found.size
    yield inode.stage
    if not inode.users:
      self._upload(inode)

  def _mkdir(self, node: int, body: bytes) -> bytes:
    path = self._child(node, body[8:].rstrip(b"\0"))
    if self._bucket.is_directory(path):
      raise OSError(errno.EEXIST, "")
    self._bucket.put(f"{path}/", fake_bucket.StoredObject(None, 0, time.time()))
    return self._entry(path)

  def _unlink(self, node: int, body: bytes) -> bytes:
    path = self._child(node, body.rstrip(b"\0"))
    number = self._by_path.pop(path, None)
    if self._bucket.get(path):
      self._bucket.delete(path)
    elif number is None:
      raise OSError(errno.ENOENT, "")
    if number is not None:
      self._inodes[number].path = ""  # who has it open reads on
    return b""

  def _rmdir(self, node: int, body: bytes) -> bytes:
    path = self._child(node, body.rstrip(b"\0"))
    if self._listed(path):
      raise OSError(errno.ENOTEMPTY, "")
    if self._bucket.get(f"{path}/"):
      self._bucket.delete(f"{path}/")
    self._by_path.pop(path, None)
    return b""

  def _rename2(self, node: int, body: bytes) -> bytes:
    if struct.unpack_from("<QI", body)[1]:
      raise OSError(errno.EINVAL, "")
    return self._rename(node, body[:8] + body[16:])

  def _rename(self, node: int, body: bytes) -> bytes:
    first, second, _ = body[8:].split(b"\0", 2)
    old = self._child(node, first)
    new = self._child(struct.unpack_from("<Q", body)[0], second)
    if not self._is_file(old):
      return self._rename_directory(old, new)
    inode = self._inodes[self._number(old)]
    if inode.dirty:
      self._upload(inode, wait=False)
    self._bucket.rename(old, new)
    if (replaced := self._by_path.pop(new, None)) is not None:
      self._inodes[replaced].path = ""
    self._by_path[new] = self._by_path.pop(old)
    inode.path = new
    found = self._bucket.get(new)
    raise _Later(self._bucket.reserve(new, found.size if found else 0), b"")

  def _is_file(self, path: str) -> bool:
    number = self._by_path.get(path)
    staged = number is not None and self._inodes[number].stage is not None
    return staged or self._bucket.get(path) is not None

  def _rename_directory(self, old: str, new: str) -> bytes:
    if self._listed(new):
      raise OSError(errno.ENOTEMPTY, "")
    if self._flat and self._listed(old):
      raise OSError(errno.EMFILE, "")
    if self._bucket.get(f"{new}/"):
      self._bucket.delete(f"{new}/")
    for name in self._bucket.with_prefix(f"{old}/"):
      self._bucket.put(new + name[len(old) :], self._bucket.get(name))
      self._bucket.delete(name)
    self._by_path.pop(new, None)
    for path in [each for each in self._by_path if each == old or each.startswith(f"{old}/")]:
      number = self._by_path.pop(path)
      self._inodes[number].path = new + path[len(old) :]
      self._by_path[self._inodes[number].path] = number
    return b""

  def _create(self, node: int, body: bytes) -> bytes:
    path = self._child(node, body[16:].rstrip(b"\0"))
    number = self._number(path)
    inode = self._inodes[number]
    inode.stage = self._new_stage()
    inode.dirty, inode.streamed, inode.users = True, True, inode.users + 1
    return self._entry(path) + self._handle(number)

  def _handle(self, value: IO[bytes] | list[tuple[str, bool]] | int) -> bytes:
    number = next(self._numbers)
    self._handles[number] = value
    return struct.pack("<QII", number, 0, 0)

  def _open(self, node: int, body: bytes) -> bytes:
    inode, flags = self._inodes[node], struct.unpack_from("<I", body)[0]
    inode.users += 1
    if flags & os.O_ACCMODE == os.O_RDONLY and inode.stage is None:
      found = self._bucket.get(inode.path)
      if not found or not found.blob:
        inode.users -= 1
        raise OSError(errno.ENOENT, "")
      return self._handle(found.blob.open("rb", buffering=0))
    return self._handle(node)

  def _content(self, handle: int) -> IO[bytes]:
    value = self._handles[handle]
    if not isinstance(value, int):
      return value
    inode = self._inodes[value]
    if inode.stage is not None:
      inode.streamed = False  # read, it can be streamed no more
      return inode.stage
    found = self._bucket.get(inode.path)
    if not found or not found.blob:
      raise OSError(errno.ESTALE, "")
    self._handles[handle] = found.blob.open("rb", buffering=0)
    return self._handles[handle]

  def _read(self, node: int, body: bytes) -> bytes:
    handle, offset, size = struct.unpack_from("<QQI", body)
    return os.pread(self._content(handle).fileno(), size, offset)

  def _write(self, node: int, body: bytes) -> bytes:
    _, offset, size = struct.unpack_from("<QQI", body)
    inode = self._inodes[node]
    with self._staged(inode) as stage:
      inode.streamed &= offset == os.stat(stage.name).st_size
      written = os.pwrite(stage.fileno(), body[40 : 40 + size], offset)
      inode.dirty = True
    return struct.pack("<II", written, 0)

  def _sync(self, node: int, body: bytes) -> bytes:
    """A handle is fsynced."""
    return b"" if self._inodes[node].streamed else self._flush(node, body)

  def _flush(self, node: int, body: bytes) -> bytes:
    """A handle is closed, or a copy of it."""
    inode = self._inodes[node]
    if inode.dirty:
      self._upload(inode)
    return b""

  def _upload(self, inode: _Inode, *, wait: bool = True) -> None:
    if inode.stage is None:
      return
    inode.dirty = False
    inode.streamed &= not os.stat(inode.stage.name).st_size
    if inode.path:
      self._bucket.upload(inode.path, inode.stage)
      seconds = self._bucket.reserve(inode.path, os.stat(inode.stage.name).st_size)
      if wait and seconds:
        raise _Later(seconds, b"")

  def _release(self, node: int, body: bytes) -> bytes:
    value = self._handles.pop(struct.unpack_from("<Q", body)[0])
    if not isinstance(value, int) and hasattr(value, "close"):
      value.close()
    inode = self._inodes[node]
    inode.users -= not isinstance(value, list)
    if not inode.users and inode.stage is not None:
      self._upload(inode, wait=False) if inode.dirty else None
      inode.stage.close()
      inode.stage = None
    return b""

  def _listed(self, path: str) -> list[tuple[str, bool]]:
    """Names in a directory, and whether each is a directory itself."""
    prefix = f"{path}/" if path else ""
    staged = [each for each, number in self._by_path.items() if self._inodes[number].stage]
    found = {}
    for name in (*self._bucket.with_prefix(prefix), *staged):
      first, slash, _ = name.removeprefix(prefix).partition("/")
      if name.startswith(prefix) and first:
        found[first] = bool(slash)
    return sorted(found.items())

  def _opendir(self, node: int, body: bytes) -> bytes:
    return self._handle(self._listed(self._inodes[node].path))

  def _readdir(self, node: int, body: bytes) -> bytes:
    handle, offset, size = struct.unpack_from("<QQI", body)
    entries, out = self._handles[handle], b""
    for index, (name, directory) in enumerate(entries[offset:], offset + 1):
      encoded = name.encode()
      entry = struct.pack("<QQII", index + 2, index, len(encoded), 4 if directory else 8) + encoded
      entry += b"\0" * (-len(entry) % 8)
      if len(out) + len(entry) > size:
        break
      out += entry
    return out

  def _statfs(self, node: int, body: bytes) -> bytes:
    return struct.pack("<5Q4I24x", 2**40, 2**40, 2**40, 2**40, 2**40, 4096, 255, 4096, 0)


class _Later(Exception):
  """The reply waits."""

  def __init__(self, seconds: float, body: bytes) -> None:
    super().__init__()
    self.seconds, self.body = seconds, body


def mount(directory: Path) -> int:
  """Mounts an empty file system; returns the device that its requests are read from.

  Raises OSError where this is not allowed.
  """
  device = os.open("/dev/fuse", os.O_RDWR)
  about = f"fd={device},rootmode=40000,user_id={os.getuid()},group_id={os.getgid()},allow_other"
  libc = ctypes.CDLL(None, use_errno=True)
  if libc.mount(b"fake", os.fsencode(directory), b"fuse", 6, about.encode()):
    os.close(device)
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
  return device


def unmount(directory: Path) -> None:
  """Unmounts it, even if it is in use; its server ends."""
  ctypes.CDLL(None).umount2(os.fsencode(directory), 2)


def main() -> None:
  """See above."""
  device = mount(Path(sys.argv[-1]))
  if os.fork():
    return
  os.setsid()
  null = os.open(os.devnull, os.O_RDWR)
  for number in range(3):
    os.dup2(null, number)
  with tempfile.TemporaryDirectory() as directory:
    place = Path(directory)
    bucket = fake_bucket.Bucket(place, os.environ.get("FAKE_GCSFUSE_LOG"))
    flat = os.environ.get("FAKE_GCSFUSE_FLAT") == "1"
    _Server(device, bucket, place, flat=flat).run()


if __name__ == "__main__":
  main()
