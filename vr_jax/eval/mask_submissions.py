"""Predicted masks on disk: a PNG a frame, where the programs and servers of each set look for them.

Where, below the directory of predictions:

    mevis, revos      <video>/<expression>/<frame>.png
    ref_youtube_vos   Annotations/<video>/<expression>/<frame>.png
    reason_vos        <set>_<video>_<object>/<expression>/<frame>.png
    ref_davis17       <video>/<expression>/<frame>.png, each expression alone (VISA's protocol);
                      and, made from these, anno_<0 to 3>/<video>/<frame>.png with the labels of
                      objects (DAVIS's unsupervised protocol)
"""

from collections.abc import Sequence
from pathlib import Path
import zipfile

from jaxtyping import Bool, UInt8
import numpy as np
from PIL import Image

from vr_jax import atomic, inner_path
from vr_jax.data import label_sets, segmented_video
from vr_jax.errors import InputError
from vr_jax.eval import segmentation

MARKED = 255  # the value of a pixel of the object, as servers expect it
_EPOCH = (1980, 1, 1, 0, 0, 0)  # of files in archives, so that the same masks give the same bytes


def folder(
  layout: str,
  root: Path,
  video: segmented_video.SegmentedVideo,
  query: segmented_video.SegmentedQuery,
) -> Path:
  """Where the masks of an expression belong.

  Raises:
    InputError: the set has no benchmark, or a name of it leads out of the root.
  """
  if layout == "ref_youtube_vos":
    parts = ("Annotations", video.name, query.name)
  elif layout == "reason_vos":
    about = {"source": query.extra["set"]}
    parts = (label_sets.reason_vos_folder(about, video.name, query.instances[0]), query.name)
  elif layout in ("mevis", "revos", "ref_davis17"):
    parts = (video.name, query.name)
  else:
    raise InputError(f"{layout}: has no layout of submissions; it is for training alone")
  if not all(map(inner_path.is_inner, parts)):
    raise InputError(f"{layout}: {'/'.join(parts)!r:.90} is no place below the predictions")
  return root.joinpath(*parts)


def write(
  directory: Path,
  frames: Sequence[str],
  masks: Bool[np.ndarray, "frames height width"],
  *,
  value: int = MARKED,
) -> None:
  """Writes the masks of an expression into a new or existing directory.

  frames: their names without suffix.
  value: of a marked pixel, 1 to 255.

  Raises:
    InputError: the masks are more or fewer than the frames, or writing fails.
  """
  if len(masks) != len(frames):
    raise InputError(f"{directory}: {len(masks)} masks for {len(frames)} frames")
  write_labels(directory, frames, masks * np.uint8(value))


def write_labels(
  directory: Path,
  frames: Sequence[str],
  labels: UInt8[np.ndarray, "frames height width"],
  *,
  palette: bool = False,
) -> None:
  """Writes a PNG a frame. palette: with colours for the labels, as DAVIS's own files."""
  try:
    directory.mkdir(parents=True, exist_ok=True)
    for frame, values in zip(frames, labels, strict=True):
      image = Image.fromarray(values)
      if palette:
        image.putpalette(_davis_palette())
      with atomic.file(directory / f"{frame}.png") as partial:
        image.save(partial, "PNG")
  except OSError as error:
    raise InputError(f"{directory}: cannot be written ({error.strerror or error})") from error


def read_labels(
  directory: Path, frames: Sequence[str], size: tuple[int, int]
) -> UInt8[np.ndarray, "frames height width"]:
  """Reads a PNG a frame. Any value but 0 marks a pixel.

  size: (height, width) of the truth.

  Raises:
    InputError: a frame is missing, or is no grey or palette picture of this size.
  """
  found = np.empty((len(frames), *size), np.uint8)
  for place, frame in enumerate(frames):
    path = directory / f"{frame}.png"
    if not path.is_file():
      raise InputError(f"{path}: is missing; every frame of an expression needs a mask")
    labels = label_sets.read_labels(path)
    if labels.shape != size:
      raise InputError(
        f"{path}: is of {labels.shape} pixels (height, width), the truth of {size}; scale the "
        "prediction to the original frames"
      )
    found[place] = labels
  return found


def merge_davis(root: Path, output: Path, videos: Sequence[segmented_video.SegmentedVideo]) -> None:
  """Makes the labels of DAVIS's unsupervised protocol from the masks of single expressions.

  root: has <video>/<expression>/<frame>.png.
  output: gets anno_0 to anno_3, one for each annotator.
  """
  annotators = len(label_sets.ANNOTATORS)
  for video in videos:
    size = video.height, video.width
    for annotator in range(annotators):
      masks = np.stack(
        [
          read_labels(root / video.name / query.name, video.frames, size) > 0
          for query in video.queries[annotator::annotators]
        ]
      )
      frames = [masks[:, frame, None] for frame in range(len(video.frames))]
      labels = np.concatenate(
        [segmentation.merge_objects(each.astype(np.float32)) for each in frames]
      )
      write_labels(output / f"anno_{annotator}" / video.name, video.frames, labels, palette=True)


def pack(root: Path, archive: Path) -> int:
  """Writes all PNG files below a directory to a zip, by their paths below it.

  That is what the servers of MeViS and Ref-YouTube-VOS take. Returns the number of files.
  """
  files = sorted(path for path in root.rglob("*.png") if path.is_file())
  if not files:
    raise InputError(f"{root}: holds no PNG files")
  with atomic.file(archive) as partial, zipfile.ZipFile(partial, "w") as written:
    for path in files:
      if not inner_path.stays_inside(path, root):
        raise InputError(f"{path}: is a link to a file elsewhere; copy that file in its place")
      about = zipfile.ZipInfo(path.relative_to(root).as_posix(), _EPOCH)
      written.writestr(about, path.read_bytes())
  return len(files)


def _davis_palette() -> list[int]:
  """Colours of labels as in PASCAL VOC and DAVIS: bits of the label spread over the channels."""
  colours = []
  for label in range(256):
    channels = [0, 0, 0]
    for bit in range(8):
      for channel in range(3):
        channels[channel] |= (label >> channel & 1) << (7 - bit)
      label >>= 3
    colours += channels
  return colours
