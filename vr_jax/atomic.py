"""Atomic writes: a file or directory is written under a partial name, then renamed.

A bucket without hierarchical namespace, mounted, renames no directory that holds anything, or moves
its files one after the other. So a mark beside it says that a directory is complete and only has
to get its name: after a kill `finish_move` goes on, and until then readers don't take it as whole.
"""

from collections.abc import Iterable, Iterator
import contextlib
import errno
import json
import os
from pathlib import Path
import shutil
import threading
from typing import IO, Any

from vr_jax.errors import InputError

PARTIAL = ".partial"  # suffix of files and directories that are still being written
MOVING = ".moving"  # suffix of the mark of a directory that gets its name; it holds the old one
# What systems say that don't rename a directory, or find a part of it in its place already.
_NO_RENAME = (errno.EMFILE, errno.ENOSYS, errno.EOPNOTSUPP)
_BEGUN = (errno.ENOTEMPTY, errno.EEXIST)


@contextlib.contextmanager
def directory(final: Path) -> Iterator[Path]:
  """Yields an empty directory that is renamed to `final` when the block ends without an exception.

  Otherwise it is removed. The partial directory of an earlier, killed run is removed first.
  `final` must not exist, or be an empty directory.

  Raises:
    InputError: an OSError of the block (a full disk, say); the message names `final`.
  """
  partial = final.with_name(final.name + PARTIAL)
  try:
    finish_move(final)
    if partial.exists():
      shutil.rmtree(partial)
    partial.mkdir(parents=True)
    yield partial
    move_directory(partial, final)
  except OSError as error:
    kept = "the same command goes on" if _mark(final).exists() else "nothing was kept"
    raise InputError(f"{final}: cannot be written ({error.strerror or error}); {kept}") from error
  finally:
    if not _mark(final).exists():
      shutil.rmtree(partial, ignore_errors=True)


def move_directory(partial: Path, final: Path) -> None:
  """Gives a complete directory its name, of the same parent; an empty one there is replaced.

  Raises OSError. If it was raised halfway, `finish_move` goes on.
  """
  mark_move(partial, final)
  finish_move(final)


def mark_move(partial: Path, final: Path) -> None:
  """Notes that a directory is complete and gets another name. Raises OSError."""
  if final.is_dir() and any(final.iterdir()):
    raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(final))
  with file(_mark(final)) as mark:
    mark.write_text(partial.name)


def is_refusal(error: OSError) -> bool:
  """Whether a directory could not be renamed because the system renames none."""
  return error.errno in _NO_RENAME


def finish_move(final: Path) -> None:
  """Ends what a killed `move_directory` has begun, if anything. One process at a time calls it.

  Raises OSError.
  """
  mark = _mark(final)
  if not mark.is_file():
    return
  partial = final.with_name(Path(mark.read_text()).name or PARTIAL)
  if partial.is_dir():
    try:
      os.replace(partial, final)
    except OSError as error:
      if not (is_refusal(error) or error.errno in _BEGUN):
        raise
      _move_files(partial, final)
  mark.unlink()


def is_whole(final: Path) -> bool:
  """Whether a directory is there and has all that was moved to it."""
  return final.is_dir() and not _mark(final).exists()


def _mark(final: Path) -> Path:
  return final.with_name(final.name + MOVING)


def _move_files(partial: Path, final: Path) -> None:
  for path in sorted(partial.rglob("*")):
    target = final / path.relative_to(partial)
    if path.is_dir():
      target.mkdir(parents=True, exist_ok=True)
    else:
      target.parent.mkdir(parents=True, exist_ok=True)
      os.replace(path, target)
  shutil.rmtree(partial)


@contextlib.contextmanager
def file(final: Path) -> Iterator[Path]:
  """Yields a path to write to that is renamed to `final` when the block ends without an exception.

  Otherwise it is removed. Threads and processes may write the same file: the last one wins.
  An OSError is raised as it is.
  """
  writer = f"{os.getpid()}.{threading.get_ident()}"
  partial = final.with_name(f"{final.name}.{writer}{PARTIAL}")
  try:
    yield partial
    os.replace(partial, final)
  finally:
    partial.unlink(missing_ok=True)


def close_published(stream: IO[bytes]) -> None:
  """Closes a file, so that the next crash of the machine leaves what was written, in a bucket too.

  A mounted bucket has a new file once it is closed: gcsfuse from 3.0 on does not send one that is
  only synced. Raises OSError; the file is closed all the same.
  """
  with stream:
    stream.flush()
    try:
      os.fsync(stream.fileno())
    except OSError as error:
      if error.errno != errno.EINVAL:  # a device or a pipe, which keeps nothing back
        raise


def write_bytes(final: Path, chunks: Iterable[bytes]) -> None:
  """Writes a file. An OSError (a full disk, say) becomes an InputError that names `final`."""
  try:
    with file(final) as partial, partial.open("wb") as stream:
      stream.writelines(chunks)
  except OSError as error:
    raise InputError(f"{final}: cannot be written ({error.strerror or error})") from error


def write_json_lines(final: Path, values: Iterable[Any]) -> None:
  """Writes a file of one JSON value a line; raises as `write_bytes` does."""
  write_bytes(final, (json.dumps(value).encode() + b"\n" for value in values))
