"""Splits annotation files into records: JSON lines or one JSON list, gzipped or not."""

from collections.abc import Callable, Iterator
import gzip
import io
from pathlib import Path
from typing import Any
import zlib

from vr_jax import plain_json
from vr_jax.data import foreign_records
from vr_jax.errors import InputError

GZIP = b"\x1f\x8b"
_MOST_TIMES = 200  # that a gzip file of JSON grows when it is unpacked
_SMALL = 2**26  # bytes, which any file may unpack to


def entries(path: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
  """Yields each record's file and line, and a function that parses it or raises InputError."""
  try:
    content = path.read_bytes()
    packed = content.startswith(GZIP)
    text = (_unpacked(path, content) if packed else content).decode("utf-8-sig")
  except FileNotFoundError as error:
    raise InputError(f"{path}: there is no such annotation file") from error
  except UnicodeDecodeError as error:
    if kind := foreign_records.binary_kind(content):
      raise InputError(
        f"{path}: is {kind}; write one JSON object a line ({foreign_records.OTHER_FORMATS})"
      ) from error
    raise InputError(f"{path}: is not UTF-8 text (byte {error.start})") from error
  except (gzip.BadGzipFile, EOFError, zlib.error) as error:
    raise InputError(f"{path}: is damaged gzip ({error}); fetch it again") from error
  except OSError as error:
    raise InputError(f"{path}: cannot be read: {error.strerror}") from error
  if text.strip() in ("", "[]"):
    raise InputError(f"{path}: holds no annotations")
  if text.lstrip().startswith("["):
    values = _parse_json(text, str(path))
    for index, value in enumerate(values):
      yield f"{path}: record {index}", lambda value=value: value
    return
  if problem := foreign_records.wrapping(text):
    raise InputError(f"{path}: {problem}")
  # Not splitlines: it would also split at U+2028 and similar, which JSON strings may contain.
  for number, line in enumerate(text.split("\n"), start=1):
    if line.strip():
      where = f"{path}:{number}"
      yield where, lambda line=line, where=where: _parse_json(line, where)


def _unpacked(path: Path, content: bytes) -> bytes:
  """What a gzip file holds. Raises InputError for more than any annotations would unpack to."""
  most = max(_SMALL, _MOST_TIMES * len(content))
  with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
    text = file.read(most + 1)
  if len(text) > most:
    raise InputError(
      f"{path}: unpacks to more than {_MOST_TIMES} times its size, as no annotations do; "
      "fetch it again, or give it unpacked"
    )
  return text


def _parse_json(text: str, where: str) -> Any:
  try:
    return plain_json.parse(text)
  except ValueError as error:
    raise InputError(f"{where}: is not JSON: {error}") from error
