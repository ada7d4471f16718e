"""Finds the videos, frames and pictures of a benchmark, whatever the suffix of their names."""

import dataclasses
import os
from pathlib import Path, PurePosixPath

from vr_jax import inner_path
from vr_jax.errors import InputError

# In the order of preference where a name exists with several.
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".gif")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaFiles:
  """The files below a benchmark's directory. Each folder is listed once, when it is first needed.

  listings: names in the folders listed so far.
  """

  root: Path
  listings: dict[str, frozenset[str]] = dataclasses.field(default_factory=dict)

  def find(self, where: str, *names: str) -> str:
    """The first of some paths below the root that exists; the first path if none does.

    A video may have another suffix than the path says, in small or capital letters. Its stem has
    to be the same: ids of YouTube differ in capitals. A path without suffix may be a folder.

    Raises InputError naming `where` if a path leads out of the root.
    """
    for name in names:
      if not inner_path.is_inner(name):
        raise InputError(f"{where}: {name!r:.80} is no path below the benchmark's directory")
    return next((found for name in names if (found := self._find_one(name))), names[0])

  def is_folder(self, name: str) -> bool:
    """Whether a path is a folder, of frames."""
    return (self.root / name).is_dir()

  def exists(self, name: str) -> bool:
    """Whether a path is there."""
    path = PurePosixPath(name)
    return path.name in self._names_in(path.parent.as_posix())

  def _find_one(self, name: str) -> str:
    path = PurePosixPath(name)
    present = self._names_in(path.parent.as_posix())
    if path.name in present:
      return path.as_posix()
    stem = path.stem if path.suffix.lower() in VIDEO_SUFFIXES else path.name
    same = [
      other
      for other in present
      if other.startswith(stem) and other[len(stem) :].lower() in VIDEO_SUFFIXES
    ]
    if not same:
      return ""
    rank = {suffix: index for index, suffix in enumerate(VIDEO_SUFFIXES)}
    best = min(same, key=lambda other: (rank[other[len(stem) :].lower()], other))
    return (path.parent / best).as_posix()

  def _names_in(self, folder: str) -> frozenset[str]:
    if folder not in self.listings:
      try:
        self.listings[folder] = frozenset(os.listdir(self.root / folder))
      except (FileNotFoundError, NotADirectoryError):
        self.listings[folder] = frozenset()
      except OSError as error:
        place = self.root / folder
        raise InputError(f"{place}: cannot be listed: {error.strerror}") from error
    return self.listings[folder]
