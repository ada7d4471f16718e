"""Finds what of benchmarks' files has frames: videos, and folders of pictures (MVBench's TVQA)."""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
import json
from pathlib import Path, PurePosixPath

from vr_jax import errors
from vr_jax.data import foreign_records, image_folder, video_file

VIDEOS = (
  *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".flv", ".mpg", ".mpeg", ".ts", ".wmv"),
  *(".3gp", ".gif", ".ogv"),
)
# Annotations, subtitles and programs, which have no frames.
_TEXTS = (
  *(".json", ".jsonl", ".csv", ".tsv", ".txt", ".md", ".srt", ".vtt", ".ass", ".yaml", ".yml"),
  *(".py", ".ipynb", ".sh", ".html", ".pdf", ".gitattributes", ".gitignore", ".lock", ".metadata"),
)
_TEXTS_BY_NAME = ("readme", "license", "licence", "copying", "notice", "authors", "makefile")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkFiles:
  """Files of benchmarks, as paths relative to their directory.

  folders: names of the pictures of each folder that has some, in order.
  others: files that may have frames nobody reads: archives, tables, unknown suffixes or none.
  """

  videos: tuple[str, ...]
  folders: Mapping[str, tuple[str, ...]]
  others: tuple[str, ...]

  @property
  def names(self) -> list[str]:
    """All videos and folders."""
    return [*self.videos, *self.folders]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkComparison:
  """What videos were compared with.

  videos, folders: how many of each.
  not_compared: why, by file or folder.
  """

  videos: int
  folders: int
  not_compared: Mapping[str, str]


def find(folder: Path) -> BenchmarkFiles:
  """Sorts the files below a directory. Raises InputError if no video or picture is among them."""
  foreign_records.check_place(folder, "config.construct.benchmarks")
  files = video_file.find(folder)
  videos = tuple(name for name in files if _suffix(name) in VIDEOS)
  folders = image_folder.find_all(f"./{name}" for name in files)
  folders = {name.removeprefix("./"): names for name, names in folders.items()}
  pictures = {str(PurePosixPath(name) / each) for name, names in folders.items() for each in names}
  if not videos and not folders:
    raise errors.InputError(
      f"--config.construct.benchmarks={folder}: holds no videos ({', '.join(VIDEOS)}) and no "
      "folders of pictures"
    )
  others = [n for n in files if n not in pictures and not _is_text(n) and _suffix(n) not in VIDEOS]
  return BenchmarkFiles(videos=videos, folders=folders, others=tuple(others))


def describe(folder: Path) -> str:
  """A digest of names and sizes of what has frames. Raises InputError if nothing has."""
  found = find(folder)
  pictures = [f"{name}/{each}" for name, names in found.folders.items() for each in names]
  try:
    facts = [[name, (folder / name).stat().st_size] for name in (*found.videos, *pictures)]
  except OSError as error:
    raise errors.InputError(f"{folder}: cannot be read: {error.strerror}") from error
  content = json.dumps(facts).encode("utf-8", "surrogatepass")
  return f"{len(facts)} videos, {hashlib.sha256(content).hexdigest()}"


def compare(found: BenchmarkFiles, bad: Sequence[Mapping[str, str]]) -> BenchmarkComparison:
  """Counts what was compared. bad: folders whose pictures are no frames of one video."""
  problems = {each["where"]: each["problem"] for each in bad}
  return BenchmarkComparison(
    videos=len(found.videos),
    folders=len(found.folders) - len(problems),
    not_compared={**problems, **dict.fromkeys(found.others, "neither a video nor a picture")},
  )


def _is_text(name: str) -> bool:
  return _suffix(name) in _TEXTS or PurePosixPath(name).name.lower() in _TEXTS_BY_NAME


def _suffix(name: str) -> str:
  path = PurePosixPath(name)
  return path.suffix.lower() or (path.name if path.name.startswith(".") else "")
