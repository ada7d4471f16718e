"""Reads segmentation sets whose masks are run lengths in JSON: MeViS, ReVOS and LV-VIS.

    meta_expressions.json   {"videos": {video: {"frames": [name, …], "expressions": {id:
                            {"exp": text, "anno_id": [number, …], …}}}}}
    mask_dict.json          {annotation's number: [mask or null, one a frame]}
    JPEGImages/<video>/<frame>.jpg

A query means the union of its annotations. LV-VIS was released with categories instead of
sentences, in the form of YouTube-VIS (<split>_instances.json); VISA has sentences for it, in the
form above.

Source: github.com/henghuiding/MeViS, github.com/cilinyan/ReVOS-api, github.com/cilinyan/VISA,
github.com/haochenheheda/LVVIS.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vr_jax import run_length
from vr_jax.data import segmented_video
from vr_jax.errors import InputError

_Video = segmented_video.SegmentedVideo
_Choice = segmented_video.ReadChoice


def read_mevis(root: Path, split: str, choice: _Choice) -> Iterator[_Video]:
  """Reads <root>/<split>. The splits valid and test have no masks."""
  folder = root / split
  masks = folder / "mask_dict.json"
  yield from _read(
    folder / "meta_expressions.json", masks if masks.is_file() else None, folder, choice
  )


def read_revos(root: Path, split: str, choice: _Choice) -> Iterator[_Video]:
  """Reads <root>/meta_expressions_<split>_.json; the masks of both splits are in one file."""
  yield from _read(root / f"meta_expressions_{split}_.json", root / "mask_dict.json", root, choice)


def read_lv_vis(root: Path, split: str, choice: _Choice) -> Iterator[_Video]:
  """Reads VISA's sentences if <root>/<split> has them, else the categories of the release.

  The latter always with all pictures and masks.
  """
  folder = root / split
  expressions = folder / "meta_expressions.json"
  if expressions.is_file():
    yield from _read(expressions, folder / "mask_dict.json", folder, choice, spaces=True)
  else:
    yield from _read_instances(root / f"{split}_instances.json", folder)


def _read(
  expressions: Path,
  mask_dict: Path | None,
  folder: Path,
  choice: _Choice,
  *,
  spaces: bool = False,
) -> Iterator[_Video]:
  """Reads a set in the form above. spaces: texts have "_" for a space."""
  videos = segmented_video.load_json(expressions, key="videos")
  masks: Mapping[str, Any] = {}  # read if it is needed: the file is large
  for name, video in videos.items():
    where = f"{expressions}: video {name!r}"
    if not isinstance(video, dict) or not isinstance(video.get("expressions"), dict):
      raise InputError(f"{where}: has no object 'expressions'")
    segmented_video.check_name(name, where)
    pictures = folder / "JPEGImages" / name
    frames = segmented_video.check_frames(pictures, video.get("frames"), where, choice)
    queries = tuple(
      _query(key, value, f"{where}, expression {key!r}", spaces=spaces, known=mask_dict is not None)
      for key, value in video["expressions"].items()
    )
    instances, size = None, None
    if mask_dict is not None and choice.masks(name) and not choice.lacks(pictures):
      masks = masks or segmented_video.load_json(mask_dict)
      wanted = sorted({instance for query in queries for instance in query.instances})
      instances = {}
      for instance in wanted:
        here = f"{mask_dict}: annotation {instance}"
        if instance not in masks:
          raise InputError(f"{here}: is missing; {where} needs it")
        instances[instance] = [_mask(value, here) for value in _per_frame(masks[instance], here)]
        if len(instances[instance]) != len(frames):
          raise InputError(
            f"{here}: has {len(instances[instance])} masks for the {len(frames)} frames of {where}"
          )
      every = (mask for each in instances.values() for mask in each if mask)
      size = next((mask["size"] for mask in every), None)
    height, width = size or segmented_video.picture_size(pictures, choice)
    yield _Video(
      name=name,
      folder=pictures,
      frames=frames,
      height=height,
      width=width,
      queries=queries,
      instances=instances,
    )


def _query(
  key: str, value: Any, where: str, *, spaces: bool, known: bool
) -> segmented_video.SegmentedQuery:
  text = segmented_video.check_text(value, "exp", where)
  numbers = value.get("anno_id", None if known else [])
  numbers = [numbers] if isinstance(numbers, int | str) else numbers
  if not isinstance(numbers, list) or not all(isinstance(n, int | str) for n in numbers):
    raise InputError(f"{where}: 'anno_id' is no list of numbers")
  extra = {"type_id": value["type_id"]} if "type_id" in value else {}
  return segmented_video.SegmentedQuery(
    name=key,
    text=" ".join(text.replace("_", " ").split()) if spaces else text,
    instances=tuple(dict.fromkeys(map(str, numbers))),
    extra=extra,
  )


def _per_frame(value: Any, where: str) -> list[Any]:
  if not isinstance(value, list):
    raise InputError(f"{where}: is no list of masks")
  return value


def _mask(value: Any, where: str) -> run_length.RunLength | None:
  """A frame's mask. Some are lists of masks, which are one; an empty list is none."""
  parts = value if isinstance(value, list) else [value]
  parts = [part for part in parts if part is not None]
  if not parts:
    return None
  for part in parts:
    size = part.get("size") if isinstance(part, dict) else None
    if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int for side in size):
      raise InputError(f"{where}: a mask has no 'size'")
    run_length.check(part, size[0], size[1], where)
    if size != parts[0]["size"]:
      raise InputError(f"{where}: masks of one frame are of other sizes: {size}")
  return run_length.as_text(run_length.union(parts))


