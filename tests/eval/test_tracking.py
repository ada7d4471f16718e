"""Boxes that episodes found are followed from their own frame, and their masks scored."""

import json

import numpy as np
import pytest

from tests.train import nano
from vr_jax import errors, run_length
from vr_jax.data import batches, examples, frame_store, ingest, mask_store, sampling
from vr_jax.envs import grounding
from vr_jax.eval import segmentation, tracking
from vr_jax.models import sam2
from vr_jax.models.sam2 import parameters
from vr_jax.train import config_checks, model_checks
from vr_jax.worlds import config as config_lib
from vr_jax.worlds import write

WORLD = config_lib.WorldConfig(
  height=64,
  width=96,
  seconds=8.0,
  shown=8.0,
  fps=4,
  behaviours=config_lib.TRACK_BEHAVIOURS,
  families=("described",),
  objects_min=2,
  objects_max=2,
  large_cells=1,
)
RULE = sampling.UniformRule(frames=4)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
  """Clips of 4 of 16 stored frames, which are half as large as the video, and the shards.

  The last one's query is about an object that its video, the first one, never shows.
  """
  folder = tmp_path_factory.mktemp("tracking")
  write.write_dataset(folder / "raw", WORLD, videos=2, seed=0, questions_per_video=2)
  with (folder / "raw" / "annotations.jsonl").open("r+", encoding="utf-8") as file:
    absent = {**json.loads(file.readline()), "id": "absent", "instances": [], "steps": []}
    file.seek(0, 2)
    file.write(json.dumps({**absent, "relevant": [], "question": "the blue whale"}) + "\n")
  settings = ingest.IngestConfig(
    fps=2.0, max_side=48, test_fraction=0.0, validation_fraction=0.0, rule=RULE
  )
  raw = folder / "raw"
  ingest.ingest(raw / "videos", raw / "annotations.jsonl", folder / "shards", settings)
  source = examples.ExampleSource(folder / "shards", "train")
  store = frame_store.FrameStore(folder / "shards" / "frames")
  clips = [batches.select_clip(source[index], store, RULE) for index in range(len(source))]
  return clips, folder / "shards"


def true_box(clip, frame):
  (box,) = grounding.boxes_at(clip.example, clip.timestamps[[frame]]).tolist()
  return tuple(box)


def found(clip, frame, box):
  return clip, grounding.Grounding(key_frame=frame, box=box)


def truth(clip, shards, times):
  """The true masks at some times."""
  track = clip.example.object_track
  frames = [int(np.abs(track.times - time).argmin()) for time in times]
  masks = mask_store.MaskStore(shards / "masks")
  return masks.read(clip.example.video, track.instances, frames)


def test_true_boxes_give_the_true_masks_and_others_give_less(stored):
  clips, shards = stored
  tracker = tracking.Tracker("exact", shards)
  right = tracker.follow(
    [found(clip, frame, true_box(clip, frame)) for clip in clips[:-1] for frame in range(4)]
  )
  for each in right:
    assert each.metrics == {"j_and_f": 1, "region_similarity": 1, "boundary_f": 1}
  masks = truth(clips[0], shards, clips[0].timestamps)
  assert {i: run_length.decode(m, 64, 96).tolist() for i, m in right[0].masks.items()} == {
    index: mask.tolist() for index, mask in enumerate(masks)
  }
  nothing, other, beside = tracker.follow(
    [
      (clips[0], grounding.Grounding(key_frame=1, problem="json")),
      found(clips[0], 1, true_box(clips[1], 1)),  # the video's other object
      found(clips[0], 1, (0.0, 0.0, 1.0, 1.0)),
    ]
  )
  assert clips[0].example.video == clips[1].example.video
  # The object is visible in all frames, so empty masks are wrong in all of them.
  for each in (nothing, beside):
    assert set(each.metrics.values()) == {0}
    assert set(each.masks.values()) == {None}
  assert other.metrics["j_and_f"] < 0.1
  assert all(other.masks.values())


