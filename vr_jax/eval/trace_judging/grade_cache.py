"""A cache of verdicts on disk, by hashes of model and prompt: of traces, grades and reasons.

It also counts readings that gave no verdict, so that a start that follows a killed one repeats no
question, answered or not.
"""

from collections.abc import Callable, Iterable
import dataclasses
import json
from pathlib import Path
from typing import Any

from vr_jax import errors, plain_json
from vr_jax.eval.trace_judging import grade
from vr_jax.rewards import cache_file

_APPLICATION = 0x76727467  # "vrtg": marks the file as a cache of grades of traces
_LAYOUT = 1  # increase if keys are computed differently
_TABLE = (
  "CREATE TABLE grades (key BLOB PRIMARY KEY, attempts INTEGER NOT NULL, grades TEXT) WITHOUT ROWID"
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CachedGrades:
  """What is known of a prompt.

  attempts: how often a reply to it was read.
  grades: the verdict, of traces in the order of the prompt; None if no reply had one.
  """

  attempts: int
  grades: Any | None


def _to_json(grades: tuple[grade.TraceGrade, ...]) -> list[Any]:
  return [dataclasses.asdict(each) for each in grades]


def _from_json(value: Any) -> tuple[grade.TraceGrade, ...]:
  return tuple(plain_json.build(grade.TraceGrade, each) for each in value)


class GradeCache:
  """One SQLite file. Threads may share the object, processes the file. The first verdict stays."""

  def __init__(
    self,
    path: Path,
    *,
    content: str = "grades of traces",
    application: int = _APPLICATION,
    to_json: Callable[[Any], Any] = _to_json,
    from_json: Callable[[Any], Any] = _from_json,
  ):
    """Opens or creates the file.

    content, application: see `cache_file.CacheFile`.
    to_json, from_json: of a verdict; the latter may raise ValueError or TypeError.

    Raises:
      InputError: it is damaged, is no cache of this kind, or can't be written.
    """
    self.path, self._to_json, self._from_json = path, to_json, from_json
    self._file = cache_file.CacheFile(
      path, content=content, application=application, layout=_LAYOUT, table=_TABLE
    )

  def get(self, keys: Iterable[bytes]) -> dict[bytes, CachedGrades]:
    """Returns what is known of those keys that were asked before.

    Raises InputError if an entry can't be read.
    """
    with self._file.reading() as file:
      rows = [
        row
        for each in keys
        for row in file.execute("SELECT key, attempts, grades FROM grades WHERE key = ?", (each,))
      ]
    return {key: CachedGrades(attempts=count, grades=self._read(text)) for key, count, text in rows}

  def add_attempt(self, key: bytes, grades: Any | None) -> None:
    """Stores that a reply was read, and its grades if it had any."""
    text = None if grades is None else json.dumps(self._to_json(grades))
    with self._file.writing() as file:
      file.execute(
        "INSERT INTO grades VALUES (?, 1, ?) ON CONFLICT (key) DO UPDATE SET "
        "attempts = attempts + 1, grades = coalesce(grades, excluded.grades)",
        (key, text),
      )

  def close(self) -> None:
    """Closes the file."""
    self._file.close()

  def _read(self, text: str | None) -> Any | None:
    if text is None:
      return None
    try:
      return self._from_json(plain_json.parse(text))
    except (ValueError, TypeError) as error:
      raise errors.InputError(
        f"{self.path}: holds grades that are none ({error}); remove it, and judges are asked again"
      ) from error