def _read_instances(path: Path, folder: Path) -> Iterator[_Video]:
  """Reads a release in the form of YouTube-VIS: each category of a video is a query."""
  value = segmented_video.load_json(path)
  for field in ("videos", "annotations", "categories"):
    if not isinstance(value.get(field), list):
      raise InputError(f"{path}: has no list {field!r}")
  try:
    categories = {entry["id"]: entry["name"] for entry in value["categories"]}
    of_video: dict[Any, list[Mapping[str, Any]]] = {}
    for annotation in value["annotations"]:
      of_video.setdefault(annotation["video_id"], []).append(annotation)
    for video in value["videos"]:
      yield _labelled_video(video, of_video.get(video["id"], []), categories, path, folder)
  except (KeyError, TypeError, AttributeError) as error:
    raise InputError(f"{path}: lacks a field, or one has another form: {error}") from error


def _labelled_video(
  video: Mapping[str, Any],
  annotations: list[Mapping[str, Any]],
  categories: Mapping[Any, str],
  path: Path,
  folder: Path,
) -> _Video:
  files = [Path(name.replace("\\", "/")) for name in video["file_names"]]
  where = f"{path}: video {video['id']}"
  if not files or len({file.parent for file in files}) != 1:
    raise InputError(f"{where}: its frames are not in one folder")
  segmented_video.check_name(files[0].parent.name, where)
  pictures = folder / "JPEGImages" / files[0].parent.name
  frames = segmented_video.check_frames(pictures, [file.stem for file in files], where)
  instances: dict[str, list[segmented_video.FrameMask]] = {}
  groups: dict[str, list[str]] = {}
  for annotation in annotations:
    name = str(annotation["id"])
    here = f"{path}: annotation {name}"
    masks = _per_frame(annotation["segmentations"], here)
    if len(masks) != len(frames):
      raise InputError(f"{here}: has {len(masks)} masks for {len(frames)} frames")
    instances[name] = [_mask(mask, here) for mask in masks]
    groups.setdefault(categories[annotation["category_id"]], []).append(name)
  return _Video(
    name=pictures.name,
    folder=pictures,
    frames=frames,
    height=video["height"],
    width=video["width"],
    queries=tuple(
      segmented_video.SegmentedQuery(
        name=str(number),
        text=f"the {' '.join(category.replace('_', ' ').split())}",
        instances=tuple(names),
      )
      for number, (category, names) in enumerate(sorted(groups.items()))
    ),
    instances=instances,
  )
