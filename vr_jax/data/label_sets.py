"""Reads segmentation sets whose masks are labels in PNG files: Ref-YouTube-VOS, Ref-DAVIS17 and
ReasonVOS.

The value of a pixel is the number of an object, 0 the background; 255 in DAVIS: nobody knows. A
frame is annotated if it has a PNG, which in Ref-YouTube-VOS every fifth one has.

Source: github.com/wjn922/ReferFormer (convert_davis_to_ytvos.py for names, encodings and the order
of expressions), github.com/showlab/VideoLISA.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
import numpy as np
from PIL import Image

from vr_jax import run_length
from vr_jax.data import picture_file, segmented_video
from vr_jax.errors import InputError

VOID = 255  # label of pixels that DAVIS scores for nothing

# The first annotator's sentences about the first frame and about the whole video, then those of the
# second one. Expression 4 k + a is that of annotator a about object k.
ANNOTATORS = (
  ("Davis17_annot1.txt", "utf-8"),
  ("Davis17_annot1_full_video.txt", "utf-8"),
  ("Davis17_annot2.txt", "latin-1"),
  ("Davis17_annot2_full_video.txt", "latin-1"),
)
# Names that the texts misspell.
_DAVIS_NAMES = {"clasic-car": "classic-car", "dog-scale": "dogs-scale", "motor-bike": "motorbike"}

_Video = segmented_video.SegmentedVideo
_Choice = segmented_video.ReadChoice
_Labels = UInt8[np.ndarray, "height width"]


def read_ref_youtube_vos(root: Path, split: str, choice: _Choice) -> Iterator[_Video]:
  """Reads <root>/meta_expressions/<split>; only train has masks.

  Those of valid and test were not released: YouTube-VOS's own valid/Annotations, where it is there,
  has each object in its first frame alone, and says nothing of which one an expression means.

  The file of valid lists the videos of test, too, which are left out if that file is there.
  """
  expressions = root / "meta_expressions"
  path = expressions / split / "meta_expressions.json"
  videos = segmented_video.load_json(path, key="videos")
  test = expressions / "test" / "meta_expressions.json"
  others = segmented_video.load_json(test, key="videos") if split == "valid" else {}
  for name, video in videos.items():
    if name in others:
      continue
    where = f"{path}: video {name!r}"
    if not isinstance(video, dict) or not isinstance(video.get("expressions"), dict):
      raise InputError(f"{where}: has no object 'expressions'")
    segmented_video.check_name(name, where)
    folder = root / split / "JPEGImages" / name
    frames = segmented_video.check_frames(folder, video.get("frames"), where, choice)
    labels = root / split / "Annotations" / name
    has_masks = split == "train" and (root / split / "Annotations").is_dir()
    queries = []
    for key, value in video["expressions"].items():
      here = f"{where}, expression {key!r}"
      text = segmented_video.check_text(value, "exp", here)
      found = str(value.get("obj_id", ""))
      if has_masks and not found.isdecimal():
        raise InputError(f"{here}: 'obj_id' is no number of an object")
      names = (str(int(found)),) if found.isdecimal() else ()
      queries.append(segmented_video.SegmentedQuery(name=key, text=text, instances=names))
    yield _labelled(name, folder, frames, queries, labels if has_masks else None, choice)


def read_ref_davis17(root: Path, split: str, choice: _Choice) -> Iterator[_Video]:
  """Reads the texts of <root>/davis_text_annotations, for DAVIS 2017 in <root>/DAVIS.

  split: train or val, as DAVIS/ImageSets/2017 names them.
  """
  davis = root / "DAVIS"
  listed = davis / "ImageSets" / "2017" / f"{split}.txt"
  try:
    names = listed.read_text(encoding="utf-8").split()
  except OSError as error:
    raise InputError(f"{listed}: cannot be read: {error.strerror}") from error
  texts = [
    _read_davis_texts(root / "davis_text_annotations" / file, encoding)
    for file, encoding in ANNOTATORS
  ]
  for name in names:
    segmented_video.check_name(name, f"{listed}: video {name!r}")
    folder = davis / "JPEGImages" / "480p" / name
    frames = () if choice.lacks(folder) else tuple(segmented_video.find_pictures(folder))
    lists = []
    for (file, _), found in zip(ANNOTATORS, texts, strict=True):
      if name not in found:
        raise InputError(f"{root / 'davis_text_annotations' / file}: has no text about {name!r}")
      # As texts: "10" comes before "2".
      lists.append(sorted(found[name], key=lambda pair: pair[0]))
    if len({tuple(number for number, _ in each) for each in lists}) != 1:
      raise InputError(
        f"{root / 'davis_text_annotations'}: the annotators describe other objects of {name!r}"
      )
    queries = [
      segmented_video.SegmentedQuery(
        name=str(len(ANNOTATORS) * place + annotator), text=text, instances=(number,)
      )
      for place, group in enumerate(zip(*lists, strict=True))
      for annotator, (number, text) in enumerate(group)
    ]
    yield _labelled(name, folder, frames, queries, _davis_labels(root, name), choice)


def read_davis_labels(
  root: Path, name: str, frames: Sequence[str]
) -> UInt8[np.ndarray, "frames height width"]:
  """The labels of all objects of a DAVIS video, and VOID."""
  folder = _davis_labels(root, name)
  found = _read_labels(folder, frames)
  _one_size(found, folder)
  if missing := [frame for frame in frames if frame not in found]:
    raise InputError(f"{folder}: the masks of frame {missing[0]!r} are missing; fetch DAVIS again")
  return np.stack([found[frame] for frame in frames])


def _davis_labels(root: Path, name: str) -> Path:
  return root / "DAVIS" / "Annotations_unsupervised" / "480p" / name


def _read_davis_texts(path: Path, encoding: str) -> dict[str, list[tuple[str, str]]]:
  """The (object, text) pairs of each video. A line: video, number of the object, text in quotes."""
  try:
    lines = path.read_text(encoding=encoding).splitlines()
  except UnicodeDecodeError as error:
    raise InputError(f"{path}: is not {encoding} text (byte {error.start})") from error
  except OSError as error:
    raise InputError(f"{path}: cannot be read: {error.strerror}") from error
  found: dict[str, list[tuple[str, str]]] = {}
  for number, line in enumerate(lines, start=1):
    words = line.split()
    if not words:
      continue
    text = " ".join(words[2:]).strip('"').strip()
    if len(words) < 3 or not words[1].isdecimal() or not text:
      raise InputError(f'{path}:{number}: needs a video, the number of an object and "a text"')
    found.setdefault(_DAVIS_NAMES.get(words[0], words[0]), []).append((words[1], text))
  return found


def read_reason_vos(root: Path, split: str, choice: _Choice) -> Iterator[_Video]:
  """Reads <root>/meta_expressions.json, which has one split. split: has to be ""."""
  if split:
    raise InputError(f"--split={split}: ReasonVOS has one split; leave it out")
  path = root / "meta_expressions.json"
  for name, video in segmented_video.load_json(path, key="videos").items():
    where = f"{path}: video {name!r}"
    expressions = video.get("expressions") if isinstance(video, dict) else None
    if isinstance(expressions, dict):  # of the first release
      expressions = [
        {"exp_id": key, **value} if isinstance(value, dict) else value
        for key, value in expressions.items()
      ]
    if not isinstance(expressions, list) or not all(isinstance(e, dict) for e in expressions):
      raise InputError(f"{where}: has no list 'expressions'")
    segmented_video.check_name(name, where)
    folder = root / "JPEGImages" / name
    frames = segmented_video.check_frames(folder, video.get("frames"), where, choice)
    queries = [
      segmented_video.SegmentedQuery(
        name=str(entry.get("exp_id", number)),
        text=segmented_video.check_text(
          entry, "exp_text" if "exp_text" in entry else "exp", f"{where}, expression {number}"
        ),
        instances=(str(entry.get("obj_id")),),
        extra={"set": str(video.get("source", "")).lower()},
      )
      for number, entry in enumerate(expressions)
    ]
    masks: dict[str, list[segmented_video.FrameMask]] = {}
    size, with_masks = None, choice.masks(name) and not choice.lacks(folder)
    named = dict.fromkeys(query.instances[0] for query in queries)
    for instance in named if with_masks else ():
      labels = root / "Annotations" / reason_vos_folder(video, name, instance)
      read = _read_labels(labels, frames)
      masks[instance] = [
        False if frame not in read else run_length.encode(read[frame] > 0) for frame in frames
      ]
      size = size or _one_size(read, labels)
    height, width = size or segmented_video.picture_size(folder, choice)
    yield _Video(
      name=name,
      folder=folder,
      frames=frames,
      height=height,
      width=width,
      queries=tuple(queries),
      instances=masks if with_masks else None,
    )


def reason_vos_folder(video: Mapping[str, Any], name: str, instance: str) -> str:
  """The folder of an object's masks, and of predictions of it."""
  return f"{str(video.get('source', '')).lower()}_{name}_{instance}"


