"""The public face of the tracker: a model with its weights, and masks of objects over a video."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import pathlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, DTypeLike, Float, Int, UInt8
import numpy as np

from vr_jax import errors
from vr_jax.models.sam2 import checkpoint, memory, tracker
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
  tracks = _prepare(segmenter, videos, prompts)
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
  frames: prompts_lib.Frames,
  prompts: Sequence[prompts_lib.Prompt],
  *,
  fresh_reverse: bool = False,
  on_progress: Progress | None = None,
  chunk: int = CHUNK,
) -> Iterator[MaskChunk]:
  """Like `track`, some frames at a time, so that memory does not grow with the video.

  The first prompted frame comes again in the backward pass, if there is one; the later masks count.
  """
  tracks = _prepare(segmenter, [frames], [prompts])
  return _run(segmenter, tracks, fresh_reverse, on_progress, chunk)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Track:
  """A video and its prompts. prompted: ascending frames of each object."""

  frames: prompts_lib.Frames
  inputs: list[prompts_lib.ObjectInput]
  objects: tuple[int, ...]
  prompted: tuple[tuple[int, ...], ...]

  @property
  def start(self) -> int:
    return min(each[0] for each in self.prompted)


def _prepare(
  segmenter: Segmenter,
  videos: Sequence[prompts_lib.Frames],
  prompts: Sequence[Sequence[prompts_lib.Prompt]],
) -> list[_Track]:
  if not videos or len(videos) != len(prompts):
    raise errors.InputError(f"videos: {len(videos)}, with {len(prompts)} lists of prompts")
  tracks = []
  for frames, given in zip(videos, prompts, strict=True):
    prompts_lib.check_frames(frames)
    inputs = prompts_lib.gather(given, frames.shape, segmenter.config.image_size)
    objects = tuple(sorted({each.object for each in inputs}))
    prompted = tuple(tuple(i.frame for i in inputs if i.object == each) for each in objects)
    tracks.append(_Track(frames=frames, inputs=inputs, objects=objects, prompted=prompted))
  return tracks


def _run(
  segmenter: Segmenter,
  tracks: Sequence[_Track],
  fresh_reverse: bool,
  on_progress: Progress | None,
  chunk: int,
) -> Iterator[MaskChunk]:
  """Both passes over all videos. Each chunk is read while the device computes the next one."""
  if chunk < 1:
    raise errors.InputError(f"chunk: is {chunk}, must be at least 1")
  config = segmenter.config
  most_objects = max(len(t.objects) for t in tracks)
  most_prompted = max(len(frames) for t in tracks for frames in t.prompted)
  prompted = _look_at_prompts(segmenter, tracks, most_objects, most_prompted)
  passes = [memory.passes(t.start, t.frames.shape[0], fresh_reverse=fresh_reverse) for t in tracks]
  total = sum(len(one.frames) for each in passes for one in each)
  ring = tracker.empty_ring(config, len(tracks) * most_objects, prompted.pointer.dtype)
  done, waiting = 0, []
  for number in range(max(map(len, passes))):
    # A video without a backward pass waits.
    now = [each[number] if number < len(each) else None for each in passes]
    steps = max(len(one.frames) for one in now if one is not None)
    steps_padded = -(-steps // chunk) * chunk if steps > chunk else steps
    plan = memory.join(
      [
        memory.plan(
          one or memory.Pass(range(0), 1, 0, 0),
          t.prompted,
          t.frames.shape[0],
          config,
          most_prompted=most_prompted,
        )
        for t, one in zip(tracks, now, strict=True)
      ],
      config,
      objects=most_objects,
      steps=steps_padded,
    )
    for begin in range(0, steps, chunk):
      size = min(chunk, steps_padded)
      here = [range(0) if one is None else one.frames[begin : begin + size] for one in now]
      pixels = _pixels(tracks, here, config.image_size, size)
      ring, logits, scores = tracker.follow(
        segmenter.params, config, pixels, memory.cut(plan, begin, begin + size), prompted, ring
      )
      found = _resize(tracks, here, logits, scores, most_objects)
      for part in waiting:
        yield _fetch(part)
        done += len(part.frames)
        if on_progress is not None:
          on_progress(done, total)
      waiting = found
  for part in waiting:
    yield _fetch(part)
    done += len(part.frames)
    if on_progress is not None:
      on_progress(done, total)


def _pixels(
  tracks: Sequence[_Track], here: Sequence[range], side: int, size: int
) -> UInt8[Array, "steps videos side side 3"]:
  """The frames of a chunk, resized; where a video has none, black."""
  columns = []
  for t, indices in zip(tracks, here, strict=True):
    padded = np.zeros((size, *t.frames.shape[1:]), np.uint8)
    if indices:
      low, high = min(indices), max(indices) + 1
      read = np.asarray(t.frames[low:high])
      if read.shape != (high - low, *t.frames.shape[1:]) or read.dtype != np.uint8:
        raise errors.InputError(
          f"frames {low} to {high - 1}: {read.shape} of {read.dtype}, expected "
          f"{(high - low, *t.frames.shape[1:])} of uint8"
        )
      padded[: len(indices)] = read[:: indices.step]
    columns.append(tracker.resize_frames(padded, side))
  return jnp.stack(columns, axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _Waiting:
  """A MaskChunk that the device still computes."""

  video: int
  objects: tuple[int, ...]
  frames: range
  masks: Array
  scores: Array


def _resize(
  tracks: Sequence[_Track],
  here: Sequence[range],
  logits: Array,
  scores: Array,
  most_objects: int,
) -> list[_Waiting]:
  parts = []
  for video, (t, indices) in enumerate(zip(tracks, here, strict=True)):
    if indices:
      own = slice(video * most_objects, video * most_objects + len(t.objects))
      height, width = t.frames.shape[1:3]
      parts.append(
        _Waiting(
          video=video,
          objects=t.objects,
          frames=indices,
          masks=tracker.masks_at(logits[:, own], height, width),
          scores=scores[:, own],
        )
      )
  return parts


def _fetch(part: _Waiting) -> MaskChunk:
  count = len(part.frames)
  return MaskChunk(
    video=part.video,
    objects=part.objects,
    frames=np.array(part.frames),
    masks=np.asarray(part.masks)[:, :count],
    object_scores=np.asarray(part.scores)[:count].T,
  )


def _look_at_prompts(
  segmenter: Segmenter, tracks: Sequence[_Track], most_objects: int, most_prompted: int
) -> tracker.Prompted:
  """Finds all objects on the frames where they are prompted; the rest is padding."""
  config, params = segmenter.config, segmenter.params
  rows, parts = [], []
  for video, t in enumerate(tracks):
    for frame in sorted({each.frame for each in t.inputs}):
      pixels = tracker.resize_frames(np.asarray(t.frames[frame : frame + 1]), config.image_size)
      inputs = [each for each in t.inputs if each.frame == frame]
      by_points = [each for each in inputs if each.mask is None]
      by_mask = [each for each in inputs if each.mask is not None]
      if by_points:
        parts.append(tracker.prompt_with_points(params, config, pixels, *_pad_points(by_points)))
      if by_mask:
        masks = np.stack([each.mask for each in by_mask if each.mask is not None])
        parts.append(tracker.prompt_with_masks(params, config, pixels, masks))
      for each in (*by_points, *by_mask):
        number = t.objects.index(each.object)
        rows.append((video * most_objects + number, t.prompted[number].index(frame)))
  found = jax.tree.map(lambda *x: jnp.concatenate(x), *parts)
  objects, slots = np.array(rows).T
  shape = (len(tracks) * most_objects, most_prompted)

  def place(x: Array) -> Array:
    return jnp.zeros((*shape, *x.shape[1:]), x.dtype).at[objects, slots].set(x)

  return tracker.Prompted(*map(place, found))


def _pad_points(
  inputs: Sequence[prompts_lib.ObjectInput],
) -> tuple[Float[np.ndarray, "objects points 2"], Int[np.ndarray, "objects points"]]:
  """Points of all objects, padded to an even number of them."""
  most = max(len(each.points) for each in inputs)
  most += most % 2
  points = np.zeros((len(inputs), most, 2), np.float32)
  labels = np.full((len(inputs), most), prompts_lib.PADDING, np.int32)
  for row, each in enumerate(inputs):
    points[row, : len(each.points)] = each.points
    labels[row, : len(each.labels)] = each.labels
  return points, labels
