"""Directories that appear whole or not at all: written aside, then renamed."""

from collections.abc import Iterator
import contextlib
import os
from pathlib import Path
import shutil

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
