"""A cache in one SQLite file with one table, whose header says what kind of cache it is."""

from collections.abc import Iterator
import contextlib
from pathlib import Path
import sqlite3
import threading

from vr_jax import errors


class CacheFile:
  """One SQLite file. Threads may share the object, processes the file."""

  def __init__(self, path: Path, *, content: str, application: int, layout: int, table: str):
    """Opens or creates the file.

    content: what it holds, for messages: "verdicts".
    application: marks the file as a cache of this kind (SQLite's application_id).
    layout: version of keys and table; a file of another one is refused.
    table: the statement that creates the table if it isn't there.

    Raises:
      InputError: it is damaged, is another kind of file, or can't be written.
    """
    self._path, self._content = path, content
    self._marks = [application, layout]
    self._lock = threading.Lock()
    with self._errors(), contextlib.ExitStack() as on_failure:
      path.parent.mkdir(parents=True, exist_ok=True)
      self._file = sqlite3.connect(
        path, timeout=60.0, isolation_level=None, check_same_thread=False
      )
      on_failure.callback(self._file.close)
      self._check(table)
      on_failure.pop_all()

  @contextlib.contextmanager
  def reading(self) -> Iterator[sqlite3.Connection]:
    """Yields the connection, to this thread alone; problems become InputErrors naming the file."""
    with self._lock, self._errors():
      yield self._file

  @contextlib.contextmanager
  def writing(self) -> Iterator[sqlite3.Connection]:
    """As `reading`, in a transaction: all that the block writes is stored, or nothing."""
    with self._lock, self._errors(), self._file:  # commits, or rolls back
      self._file.execute("BEGIN IMMEDIATE")
      yield self._file

  def close(self) -> None:
    """Closes the file."""
    with self._lock:
      self._file.close()

  def _check(self, table: str) -> None:
    """Creates the table in an empty file; raises InputError if the file is something else."""
    with self._file:
      self._file.execute("BEGIN IMMEDIATE")
      marks = [self._one(f"PRAGMA {name}") for name in ("application_id", "user_version")]
      if marks == [0, 0] and not self._one("SELECT count(*) FROM sqlite_master"):
        application, layout = self._marks
        self._file.execute(table)
        self._file.execute(f"PRAGMA application_id = {application}")
        self._file.execute(f"PRAGMA user_version = {layout}")
      elif marks != self._marks:
        raise errors.InputError(
          f"{self._path}: not a cache of this version's {self._content}; "
          "name another file, or remove it"
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
        f"{self._path}: damaged, or no cache of {self._content} ({error}); "
        "remove it or name another file"
      ) from error
