"""The objects of a bucket, as tests/fake_gcsfuse.py has them: whole, under names, once a second."""

import bisect
import dataclasses
import itertools
import json
import os
from pathlib import Path
import shutil
import time
from typing import IO

PERIOD = 1.0  # seconds between two writes of an object


@dataclasses.dataclass
class StoredObject:
  """An object, or the placeholder of a directory (blob None)."""

  blob: Path | None
  size: int
  time: float


class Bucket:
  """The objects by name; names of directories end with a slash."""

  def __init__(self, directory: Path, log: str | None) -> None:
    self._directory, self._log = directory, log
    self._objects: dict[str, StoredObject] = {}
    self._names: list[str] = []  # sorted
    self._written: dict[str, float] = {}
    self._numbers = itertools.count()

  def get(self, name: str) -> StoredObject | None:
    return self._objects.get(name)

  def with_prefix(self, prefix: str) -> list[str]:
    start = bisect.bisect_left(self._names, prefix)
    return [*itertools.takewhile(lambda name: name.startswith(prefix), self._names[start:])]

  def is_directory(self, path: str) -> bool:
    start = bisect.bisect_left(self._names, f"{path}/")
    return not path or any(name.startswith(f"{path}/") for name in self._names[start : start + 1])

  def put(self, name: str, value: StoredObject) -> None:
    if name not in self._objects:
      bisect.insort(self._names, name)
    self._objects[name] = value

  def delete(self, name: str) -> None:
    del self._objects[name]
    self._names.remove(name)

  def reserve(self, name: str, size: int) -> float:
    """Seconds that a write of this object has to wait."""
    now = time.monotonic()
    waits = max(0.0, self._written.get(name, -PERIOD) + PERIOD - now)
    if self._log:
      with open(self._log, "a") as file:
        file.write(json.dumps({"name": name, "waited": waits, "size": size}) + "\n")
    waits *= float(os.environ.get("FAKE_GCSFUSE_HURRY", "1"))
    self._written[name] = now + waits
    return waits

  def upload(self, name: str, stage: IO[bytes]) -> None:
    blob = self._directory / str(next(self._numbers))
    shutil.copyfile(stage.name, blob)
    self.put(name, StoredObject(blob, blob.stat().st_size, time.time()))

  def rename(self, old: str, new: str) -> None:
    self.put(new, self._objects[old])
    self.delete(old)
