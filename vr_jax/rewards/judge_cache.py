"""A cache of verdicts on disk. Keys are hashes of question and model. No texts, no API keys."""

from collections.abc import Iterable, Mapping
import hashlib
import json
from pathlib import Path

from vr_jax.rewards import cache_file

_APPLICATION = 0x76726A75  # "vrju": marks the file as a cache of verdicts
_FORMAT = 1  # increase if keys are computed differently
_TABLE = (
  "CREATE TABLE IF NOT EXISTS verdicts ("
  "key BLOB PRIMARY KEY, verdict TEXT NOT NULL CHECK (verdict IN ('Yes', 'No'))) WITHOUT ROWID"
)


def key(content: Iterable[str]) -> bytes:
  """Computes the key of a verdict: SHA-256 of all that it depends on, in order."""
  return hashlib.sha256(json.dumps(list(content)).encode()).digest()


class VerdictCache:
  """One SQLite file. Threads may share the object, processes the file. Entries never change."""

  def __init__(self, path: Path):
    """Opens or creates the file.

    Raises:
      InputError: it is damaged, is no cache of verdicts, or can't be written.
    """
    self._file = cache_file.CacheFile(
      path, content="verdicts", application=_APPLICATION, layout=_FORMAT, table=_TABLE
    )

  def get(self, keys: Iterable[bytes]) -> dict[bytes, bool]:
    """Returns the verdicts of those keys that the cache has."""
    with self._file.reading() as file:
      rows = (
        row
        for each in keys
        for row in file.execute("SELECT key, verdict FROM verdicts WHERE key = ?", (each,))
      )
      return {each: verdict == "Yes" for each, verdict in rows}

  def put(self, verdicts: Mapping[bytes, bool]) -> None:
    """Stores verdicts, all or none. Existing entries stay as they are."""
    rows = [(each, "Yes" if verdict else "No") for each, verdict in verdicts.items()]
    with self._file.writing() as file:
      file.executemany("INSERT OR IGNORE INTO verdicts VALUES (?, ?)", rows)

  def close(self) -> None:
    """Closes the file."""
    self._file.close()
