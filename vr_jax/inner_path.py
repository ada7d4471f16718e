"""Names of files that stand in other files must not lead out of the directory that they are about.

Indexes, annotations and sets come from elsewhere. A name such as ../../.ssh/id in them would be
read, or written, outside of the data.
"""

from pathlib import Path, PurePosixPath

_LONGEST = 255  # bytes of a part of a path, as file systems have it


def is_inner(name: object) -> bool:
  """Whether a name is that of a place below a directory: relative, without "..", and can exist."""
  if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
    return False
  try:
    parts = [part.encode() for part in PurePosixPath(name).parts]
  except UnicodeEncodeError:
    return False
  return (
    not name.startswith("/")
    and b".." not in parts
    and 0 < len(parts) <= _LONGEST
    and max(map(len, parts)) <= _LONGEST
  )


def is_plain(name: object) -> bool:
  """Whether a name is that of a file directly in a directory."""
  return is_inner(name) and "/" not in str(name)


def stays_inside(path: Path, directory: Path) -> bool:
  """Whether a file is below a directory, also where links lead to."""
  return path.resolve().is_relative_to(directory.resolve())
