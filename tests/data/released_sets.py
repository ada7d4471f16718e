"""Small segmentation sets on disk, in the layouts in which real ones are released.

Each has the videos "park" (5 frames) and "street" (3 frames) of 24 x 40 pixels. Object 1 is a
square that moves to the right, object 2 one that stands, object 10 one that is seen in the last
frame alone.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from vr_jax import run_length

HEIGHT, WIDTH = 24, 40
LENGTHS = {"park": 5, "street": 3}
PALETTE = [value for label in range(256) for value in (label, 255 - label, label * 7 % 256)]


def mask(number: int, frame: int, count: int) -> np.ndarray:
  """The pixels of an object in a frame of a video of `count` frames."""
  found = np.zeros((HEIGHT, WIDTH), bool)
  if number == 1:
    found[4:10, 3 + 2 * frame : 9 + 2 * frame] = True
  elif number == 2:
    found[14:20, 20:30] = True
  elif frame == count - 1:
    found[1:4, 34:38] = True
  return found


def labels(frame: int, count: int) -> np.ndarray:
  """The numbers of objects at the pixels of a frame."""
  found = np.zeros((HEIGHT, WIDTH), np.uint8)
  for number in (1, 2, 10):
    found[mask(number, frame, count)] = number
  return found


def write_json(path: Path, value) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value), encoding="utf-8")


def write_labels(path: Path, values: np.ndarray, *, palette: bool = True) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  image = Image.fromarray(values)
  if palette:
    image.putpalette(PALETTE)
  image.save(path)


def write_frames(folder: Path, names: list[str], *, mark: int = 0) -> None:
  """Writes pictures of which no two are the same."""
  folder.mkdir(parents=True)
  for index, name in enumerate(names):
    image = np.full((HEIGHT, WIDTH, 3), 40 + 20 * index, np.uint8)
    image[:, : 2 + mark] = (200, 30, 10 * mark)
    Image.fromarray(image).save(folder / f"{name}.jpg", quality=95)


def names_of(count: int, *, step: int = 1) -> list[str]:
  return [f"{step * index:05d}" for index in range(count)]


def run_lengths(numbers: dict[str, tuple[str, int]]) -> dict[str, list]:
  """A mask_dict. numbers: of each annotation, its video and object."""
  found = {}
  for name, (video, number) in numbers.items():
    count = LENGTHS[video]
    found[name] = [run_length.encode(mask(number, frame, count)) for frame in range(count)]
  return found


def mevis(root: Path, split: str = "train") -> Path:
  folder = root / split
  videos = {}
  for mark, (video, count) in enumerate(LENGTHS.items()):
    write_frames(folder / "JPEGImages" / video, names_of(count), mark=mark)
    base = 10 * mark
    videos[video] = {
      "vid_id": mark,
      "frames": names_of(count),
      "expressions": {
        "0": {"exp": "the square that moves", "obj_id": [1], "anno_id": [base + 1]},
        "1": {"exp": "both  squares ", "obj_id": [1, 2], "anno_id": [base + 1, base + 2]},
        "2": {"exp": "what appears late", "obj_id": [10], "anno_id": [base + 3]},
      },
    }
  write_json(folder / "meta_expressions.json", {"videos": videos})
  if split in ("train", "valid_u"):
    numbers = {
      str(10 * mark + place): (video, number)
      for mark, video in enumerate(LENGTHS)
      for place, number in ((1, 1), (2, 2), (3, 10))
    }
    write_json(folder / "mask_dict.json", run_lengths(numbers))
  return root


def revos(root: Path) -> Path:
  masks = run_lengths({"7": ("park", 1), "8": ("park", 2), "9": ("street", 10)})
  # Some masks of the release are lists of several.
  masks["7"] = [[part] for part in masks["7"]]
  write_json(root / "mask_dict.json", masks)
  for video, count in LENGTHS.items():
    write_frames(root / "JPEGImages" / "sub" / video, names_of(count))
  size = {"height": HEIGHT, "width": WIDTH}
  park = {
    "0": {"exp": "the square that moves", "obj_id": [1], "anno_id": [7], "type_id": 0},
    "1": {"exp": "What would hurt a toe?", "obj_id": [1, 2], "anno_id": [7, 8], "type_id": 1},
    "2": {"exp": "no such thing", "obj_id": [], "anno_id": [], "type_id": 2},
  }
  street = {"0": {"exp": "what appears late", "obj_id": [3], "anno_id": [9], "type_id": 1}}
  for split, videos in (("train", {"sub/park": park}), ("valid", {"sub/street": street})):
    write_json(
      root / f"meta_expressions_{split}_.json",
      {
        "videos": {
          name: {"frames": names_of(LENGTHS[name[4:]]), **size, "expressions": expressions}
          for name, expressions in videos.items()
        }
      },
    )
  foreground = {
    f"sub/{video}": {
      "masks_rle": [run_length.encode(labels(frame, count) > 0) for frame in range(count)]
    }
    for video, count in LENGTHS.items()
  }
  write_json(root / "mask_dict_foreground.json", foreground)
  return root


def lv_vis(root: Path) -> Path:
  write_frames(root / "train" / "JPEGImages" / "00001", names_of(5))
  annotations = [
    {
      "id": number,
      "video_id": 1,
      "category_id": 4 if number < 10 else 5,
      "segmentations": [run_length.encode(mask(number, frame, 5)) for frame in range(5)],
    }
    for number in (1, 2, 10)
  ]
  video = {
    "id": 1,
    "file_names": [f"00001\\{name}.jpg" for name in names_of(5)],
    "height": HEIGHT,
    "width": WIDTH,
    "length": 5,
  }
  write_json(
    root / "train_instances.json",
    {
      "videos": [video],
      "annotations": annotations,
      "categories": [{"id": 4, "name": "paving_stone"}, {"id": 5, "name": "lamp"}],
    },
  )
  return root


def ref_youtube_vos(root: Path) -> Path:
  """Names count the frames of the original video, of which every fifth was released.

  valid has masks of the frames alone in which an object is first seen, and no numbers of objects.
  """
  meant = {"0": ("the square that moves", "1"), "1": ("what appears late", "10")}
  for split in ("train", "valid"):
    videos = {}
    for video, count in LENGTHS.items():
      names = names_of(count, step=5)
      write_frames(root / split / "JPEGImages" / video, names)
      for frame in range(count) if split == "train" else (0, count - 1):
        write_labels(
          root / split / "Annotations" / video / f"{names[frame]}.png", labels(frame, count)
        )
      expressions = {
        key: {"exp": text} | ({"obj_id": number} if split == "train" else {})
        for key, (text, number) in meant.items()
      }
      videos[video] = {"frames": names, "expressions": expressions}
    write_json(root / "meta_expressions" / split / "meta_expressions.json", {"videos": videos})
  tested = {"street": {"frames": [], "expressions": {}}}
  write_json(root / "meta_expressions" / "test" / "meta_expressions.json", {"videos": tested})
  return root


def ref_davis17(root: Path) -> Path:
  """Two of the annotators' names are misspelt, as in the release; the second writes Latin-1."""
  davis = root / "DAVIS"
  videos = {"classic-car": 5, "street": 3}
  for mark, (video, count) in enumerate(videos.items()):
    write_frames(davis / "JPEGImages" / "480p" / video, names_of(count), mark=mark)
    for frame, name in enumerate(names_of(count)):
      values = labels(frame, count)
      values[-2:] = 255  # void
      write_labels(davis / "Annotations_unsupervised" / "480p" / video / f"{name}.png", values)
  (davis / "ImageSets" / "2017").mkdir(parents=True)
  (davis / "ImageSets" / "2017" / "val.txt").write_text("classic-car\nstreet\n")
  texts = root / "davis_text_annotations"
  texts.mkdir()
  for annotator, (file, encoding) in enumerate(
    (
      ("Davis17_annot1.txt", "utf-8"),
      ("Davis17_annot1_full_video.txt", "utf-8"),
      ("Davis17_annot2.txt", "latin-1"),
      ("Davis17_annot2_full_video.txt", "latin-1"),
    )
  ):
    lines = [
      f'{video} {number} "object {number} by {annotator}, café"'
      for video in ("clasic-car", "street", "elsewhere")
      for number in (1, 2, 10)
    ]
    (texts / file).write_bytes(("\n".join(lines) + "\n").encode(encoding))
  return root


def reason_vos(root: Path) -> Path:
  """Object 1 is annotated in every other frame, and object 2 in the first three."""
  write_frames(root / "JPEGImages" / "park", names_of(5))
  for number, frames in ((1, (0, 2, 4)), (2, (0, 1, 2))):
    for frame in frames:
      values = mask(number, frame, 5).astype(np.uint8) * 255
      path = root / "Annotations" / f"mose_park_{number}" / f"{frame:05d}.png"
      write_labels(path, values, palette=False)
  expressions = [
    {"obj_id": number, "exp_id": place, "exp_text": text, "is_sent": True}
    for place, (number, text) in enumerate(((1, "Which one moves?"), (2, "Which one stays?")))
  ]
  video = {"source": "MOSE", "frames": names_of(5), "expressions": expressions}
  write_json(root / "meta_expressions.json", {"videos": {"park": video}})
  return root
