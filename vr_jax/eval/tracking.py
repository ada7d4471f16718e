"""Follows what evaluated episodes found through their videos, and scores its masks.

A box belongs to the key frame's place in the frame store. From there it is followed, both ways,
through all stored frames of what is shown. J and F are means over those of them that are annotated.
An episode without a box has empty masks.
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

# By the place in the frame store; None where no pixel is marked.
_Masks = Mapping[int, run_length.RunLength | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Scene:
  """A video as it is tracked. Frames are places in the frame store.

  shown: all frames of what is shown.
  annotated: those of them that have masks -> the frame's index in the track.
  prompt: the key frame, and the box in pixels of the video; None if the episode found none.
  """

  clip: batches.Clip
  track: records.ObjectTrack
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
    result = []
    with console.progress("tracking", len(found)) as tick:
      for first in range(0, len(found), _TOGETHER):
        scenes = [_scene(*each) for each in found[first : first + _TOGETHER]]
        tracked = zip(scenes, self._track(scenes), strict=True)
        result += [self._score(scene, masks) for scene, masks in tracked]
        tick(len(result))
    return result

  def _track(self, scenes: Sequence[_Scene]) -> list[_Masks]:
    if self._segmenter is None:
      return [self._track_exactly(scene) for scene in scenes]
    return _track_with_sam2(self._segmenter, scenes)

  def _track_exactly(self, scene: _Scene) -> _Masks:
    if scene.prompt is None:
      return {}
    (key, box), video = scene.prompt, scene.clip.example.video
    frames = list(scene.annotated.values())
    objects = [self._masks.read(video, [name], frames) for name in self._masks.instances(video)]
    place = list(scene.annotated).index(key)
    found = exact_tracker.track(np.stack(objects), place, np.array(box))
    return {
      frame: run_length.encode(mask) for frame, mask in zip(scene.annotated, found, strict=True)
    }

  def _score(self, scene: _Scene, masks: _Masks) -> evaluated_episode.TrackedObject:
    track, scores = scene.track, []
    for frame, index in scene.annotated.items():
      truth = self._masks.read(scene.clip.example.video, track.instances, [index])
      found = run_length.decode(masks.get(frame), track.height, track.width)
      scores.append(segmentation.j_and_f(found[None], truth))
    shown = scene.clip.frame_indices.tolist()
    return evaluated_episode.TrackedObject(
      region_similarity=float(np.mean([each.j for each in scores])),
      boundary_f=float(np.mean([each.f for each in scores])),
      masks={index: masks.get(frame) for index, frame in enumerate(shown)},
    )


def _scene(clip: batches.Clip, found: grounding_lib.Grounding) -> _Scene:
  example, video = clip.example, clip.example.video
  track = example.object_track
  assert track is not None  # or there would be nothing to find
  times = clip.store.timestamps(video)
  shown = range(*sampling.shown_range(times, clip.store.ends(video), example.shown))
  prompt = None
  if found.key_frame is not None and found.box is not None:
    prompt = int(clip.frame_indices[found.key_frame]), found.box
  annotated = _annotated(track, {frame: float(times[frame]) for frame in shown})
  if not annotated:
    raise errors.InputError(
      f"{example.id}: field 'masks': has none of a frame that is stored; store the frames that are "
      "annotated (config.data.fps)"
    )
  return _Scene(clip=clip, track=track, shown=shown, annotated=annotated, prompt=prompt)


def _annotated(track: records.ObjectTrack, times: Mapping[int, float]) -> dict[int, int]:
  """The frames that have a mask, which is one of the same time -> its index in the track.

  times: of frames, in seconds.
  """
  found = frame_times.find(track.times, np.array([*times.values()]))
  return {frame: int(index) for frame, index in zip(times, found, strict=True) if index >= 0}


def _track_with_sam2(segmenter: sam2.Segmenter, scenes: Sequence[_Scene]) -> list[_Masks]:
  """Follows the boxes of all scenes that have one, at once.

  SAM2 gets the stored frames, which may be smaller than the video; masks are those of the video.
  """
  boxed = [index for index, scene in enumerate(scenes) if scene.prompt is not None]
  if not boxed:
    return [{} for _ in scenes]
  # The last one fills up, as another number of videos would be compiled again.
  numbers = [*boxed, *boxed[-1:] * (_TOGETHER - len(boxed))]
  followed = box_tracking.follow(
    segmenter,
    [_frames(scenes[number]) for number in numbers],
    [_prompt(scenes[number]) for number in numbers],
    sizes=[(scenes[n].track.height, scenes[n].track.width) for n in numbers],
  )
  found: list[_Masks] = [{} for _ in scenes]
  for number, masks in zip(boxed, followed, strict=False):
    found[number] = {scenes[number].shown[frame]: mask for frame, mask in masks.items()}
  return found


def _frames(scene: _Scene) -> sam2.LazyFrames:
  store, video, shown = scene.clip.store, scene.clip.example.video, scene.shown
  return sam2.LazyFrames(
    shape=(len(shown), *store.size(video), 3),
    read=lambda start, stop: store.read(video, np.array(shown[start:stop])),
  )


def _prompt(scene: _Scene) -> sam2.BoxPrompt:
  """The box in pixels of the stored frames."""
  assert scene.prompt is not None
  (key, box), track = scene.prompt, scene.track
  height, width = scene.clip.store.size(scene.clip.example.video)
  left, right = (min(side * width / track.width, float(width)) for side in box[::2])
  top, bottom = (min(side * height / track.height, float(height)) for side in box[1::2])
  return sam2.BoxPrompt(object=0, frame=scene.shown.index(key), box=(left, top, right, bottom))
