"""The public face of the tracker: a model with its weights, and masks of objects over a video."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import pathlib

from jaxtyping import Array, Bool, DTypeLike, Float, Int
import numpy as np

from vr_jax.models.sam2 import checkpoint, propagation, tracker
from vr_jax.models.sam2 import config as config_lib
from vr_jax.models.sam2 import prompts as prompts_lib

Progress = Callable[[int, int], None]  # frames done, frames to do
CHUNK = 8  # frames that are tracked by one call of the device


@dataclasses.dataclass(frozen=True, eq=False)
class Segmenter:
  """A SAM2 model. params: arrays by the names of transformers' Sam2VideoModel (parameters.py)."""

  config: config_lib.Sam2Config
  params: dict[str, Array]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrackedMasks:
  """Masks of all objects on all frames.

  objects: their numbers in the prompts, ascending; the order of the first axis.
  masks: at the size of the video.
  object_scores: logits that the object is visible; 0 or less where its mask is empty.
  """

  objects: tuple[int, ...]
  masks: Bool[np.ndarray, "objects frames height width"]
  object_scores: Float[np.ndarray, "objects frames"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MaskChunk:
  """Masks of some frames.

  video: index among the videos that are tracked together.
  frames: indices in the video, descending in the backward pass.
  """

  video: int
  objects: tuple[int, ...]
  frames: Int[np.ndarray, "frames"]
  masks: Bool[np.ndarray, "objects frames height width"]
  object_scores: Float[np.ndarray, "objects frames"]


def load(path: str | pathlib.Path, dtype: DTypeLike = "float32") -> Segmenter:
  """Reads a directory or a .safetensors file with transformers' or Facebook's names.

  Raises InputError on absent, foreign, damaged or pickled weights; it says where to get them.
  """
  return Segmenter(*checkpoint.load(path, dtype))


def save(segmenter: Segmenter, path: str | pathlib.Path) -> None:
  """Writes a directory that `load` and transformers read. Raises InputError if it exists."""
  checkpoint.save(segmenter.config, segmenter.params, path)


def track(
  segmenter: Segmenter,
  frames: prompts_lib.Frames,
  prompts: Sequence[prompts_lib.Prompt],
  *,
  fresh_reverse: bool = False,
  on_progress: Progress | None = None,
  chunk: int = CHUNK,
) -> TrackedMasks:
  """Tracks the prompted objects through a video.

  Forwards from the earliest prompted frame to the end, then backwards from it to the start. The
  backward pass attends to the forward pass's frames just after its start, as the reference does.

  frames: uint8 RGB, [frames, height, width, 3]: an array, or `LazyFrames`.
  fresh_reverse: the backward pass knows the prompted frames alone.
  on_progress: called with the number of frames done and to do.
  chunk: frames that are on the device at once.

  Raises InputError on frames or prompts that are wrong.
  """
  return track_videos(
    segmenter,
    [frames],
    [prompts],
    fresh_reverse=fresh_reverse,
    on_progress=on_progress,
    chunk=chunk,
  )[0]


def track_videos(
  segmenter: Segmenter,
  videos: Sequence[prompts_lib.Frames],
  prompts: Sequence[Sequence[prompts_lib.Prompt]],
  *,
  fresh_reverse: bool = False,
  on_progress: Progress | None = None,
  chunk: int = CHUNK,
) -> list[TrackedMasks]:
  """Like `track` for several videos at once, of any lengths and sizes, each with its prompts."""
  tracks = propagation.prepare(segmenter.config, videos, prompts)
  masks = [np.zeros((len(t.objects), *t.frames.shape[:3]), bool) for t in tracks]
  scores = [np.zeros(m.shape[:2], np.float32) for m in masks]
  for part in _run(segmenter, tracks, fresh_reverse, on_progress, chunk):
    masks[part.video][:, part.frames] = part.masks
    scores[part.video][:, part.frames] = part.object_scores
  return [
    TrackedMasks(objects=t.objects, masks=m, object_scores=s)
    for t, m, s in zip(tracks, masks, scores, strict=True)
  ]


def track_chunks(
  segmenter: Segmenter,
  videos: Sequence[prompts_lib.Frames],
  prompts: Sequence[Sequence[prompts_lib.Prompt]],
  *,
  sizes: Sequence[tuple[int, int]] | None = None,
  fresh_reverse: bool = False,
  on_progress: Progress | None = None,
  chunk: int = CHUNK,
) -> Iterator[MaskChunk]:
  """Like `track_videos`, some frames at a time, so that memory does not grow with the videos.

  The first prompted frame comes again in the backward pass, if there is one; the later masks count.

  sizes: height and width of each video's masks; None: those of its frames.
  """
  tracks = propagation.prepare(segmenter.config, videos, prompts)
  return _run(segmenter, tracks, fresh_reverse, on_progress, chunk, sizes)


def _run(
  segmenter: Segmenter,
  tracks: Sequence[propagation.Track],
  fresh_reverse: bool,
  on_progress: Progress | None,
  chunk: int,
  sizes: Sequence[tuple[int, int]] | None = None,
) -> Iterator[MaskChunk]:
  """Both passes over all videos. Masks are fetched while the device computes the next ones."""
  passes = propagation.passes(tracks, fresh_reverse=fresh_reverse)
  total = sum(len(one.frames) for each in passes for one in each)
  done, waiting = 0, []
  found = propagation.run(segmenter.params, segmenter.config, tracks, passes, chunk=chunk)
  for part in found:
    height, width = tracks[part.video].frames.shape[1:3] if sizes is None else sizes[part.video]
    waiting.append((part, tracker.masks_at(part.logits, height, width)))
    if len(waiting) > len(tracks):
      yield _fetch(*waiting.pop(0))
      done += len(part.frames)
      if on_progress is not None:
        on_progress(done, total)
  for part, masks in waiting:
    yield _fetch(part, masks)
  if on_progress is not None:
    on_progress(total, total)


def _fetch(part: propagation.LogitChunk, masks: Array) -> MaskChunk:
  count = len(part.frames)
  return MaskChunk(
    video=part.video,
    objects=part.objects,
    frames=np.array(part.frames),
    masks=np.asarray(masks)[:, :count],
    object_scores=np.asarray(part.scores)[:count].T,
  )
