"""Tracking over whole videos: the host's loop, which feeds frames to the device, chunk by chunk."""

from collections.abc import Iterator, Sequence
import dataclasses
import itertools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt8
import numpy as np

from vr_jax import errors
from vr_jax.models.sam2 import config as config_lib
from vr_jax.models.sam2 import memory, tracker
from vr_jax.models.sam2 import prompts as prompts_lib


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Track:
  """A video and its prompts.

  inputs: in order of frames, then of objects.
  objects: their ids, ascending.
  prompted: the frames on which each of them is prompted, ascending.
  """

  frames: prompts_lib.Frames
  inputs: list[prompts_lib.ObjectInput]
  objects: tuple[int, ...]
  prompted: tuple[tuple[int, ...], ...]

  @property
  def start(self) -> int:
    """The earliest prompted frame."""
    return min(each[0] for each in self.prompted)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LogitChunk:
  """Logits of masks of some frames of a video, on the device; a quarter of the input's side.

  objects: their ids.
  frames: indices in the video, descending in the backward pass; steps after the last one are
    padding. Both passes may have the first prompted frame: the later one counts.
  """

  video: int
  objects: tuple[int, ...]
  frames: range
  logits: Float[Array, "steps objects mask_side mask_side"]
  scores: Float[Array, "steps objects"]


def prepare(
  config: config_lib.Sam2Config,
  videos: Sequence[prompts_lib.Frames],
  prompts: Sequence[Sequence[prompts_lib.Prompt]],
) -> list[Track]:
  """Checks videos and their prompts. Raises InputError."""
  if not videos or len(videos) != len(prompts):
    raise errors.InputError(f"videos: {len(videos)}, with {len(prompts)} lists of prompts")
  tracks = []
  for frames, given in zip(videos, prompts, strict=True):
    prompts_lib.check_frames(frames)
    inputs = prompts_lib.gather(given, frames.shape, config.image_size)
    objects = tuple(sorted({each.object for each in inputs}))
    prompted = tuple(tuple(i.frame for i in inputs if i.object == each) for each in objects)
    tracks.append(Track(frames=frames, inputs=inputs, objects=objects, prompted=prompted))
  return tracks


def passes(tracks: Sequence[Track], *, fresh_reverse: bool) -> list[list[memory.Pass]]:
  """The passes over each video."""
  return [memory.passes(t.start, t.frames.shape[0], fresh_reverse=fresh_reverse) for t in tracks]


def run(
  params: tracker.Params,
  config: config_lib.Sam2Config,
  tracks: Sequence[Track],
  passes: Sequence[Sequence[memory.Pass]],
  *,
  chunk: int,
) -> Iterator[LogitChunk]:
  """Runs the passes over all videos at once, `chunk` frames of each at a time.

  Raises InputError, once it is iterated, if `chunk` is below 1, or if frames have another shape or
  dtype than the video has said.
  """
  if chunk < 1:
    raise errors.InputError(f"chunk: is {chunk}, must be at least 1")
  most_objects = max(len(t.objects) for t in tracks)
  most_prompted = max(len(frames) for t in tracks for frames in t.prompted)
  prompted = look_at_prompts(params, config, tracks, most_objects, most_prompted)
  ring = tracker.empty_ring(config, len(tracks) * most_objects, prompted.pointer.dtype)
  # A video without a backward pass is padding while the others have theirs.
  for now in itertools.zip_longest(*passes, fillvalue=memory.NO_PASS):
    steps = max(len(one.frames) for one in now)
    size = min(chunk, steps)
    plans = [
      memory.plan(one, t.prompted, t.frames.shape[0], config, most_prompted=most_prompted)
      for t, one in zip(tracks, now, strict=True)
    ]
    plan = memory.join(plans, config, objects=most_objects, steps=-(-steps // size) * size)
    for begin in range(0, steps, size):
      here = [one.frames[begin : begin + size] for one in now]
      pixels = _read(tracks, here, config.image_size, size)
      part = memory.slice_plan(plan, begin, begin + size)
      ring, logits, scores = tracker.follow(params, config, pixels, part, prompted, ring)
      for video, (t, frames) in enumerate(zip(tracks, here, strict=True)):
        own = slice(video * most_objects, video * most_objects + len(t.objects))
        if frames:
          yield LogitChunk(
            video=video,
            objects=t.objects,
            frames=frames,
            logits=logits[:, own],
            scores=scores[:, own],
          )


def _read(
  tracks: Sequence[Track], here: Sequence[range], side: int, size: int
) -> UInt8[Array, "steps videos side side 3"]:
  """The frames of a chunk, resized; where a video has none, black."""
  columns = []
  for t, indices in zip(tracks, here, strict=True):
    padded = np.zeros((size, *t.frames.shape[1:]), np.uint8)
    if indices:
      read = _frames(t, min(indices), max(indices) + 1)
      padded[: len(indices)] = read[:: indices.step]
    columns.append(tracker.resize_frames(padded, side))
  return jnp.stack(columns, axis=1)


def _frames(t: Track, start: int, stop: int) -> UInt8[np.ndarray, "frames height width 3"]:
  """Reads frames; a reader may return another shape or dtype than it has said."""
  read, shape = np.asarray(t.frames[start:stop]), (stop - start, *t.frames.shape[1:])
  if read.shape != shape or read.dtype != np.uint8:
    raise errors.InputError(
      f"frames {start} to {stop - 1}: {read.shape} of {read.dtype}, expected {shape} of uint8"
    )
  return read


def look_at_prompts(
  params: tracker.Params,
  config: config_lib.Sam2Config,
  tracks: Sequence[Track],
  most_objects: int,
  most_prompted: int,
) -> tracker.Prompted:
  """Finds all objects on the frames where they are prompted; unused slots are zeros."""
  rows, parts = [], []
  for video, t in enumerate(tracks):
    for frame in sorted({each.frame for each in t.inputs}):
      pixels = tracker.resize_frames(_frames(t, frame, frame + 1), config.image_size)
      inputs = [each for each in t.inputs if each.frame == frame]
      by_points = [each for each in inputs if each.mask is None]
      by_mask = [each for each in inputs if each.mask is not None]
      if by_points:
        points, labels = _pad_points(by_points)
        parts.append(tracker.prompt_with_points(params, config, pixels, points, labels))
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
  """Points of all objects, padded to an even number, so that fewer shapes are compiled."""
  most = max(len(each.points) for each in inputs)
  most += most % 2
  points = np.zeros((len(inputs), most, 2), np.float32)
  labels = np.full((len(inputs), most), prompts_lib.PADDING, np.int32)
  for row, each in enumerate(inputs):
    points[row, : len(each.points)] = each.points
    labels[row, : len(each.labels)] = each.labels
  return points, labels
