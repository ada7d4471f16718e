"""Videos of released segmentation sets: frames, queries, and the masks of instances.

What the readers of all layouts share: expression_sets.py for masks as run lengths in JSON, and
label_sets.py for masks as the labels of PNG files.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from pathlib import Path
from typing import Any

from PIL import Image

from vr_jax import inner_path, plain_json, run_length
from vr_jax.data import image_folder, picture_file
from vr_jax.errors import InputError

# A run-length mask; None where the instance is not visible, False where nobody annotated it.
FrameMask = run_length.RunLength | bool | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentedQuery:
  """A query about a video.

  name: its id in the set, unique within the video.
  instances: names of those that it means, whose union is the object.
  extra: other fields of the set, kept with the record.
  """

  name: str
  text: str
  instances: tuple[str, ...]
  extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SegmentedVideo:
  """A video of a segmentation set.

  name: its id in the set.
  folder: of its pictures.
  frames: names without suffix of the frames that the set lists.
  height, width: in pixels.
  queries: in the order of the set.
  instances: the masks of each, one a frame; None if the set keeps them to itself.
  """

  name: str
  folder: Path
  frames: tuple[str, ...]
  height: int
  width: int
  queries: tuple[SegmentedQuery, ...]
  instances: Mapping[str, Sequence[FrameMask]] | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadChoice:
  """What is read of a set.

  masks: whether those of the video of this name are; where they aren't, `instances` is None.
  absent: whether a video whose folder of pictures is not there is read, too: with no masks, a size
    of 0, and the names of its frames where a file lists them. Else it is an error.
  """

  masks: Callable[[str], bool] = lambda name: True
  absent: bool = False

  def lacks(self, folder: Path) -> bool:
    """Whether a video is read without its pictures, as they are not there."""
    return self.absent and not folder.is_dir()


EVERYTHING = ReadChoice()


def object_masks(
  instances: Mapping[str, Sequence[FrameMask]], names: Sequence[str], frames: int
) -> dict[int, run_length.RunLength | None]:
  """The union of some instances in each frame in which all of them are annotated, by its index.

  With no name, an object that isn't there: every frame has a mask without a pixel.
  """
  found = {}
  for frame in range(frames):
    masks = [instances[name][frame] for name in names]
    if not any(mask is False for mask in masks):
      found[frame] = run_length.union([mask for mask in masks if isinstance(mask, Mapping)])
  return found


def load_json(path: Path, *, key: str = "") -> Any:
  """Reads a JSON file, or the object under a key of it. Raises InputError naming the file."""
  try:
    value = plain_json.parse(path.read_bytes())
  except FileNotFoundError as error:
    raise InputError(f"{path}: there is no such file; is the set complete?") from error
  except OSError as error:
    raise InputError(f"{path}: cannot be read: {error.strerror}") from error
  except ValueError as error:
    raise InputError(f"{path}: is not JSON: {error}; fetch it again") from error
  if not isinstance(value, dict):
    raise InputError(f"{path}: is no JSON object")
  if not key:
    return value
  if not isinstance(value.get(key), dict):
    raise InputError(f"{path}: has no object {key!r}")
  return value[key]


def check_name(name: str, where: str) -> None:
  """Raises InputError if a video's name leads out of the directory of all videos."""
  if not inner_path.is_inner(name):
    raise InputError(f"{where}: its name is none of a folder among those of the videos")


def check_text(value: Any, field: str, where: str) -> str:
  """The text of a query. Raises InputError if there is none."""
  text = value.get(field) if isinstance(value, dict) else None
  if not isinstance(text, str) or not text.strip():
    raise InputError(f"{where}: {field!r} is no text")
  return " ".join(text.split())


def check_frames(
  folder: Path, frames: Any, where: str, choice: ReadChoice = EVERYTHING
) -> tuple[str, ...]:
  """Frame names of a set, in order; all of them are pictures of the folder, if that is needed.

  Raises:
    InputError: the list is none, or a picture is missing.
  """
  if not isinstance(frames, list) or not frames or not all(isinstance(f, str) for f in frames):
    raise InputError(f"{where}: 'frames' is no list of names")
  if choice.lacks(folder):
    return tuple(frames)
  pictures = find_pictures(folder)
  missing = [frame for frame in frames if frame not in pictures]
  if missing:
    raise InputError(
      f"{folder}: the frame {missing[0]!r} is missing, and {len(missing) - 1} others of the "
      f"{len(frames)} that {where} lists; fetch the video again"
    )
  return tuple(frames)


def find_pictures(folder: Path) -> dict[str, Path]:
  """The pictures of a folder by their names without suffix, in the order of frames.

  Raises:
    InputError: there is no such folder, or it has two pictures of a frame.
  """
  if not folder.is_dir():
    raise InputError(f"{folder}: there is no such folder of frames; is the set complete?")
  names = (entry.name for entry in folder.iterdir() if picture_file.is_picture(entry.name))
  found: dict[str, Path] = {}
  for path in (folder / name for name in image_folder.order_frames(names)):
    if other := found.get(path.stem):
      raise InputError(
        f"{folder}: has two pictures of frame {path.stem!r}, {other.name} and {path.name}; "
        "delete the one that the set does not have"
      )
    found[path.stem] = path
  return found


def picture_size(folder: Path, choice: ReadChoice = EVERYTHING) -> tuple[int, int]:
  """Height and width of the first picture of a folder, in pixels; 0 if it need not be there."""
  if choice.lacks(folder):
    return 0, 0
  path = next(iter(find_pictures(folder).values()), None)
  if path is None:
    raise InputError(f"{folder}: holds no pictures")
  try:
    with Image.open(path, formats=picture_file.FORMATS) as image:
      width, height = image.size
  except OSError as error:
    raise picture_file.bad_picture(path, error) from error
  return height, width
