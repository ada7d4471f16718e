"""What ingestion does for queries whose answer is a mask: their frames, mask files and sizes."""

from collections.abc import Sequence
from pathlib import Path

from vr_jax import records
from vr_jax.data import annotations, frame_store, image_folder, mask_files
from vr_jax.errors import InputError


def folder_frames(
  questions: Sequence[annotations.Annotation], files: Sequence[str]
) -> dict[str, image_folder.FolderFrames]:
  """The frames of each video that is a folder of pictures.

  files: names of all video files and pictures.

  Raises InputError if two records about a video name other masks or frame rates.
  """
  pictures = image_folder.find_all(files)
  first: dict[str, annotations.Annotation] = {}
  found = {}
  for question in questions:
    video, mine = question.example.video, question.reference
    other = first.setdefault(video, question)
    if mine is None or other.reference is None:
      continue
    for field in ("frame_rate", "masks"):
      if (here := getattr(mine, field)) != (there := getattr(other.reference, field)):
        raise InputError(
          f"{question.where}: field {field!r}: is {here} here and {there} at {other.where}, of the "
          f"same video {video!r}; one of them is wrong"
        )
    if video in pictures and video not in found:
      found[video] = mask_files.folder_frames(mine, pictures[video], question.where)
  return {video: frames for video, frames in found.items() if frames}


def mask_files_of(
  questions: Sequence[annotations.Annotation],
  kept: Sequence[records.Example],
  files: Sequence[str],
) -> dict[str, tuple[Path, tuple[float, ...]]]:
  """The mask file of each video that kept queries are about, and the times of its frames."""
  videos, folders = {example.video for example in kept}, image_folder.find_all(files)
  references = {q.example.video: (q.reference, q.where) for q in questions if q.reference}
  return {
    video: (
      reference.masks,
      mask_files.annotated_times(reference, folders.get(video), where),
    )
    for video, (reference, where) in references.items()
    if video in videos
  }


def check_size(example: records.Example, store: frame_store.FrameStore, where: str) -> None:
  """Raises InputError if the masks of a query are not of the size of its video's frames."""
  track, size = example.object_track, store.original_size(example.video)
  if track and size and (track.height, track.width) != size:
    raise InputError(
      f"{where}: field 'masks': they are of {track.width} x {track.height} pixels, the frames of "
      f"{example.video!r} of {size[1]} x {size[0]}; give masks of the frames' size"
    )
