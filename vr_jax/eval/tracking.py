"""Follows, through its video, the object that an evaluated episode boxed, and scores the masks.

The box is in the key frame, which the episode chose. From there it is followed, both ways, through
all stored frames of the span that is shown; the exact tracker gives masks for the annotated ones
alone. J (region similarity) and F (accuracy of the boundary) are means over the annotated frames.
An episode without a box has empty masks, right where the object isn't visible either.

What the indices of a frame range over:

    stored     frames of the video in the frame store
    shown      stored frames of the span that is shown
    annotated  masks of the track
    clip       frames that the model saw
"""

from collections.abc import Mapping, Sequence
import dataclasses
from pathlib import Path

import numpy as np

from vr_jax import errors, frame_times, records, run_length
from vr_jax.data import batches, mask_store, sampling
from vr_jax.envs import grounding as grounding_lib
from vr_jax.eval import box_tracking, evaluated_episode, segmentation
from vr_jax.models import sam2
from vr_jax.train import console
from vr_jax.worlds import exact_tracker

EXACT = "exact"
_TOGETHER = 4  # episodes that SAM2 follows at once

# By the stored frame; None where no pixel is marked.
_Masks = Mapping[int, run_length.RunLength | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Target:
  """What is to be tracked in a video. Frames are stored ones.

  truth: the object that the query means.
  shown: all frames of the span that is shown.
  annotated: those of them that have masks -> the mask's index in the truth.
  prompt: the key frame, and the box in pixels of the video; None if the episode found none.
  """

  clip: batches.Clip
  truth: records.ObjectTrack
  shown: range
  annotated: Mapping[int, int]
  prompt: tuple[int, grounding_lib.Corners] | None


class Tracker:
  """Follows boxes with SAM2, or with the masks of simulated videos."""

  def __init__(self, name: str, shards: Path):
    """Loads weights and opens the masks.

    name: "exact", or the path of SAM2's weights.
    shards: the directory with the frames and masks of a run.

    Raises InputError if there are no weights or masks, or they are damaged.
    """
    self._masks = mask_store.MaskStore(shards / "masks")
    self._segmenter = None if name == EXACT else sam2.load(name)

  def follow(
    self, found: Sequence[tuple[batches.Clip, grounding_lib.Grounding]]
  ) -> list[evaluated_episode.TrackedObject]:
    """Follows what episodes found in their clips.

    Raises InputError if a frame or mask is damaged, or no frame has a mask.
    """
    targets = [_target(*each) for each in found]
    result = []
    with console.progress("tracking", len(found)) as tick:
      for first in range(0, len(found), _TOGETHER):
        some = targets[first : first + _TOGETHER]
        tracked = zip(some, self._track(some), strict=True)
        result += [self._score(target, masks) for target, masks in tracked]
        tick(len(result))
    return result

  def _track(self, targets: Sequence[_Target]) -> list[_Masks]:
    if self._segmenter is None:
      return [self._track_exactly(target) for target in targets]
    return _track_with_sam2(self._segmenter, targets)

  def _track_exactly(self, target: _Target) -> _Masks:
    """The masks in the annotated frames of the object that the box fits best.

    Simulated videos have a mask of every object for every stored frame.
    """
    if target.prompt is None:
      return {}
    (key, box), video = target.prompt, target.clip.example.video
    indices = list(target.annotated.values())
    objects = [self._masks.read(video, [name], indices) for name in self._masks.instances(video)]
    at = list(target.annotated).index(key)
    found = exact_tracker.track(np.stack(objects), at, np.array(box))
    return {
      stored: run_length.encode(mask) for stored, mask in zip(target.annotated, found, strict=True)
    }

  def _score(self, target: _Target, masks: _Masks) -> evaluated_episode.TrackedObject:
    truth, scores = target.truth, []
    for stored, index in target.annotated.items():
      true_mask = self._masks.read(target.clip.example.video, truth.instances, [index])
      mask = run_length.decode(masks.get(stored), truth.height, truth.width)
      scores.append(segmentation.j_and_f(mask[None], true_mask))
    in_clip = target.clip.frame_indices.tolist()
    return evaluated_episode.TrackedObject(
      region_similarity=float(np.mean([each.j for each in scores])),
      boundary_f=float(np.mean([each.f for each in scores])),
      masks={clip_index: masks.get(stored) for clip_index, stored in enumerate(in_clip)},
    )


def _target(clip: batches.Clip, grounding: grounding_lib.Grounding) -> _Target:
  example, video = clip.example, clip.example.video
  truth = example.object_track
  assert truth is not None  # or the environment would not have found anything
  times = clip.store.timestamps(video)
  shown = range(*sampling.shown_range(times, clip.store.ends(video), example.shown))
  prompt = None
  if grounding.key_frame is not None and grounding.box is not None:
    prompt = int(clip.frame_indices[grounding.key_frame]), grounding.box
  annotated = _annotated(truth, {stored: float(times[stored]) for stored in shown})
  if not annotated:
    raise errors.InputError(
      f"{example.id}: field 'masks': has none of a frame that is stored; store the frames that are "
      "annotated (config.data.fps)"
    )
  return _Target(clip=clip, truth=truth, shown=shown, annotated=annotated, prompt=prompt)


def _annotated(truth: records.ObjectTrack, times: Mapping[int, float]) -> dict[int, int]:
  """Maps stored frames to the index of the mask at the same time; those without one are left out.

  times: of stored frames, in seconds.
  """
  found = frame_times.find(truth.times, np.array([*times.values()]))
  return {stored: int(index) for stored, index in zip(times, found, strict=True) if index >= 0}


def _track_with_sam2(segmenter: sam2.Segmenter, targets: Sequence[_Target]) -> list[_Masks]:
  """Follows the boxes of all targets that have one, at once.

  SAM2 gets the stored frames, which may be smaller than the video; masks are those of the video.
  """
  masks: list[_Masks] = [{} for _ in targets]
  boxed = [number for number, target in enumerate(targets) if target.prompt is not None]
  if not boxed:
    return masks
  # The last one again, up to the usual number: SAM2 would be compiled anew for another.
  tracked = [targets[number] for number in [*boxed, *boxed[-1:] * (_TOGETHER - len(boxed))]]
  followed = box_tracking.follow(
    segmenter,
    [_frames(target) for target in tracked],
    [_prompt(target) for target in tracked],
    sizes=[(target.truth.height, target.truth.width) for target in tracked],
  )
  for number, of_shown in zip(boxed, followed[: len(boxed)], strict=True):
    masks[number] = {targets[number].shown[index]: mask for index, mask in of_shown.items()}
  return masks


def _frames(target: _Target) -> sam2.LazyFrames:
  store, video, shown = target.clip.store, target.clip.example.video, target.shown
  return sam2.LazyFrames(
    shape=(len(shown), *store.size(video), 3),
    read=lambda start, stop: store.read(video, np.array(shown[start:stop])),
  )


def _prompt(target: _Target) -> sam2.BoxPrompt:
  """The box, (left, top, right, bottom), in pixels of the stored frames."""
  assert target.prompt is not None
  (key, box), truth = target.prompt, target.truth
  height, width = target.clip.store.size(target.clip.example.video)
  left, right = (min(x * width / truth.width, float(width)) for x in box[::2])
  top, bottom = (min(y * height / truth.height, float(height)) for y in box[1::2])
  return sam2.BoxPrompt(object=0, frame=target.shown.index(key), box=(left, top, right, bottom))
