"""Directories and files that appear whole or not at all: written aside, then renamed."""

from collections.abc import Iterable, Iterator
import contextlib
import json
import os
from pathlib import Path
import shutil
import threading
from typing import Any

from vr_jax.errors import InputError


@contextlib.contextmanager
def directory(final: Path) -> Iterator[Path]:
  """Yields an empty directory next to `final` that takes its name when the block ends without an exception.

  Otherwise it is removed. What an earlier, killed run left aside is removed first. `final` must not exist, or be an
  empty directory. An OSError of the block (a full disk, say) becomes an InputError that names `final`.
  """
  partial = final.with_name(final.name + ".partial")
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


def lines(final: Path, values: Iterable[Any]) -> None:
  """A file of one JSON value a line; raises as `content` does."""
  content(final, (json.dumps(value).encode() + b"\n" for value in values))


def content(final: Path, parts: Iterable[bytes]) -> None:
  """A file of these bytes. An OSError (a full disk, say) becomes an InputError that names `final`."""
  partial = final.with_name(f"{final.name}.{os.getpid()}.{threading.get_ident()}.partial")
  try:
    with partial.open("wb") as file:
      file.writelines(parts)
    os.replace(partial, final)
  except OSError as error:
    raise InputError(f"{final}: cannot be written ({error.strerror or error})") from error
  finally:
    partial.unlink(missing_ok=True)
