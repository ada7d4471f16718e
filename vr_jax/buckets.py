"""gs:// paths on the command line: the bucket is mounted (Cloud Storage FUSE), the path is in it.

Videos, shards of frames and weights are read by libraries that know files alone, so a bucket has
to look like a directory. It is at /gcs/<bucket> on the machines that launch/ starts; elsewhere
`gcsfuse` mounts it at ~/.cache/vr_jax/gcs/<bucket>, and it stays mounted. What a run writes about
itself has the address, as another host may have its mounts elsewhere.
"""

from collections.abc import Iterator, Sequence
import contextlib
import fcntl
import os
from pathlib import Path
import re
import shutil
import subprocess
from typing import Any

from vr_jax import errors

MOUNTS = Path("/gcs")  # where machines have their buckets
# At the start of a word, of a flag's value, or of a text in a tuple.
_ADDRESS = re.compile(r"""(?:^|(?<=['"=]))gs://([a-z0-9][-._a-z0-9]*)(?=/|['"]|$)""")
_SECONDS = 60  # in which gcsfuse has to be done
# Directories without an object of their own are seen, and so is what other hosts write.
_FAILURES: dict[str, str] = {}  # why buckets could not be mounted: this process tries once
_OPTIONS = ("--implicit-dirs", "--metadata-cache-ttl-secs=0")


def mounted(words: Sequence[str]) -> list[str]:
  """The words of a command line, with the paths of mounted buckets for their gs:// paths.

  Raises InputError if a bucket can't be mounted.
  """
  return [_mounted(word) for word in words]


def _mounted(word: str) -> str:
  return _ADDRESS.sub(lambda match: str(_find_mount(match[1], word)), word)


def as_paths(value: Any) -> Any:
  """JSON with paths of this host for gs:// addresses.

  A bucket that can't be mounted gets the path that it has on a pod: perhaps it isn't needed. If it
  is, `explained` adds the reason to the error.
  """
  if isinstance(value, dict):
    return {name: as_paths(each) for name, each in value.items()}
  if isinstance(value, list):
    return [as_paths(each) for each in value]
  if not isinstance(value, str):
    return value
  try:
    return _mounted(value)
  except errors.InputError:
    return _ADDRESS.sub(rf"{MOUNTS}/\1", value)


def explained(error: str) -> str:
  """An error with the reason why a bucket that it names could not be mounted, if that is known."""
  for bucket, reason in _FAILURES.items():
    if re.search(rf"{re.escape(str(MOUNTS / bucket))}(?![-._a-z0-9])", error):
      error += f" ({reason})" if reason not in error else ""
  return error


def as_addresses(text: str) -> str:
  """A text with gs:// addresses for paths in mounted buckets, which differ between hosts."""
  roots = "|".join(re.escape(str(root)) for root in (MOUNTS, _own_mounts()))
  return re.sub(rf"(?:^|(?<=['\"=]))(?:{roots})/([a-z0-9][-._a-z0-9]*)", r"gs://\1", text)


def _own_mounts() -> Path:
  return Path.home() / ".cache" / "vr_jax" / "gcs"


def _find_mount(bucket: str, word: str) -> Path:
  """Where a bucket is mounted; mounts it if it is nowhere. word: that names it.

  Raises InputError if it can't be mounted, also the next time.
  """
  shared, own = MOUNTS / bucket, _own_mounts() / bucket
  for place in (shared, own):
    if os.path.ismount(place):
      return place
  if bucket not in _FAILURES:
    if not shutil.which("gcsfuse"):
      _FAILURES[bucket] = (
        "needs the bucket as a directory: install gcsfuse (Cloud Storage FUSE), or mount "
        f"gs://{bucket} at {shared}"
      )
    else:
      with _locked(own.with_name(f"{bucket}.lock")):
        if os.path.ismount(own) or _mount(bucket, own):
          return own
  raise errors.InputError(f"{word}: {_FAILURES[bucket]}")


def _mount(bucket: str, directory: Path) -> bool:
  """Mounts a bucket; returns whether it is mounted, and notes why it is not."""
  directory.mkdir(parents=True, exist_ok=True)
  try:
    done = subprocess.run(
      ["gcsfuse", *_OPTIONS, bucket, str(directory)],
      capture_output=True,
      text=True,
      timeout=_SECONDS,
      check=False,
    )
    said = (done.stdout + done.stderr).strip().splitlines()
  except subprocess.TimeoutExpired:
    said = [f"gcsfuse was not done within {_SECONDS} s"]
  if os.path.ismount(directory):
    return True
  _FAILURES[bucket] = (
    f"gs://{bucket} can't be mounted: {said[-1] if said else 'gcsfuse says nothing'}"
  )
  return False


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
  """One process of a host mounts, the others wait."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with path.open("w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield
