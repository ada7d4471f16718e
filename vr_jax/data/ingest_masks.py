"""What ingestion does for queries whose answer is a mask: their frames, mask files and sizes."""

from collections.abc import Sequence
from pathlib import Path

from vr_jax import records
from vr_jax.data import annotations, frame_store, image_folder, mask_files
from vr_jax.errors import InputError


def without_conflicts(
  questions: Sequence[annotations.Annotation], on_bad: annotations.BadRecord
) -> list[annotations.Annotation]:
  """Leaves out records that name other masks or another frame rate than an earlier one of a video.

  on_bad: called with file:line and the error of each; may raise the error.
  """
  first: dict[str, annotations.Annotation] = {}
  kept = []
  for question in questions:
    other = first.setdefault(question.example.video, question)
    try:
      _check_same(question, other)
    except InputError as error:
      on_bad(question.where, error)
    else:
      kept.append(question)
  return kept


def _check_same(question: annotations.Annotation, other: annotations.Annotation) -> None:
  mine, first = question.reference, other.reference
  for field in ("frame_rate", "masks"):
    if mine and first and (here := getattr(mine, field)) != (there := getattr(first, field)):
      raise InputError(
        f"{question.where}: field {field!r}: is {here} here and {there} at {other.where}, of the "
        f"same video {question.example.video!r}; one of them is wrong"
      )


def folder_frames(
  questions: Sequence[annotations.Annotation], files: Sequence[str]
) -> dict[str, image_folder.FolderFrames]:
  """The frames of each video that is a folder of pictures.

  files: names of all video files and pictures.
  """
  pictures = image_folder.find_all(files)
  asked = {q.example.video: q for q in questions if q.reference and q.example.video in pictures}
  found = {}
  for video, question in asked.items():
    assert question.reference is not None
    frames = mask_files.folder_frames(question.reference, pictures[video], question.where)
    if frames is not None:
      found[video] = frames
  return found


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
