"""A cache of verdicts on disk. Keys are hashes of question and model. No texts, no API keys."""

from collections.abc import Iterable, Iterator, Mapping
import contextlib
import hashlib
import json
from pathlib import Path
import sqlite3
import threading

from vr_jax import errors

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
    self._path = path
    self._lock = threading.Lock()
    with self._errors(), contextlib.ExitStack() as on_failure:
      path.parent.mkdir(parents=True, exist_ok=True)
      self._file = sqlite3.connect(
        path, timeout=60.0, isolation_level=None, check_same_thread=False
      )
      on_failure.callback(self._file.close)
      self._check()
      on_failure.pop_all()

  def get(self, keys: Iterable[bytes]) -> dict[bytes, bool]:
    """Returns the verdicts of those keys that the cache has."""
    with self._lock, self._errors():
      rows = (
        row
        for each in keys
        for row in self._file.execute("SELECT key, verdict FROM verdicts WHERE key = ?", (each,))
      )
      return {each: verdict == "Yes" for each, verdict in rows}

  def put(self, verdicts: Mapping[bytes, bool]) -> None:
    """Stores verdicts, all or none. Existing entries stay as they are."""
    rows = [(each, "Yes" if verdict else "No") for each, verdict in verdicts.items()]
    with self._lock, self._errors(), self._file:
      self._file.execute("BEGIN IMMEDIATE")
      self._file.executemany("INSERT OR IGNORE INTO verdicts VALUES (?, ?)", rows)

  def close(self) -> None:
    """Closes the file."""
    with self._lock:
      self._file.close()

  def _check(self) -> None:
    """Creates the table in an empty file; raises InputError if the file is something else."""
    with self._file:  # commits, or rolls back
      self._file.execute("BEGIN IMMEDIATE")
      marks = [self._one(f"PRAGMA {name}") for name in ("application_id", "user_version")]
      if marks == [0, 0] and not self._one("SELECT count(*) FROM sqlite_master"):
        self._file.execute(_TABLE)
        self._file.execute(f"PRAGMA application_id = {_APPLICATION}")
        self._file.execute(f"PRAGMA user_version = {_FORMAT}")
      elif marks != [_APPLICATION, _FORMAT]:
        raise errors.InputError(
          f"{self._path}: not a cache of this version's verdicts; name another file, or remove it"
        )
    if self._one("PRAGMA quick_check") != "ok":
      raise errors.InputError(f"{self._path}: damaged; remove it, and judges are asked again")

  def _one(self, query: str) -> int | str:
    return self._file.execute(query).fetchone()[0]

  @contextlib.contextmanager
  def _errors(self) -> Iterator[None]:
    """Turns errors of SQLite and of the disk into an InputError that names the file."""
    try:
      yield
    except (sqlite3.OperationalError, OSError) as error:
      raise errors.InputError(
        f"{self._path}: can't be used ({error}); name another file"
      ) from error
    except sqlite3.DatabaseError as error:
      raise errors.InputError(
        f"{self._path}: damaged, or no cache of verdicts ({error}); remove it or name another file"
      ) from error
