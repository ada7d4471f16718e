"""Atomic writes: a file or directory is written under a partial name, then renamed."""

from collections.abc import Iterable, Iterator
import contextlib
import json
import os
from pathlib import Path
import shutil
import threading
from typing import Any

from vr_jax.errors import InputError

PARTIAL = ".partial"  # suffix of files and directories that are still being written


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
    if partial.exists():
      shutil.rmtree(partial)
    partial.mkdir(parents=True)
    yield partial
    os.replace(partial, final)
  except OSError as error:
    raise InputError(
      f"{final}: cannot be written ({error.strerror or error}); nothing was kept"
    ) from error
  finally:
    shutil.rmtree(partial, ignore_errors=True)


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