def test_an_object_that_never_appears_is_right_without_a_mask_and_wrong_with_one(stored):
  clips, shards = stored
  absent = clips[-1]
  assert np.isnan(absent.example.object_track.boxes).all()
  nothing, other, beside = tracking.Tracker("exact", shards).follow(
    [
      (absent, grounding.Grounding(key_frame=1, problem="turns")),
      found(absent, 1, true_box(clips[1], 1)),  # of an object that all frames show
      found(absent, 1, (0.0, 0.0, 1.0, 1.0)),  # a box of no object, so that no mask follows
    ]
  )
  # DAVIS' rule: two empty masks are alike, an empty one and another have nothing in common.
  for each in (nothing, beside):
    assert each.metrics == {"j_and_f": 1, "region_similarity": 1, "boundary_f": 1}
    assert set(each.masks.values()) == {None}
  assert other.metrics == {"j_and_f": 0, "region_similarity": 0, "boundary_f": 0}
  assert all(other.masks.values())


def test_sam2_starts_at_the_frame_the_box_belongs_to_and_masks_are_of_the_videos_size(
  stored, tmp_path, monkeypatch
):
  clips, shards = stored
  config = sam2.smallest(64)
  sam2.save(sam2.Segmenter(config, parameters.initialise(config, 0)), tmp_path / "weights")
  track, calls, masks = sam2.track_chunks, [], np.zeros((16, 64, 96), bool)

  def remember(segmenter, videos, prompts, **options):
    calls.append((videos, prompts))
    for chunk in track(segmenter, videos, prompts, **options):
      if chunk.video == 0:
        masks[chunk.frames] = chunk.masks[0]
      yield chunk

  monkeypatch.setattr(tracking.sam2, "track_chunks", remember)
  tracker = tracking.Tracker(str(tmp_path / "weights"), shards)
  box = true_box(clips[1], 2)
  no_box = grounding.Grounding(problem="json")
  (empty, tracked, absent) = tracker.follow(
    [(clips[0], no_box), found(clips[1], 2, box), (clips[-1], no_box)]
  )
  ((videos, prompts),) = calls
  assert {prompt[0].frame for prompt in prompts} == {int(clips[1].frame_indices[2])}
  assert {prompt[0].box for prompt in prompts} == {tuple(side / 2 for side in box)}
  store = clips[1].store
  np.testing.assert_array_equal(videos[0][3:5], store.read(clips[1].example.video, [3, 4]))
  assert videos[0].shape == (16, 32, 48, 3)
  assert set(empty.metrics.values()) == {0}
  assert set(absent.metrics.values()) == {1}  # an object that is never there
  # The metrics are those of what SAM2 gives for the stored frames, at the size of the video.
  times = store.timestamps(clips[1].example.video)
  expected = segmentation.j_and_f(masks, truth(clips[1], shards, times))
  assert tracked.region_similarity == pytest.approx(expected.j)
  assert tracked.boundary_f == pytest.approx(expected.f)
  for index, frame in enumerate(clips[1].frame_indices):
    np.testing.assert_array_equal(run_length.decode(tracked.masks[index], 64, 96), masks[frame])


def test_a_mask_of_another_time_is_no_mask_of_a_frame(stored):
  clip = stored[0][0]
  track = clip.example.object_track
  frames = {3: 0.75, 4: 1.1, 5: 1.25 + 5e-5}
  assert tracking._annotated(track, frames) == {3: 3, 5: 5}
  late = examples.dataclasses.replace(track, times=track.times + 0.1)
  with pytest.raises(errors.InputError, match=r"'masks': has none of a frame that is stored"):
    tracking._target(
      examples.dataclasses.replace(
        clip, example=examples.dataclasses.replace(clip.example, object_track=late)
      ),
      grounding.Grounding(problem="json"),
    )


@pytest.mark.parametrize(
  ("recipe", "changes", "complaint"),
  [
    ("moss_chatv", {"eval.tracker": "exact"}, "moss_chatv give no boxes to follow"),
    (
      "revseg",
      {
        "eval.tracker": "exact",
        "data.simulate.videos": 0,
        "data.videos": "v",
        "data.annotations": "a",
      },
      "simulated videos alone",
    ),
    ("revseg", {"eval.tracker": "nowhere"}, "nowhere: no such SAM2 weights"),
  ],
)
def test_a_tracker_that_cannot_be_is_one_line_before_anything_runs(
  recipe, changes, complaint, tmp_path
):
  run = nano.recipe("tiny", f"configs/{recipe}.py")
  run.update_from_flattened_dict(changes)
  with pytest.raises(errors.InputError, match=complaint) as raised:
    config_checks.check(run)
    model_checks.check(run, tmp_path, "eval")
  assert "\n" not in str(raised.value)
  json.dumps(str(raised.value))