def _labelled(
  name: str,
  folder: Path,
  frames: Sequence[str],
  queries: Sequence[segmented_video.SegmentedQuery],
  labels: Path | None,
  choice: _Choice,
) -> _Video:
  """A video with the masks of the objects that its queries mean. labels: None if there are none."""
  instances, size = None, None
  if labels is not None and choice.masks(name) and not choice.lacks(folder):
    read = _read_labels(labels, frames)
    size = _one_size(read, labels)
    numbers = sorted({number for query in queries for number in query.instances})
    instances = {
      number: [
        False if frame not in read else run_length.encode(read[frame] == int(number))
        for frame in frames
      ]
      for number in numbers
    }
  height, width = size or segmented_video.picture_size(folder, choice)
  return _Video(
    name=name,
    folder=folder,
    frames=tuple(frames),
    height=height,
    width=width,
    queries=tuple(queries),
    instances=instances,
  )


def _read_labels(folder: Path, frames: Sequence[str]) -> dict[str, _Labels]:
  """The labels of the frames that have them. Raises InputError if none has."""
  found = {
    frame: read_labels(folder / f"{frame}.png")
    for frame in frames
    if (folder / f"{frame}.png").is_file()
  }
  if not found:
    raise InputError(f"{folder}: holds no masks of the video's {len(frames)} frames")
  return found


def read_labels(path: Path) -> _Labels:
  """The labels of a PNG file: the palette's indices, or the values of a grey picture.

  Raises:
    InputError: the file can't be read, or has colours.
  """
  try:
    with Image.open(path, formats=picture_file.FORMATS) as image:
      if image.mode == "1":
        image = image.convert("L")
      if image.mode not in ("P", "L"):
        raise InputError(f"{path}: has colours ({image.mode}), not labels; fetch the set again")
      return np.array(image, np.uint8)
  except (OSError, SyntaxError, ValueError) as error:
    raise picture_file.bad_picture(path, error) from error


def _one_size(labels: Mapping[str, _Labels], folder: Path) -> tuple[int, int]:
  """Height and width, the same of all. Raises InputError if they differ."""
  first, *others = labels.items()
  for frame, each in others:
    if each.shape != first[1].shape:
      raise InputError(
        f"{folder}: the masks of frame {first[0]!r} are of {first[1].shape} pixels (height, "
        f"width), those of {frame!r} of {each.shape}"
      )
  height, width = first[1].shape
  return height, width
