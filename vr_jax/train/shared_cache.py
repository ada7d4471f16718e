"""Compiled programs of several processes: on the disk of each host, and in the workdir for all.

A compilation cache in a bucket is slow to read, and JAX writes to it from process 0 alone. So each
host has a directory of its own for the run. Before the first step it gets what the workdir has for
the same kind and number of devices; what process 0 compiles is copied to the workdir while the run
goes on. A cache that JAX itself is given (JAX_COMPILATION_CACHE_DIR) is not copied.
"""

from collections.abc import Iterator
import contextlib
from pathlib import Path
import re
import threading
import time

import jax
from jax._src import compilation_cache  # JAX has no public name for what unpacks an entry

from vr_jax import atomic
from vr_jax.parallel import processes
from vr_jax.train import background, compilations, console

PERIOD = 60.0  # seconds between two copies to the workdir
_SETTLED = 5.0  # seconds after which JAX has finished writing an entry
_ENTRY = "*-cache"  # files of JAX's cache


def directory(workdir: Path) -> Path:
  """The cache of a workdir for these devices: programs fit no others."""
  devices = jax.devices()
  kind = devices[0].device_kind
  if devices[0].platform == "cpu":
    kind = f"cpu {compilations.host_kind()}"
  about = f"{kind} {len(devices)} in {jax.process_count()} jax {jax.__version__}"
  return workdir / "compilations" / re.sub(r"[^A-Za-z0-9.]+", "-", about)


@contextlib.contextmanager
def synchronized(local: Path, workdir: Path) -> Iterator[None]:
  """Copies programs from the workdir to this host; within it, new ones back.

  local: the cache that JAX uses (compilations.py). Where it is not one of this run alone, nothing
    is copied; nor is it for one process.

  Programs that can't be copied only cost time: they are compiled again.
  """
  if jax.process_count() == 1 or not compilations.is_of_run(local, workdir):
    yield
    return
  shared = directory(workdir)
  with console.doing("copying compiled programs from the workdir", announce=True):
    copy_missing(shared, local)
  if not processes.is_first():
    yield
    return

  def copy_now_and_then(stop: threading.Event) -> None:
    while not stop.wait(PERIOD):
      copy_missing(local, shared, settled=_SETTLED)

  try:
    with background.beside("shared cache", copy_now_and_then):
      yield
  finally:
    copy_missing(local, shared)


def copy_missing(source: Path, target: Path, *, settled: float = 0.0) -> int:
  """Copies the entries that `target` lacks, if they are whole; returns how many.

  settled: seconds since the last change of an entry that is copied.
  """
  copied = 0
  with contextlib.suppress(OSError):
    present = {path.name for path in target.glob(_ENTRY)}
    for path in source.glob(_ENTRY):
      if path.name in present or time.time() - path.stat().st_mtime < settled:
        continue
      content = path.read_bytes()
      if not _is_whole(content):
        continue
      target.mkdir(parents=True, exist_ok=True)
      with atomic.file(target / path.name) as partial:
        partial.write_bytes(content)
      copied += 1
  return copied


def _is_whole(entry: bytes) -> bool:
  """Whether an entry can be unpacked. JAX writes it in place, so a kill or a full disk cuts it.

  A cut one would be a warning and a compilation in every start on every host.
  """
  try:
    return bool(compilation_cache.decompress_executable(entry))
  except Exception:  # each of the compressors that JAX may use has its own
    return False
