"""Prompts and frames that a video does not have are refused in one line; the rest is merged."""

import numpy as np
import pytest

from vr_jax import errors
from vr_jax.models import sam2
from vr_jax.models.sam2 import prompts

SHAPE = (5, 40, 60, 3)
BOX = sam2.BoxPrompt(object=1, frame=2, box=(6, 4, 30, 20))


def test_points_and_a_box_of_one_object_and_frame_are_one_input():
  points = sam2.PointPrompt(object=1, frame=2, points=((15, 10), (0, 40)), inside=(True, False))
  other = sam2.BoxPrompt(object=0, frame=4, box=(0, 0, 60, 40))
  first, second = prompts.gather([other, points, BOX], SHAPE, 120)
  assert (first.object, first.frame, second.object, second.frame) == (1, 2, 0, 4)
  np.testing.assert_allclose(first.points, [[12, 12], [60, 60], [30, 30], [0, 120]])
  assert first.labels.tolist() == [prompts.TOP_LEFT, prompts.BOTTOM_RIGHT, 1, 0]
  np.testing.assert_allclose(second.points, [[0, 0], [120, 120]])


MASK = np.zeros((40, 60), bool)
WRONG = [
  ([], "prompts: none"),
  ([sam2.BoxPrompt(object=1, frame=5, box=BOX.box)], "the video's frames are 0 to 4"),
  ([sam2.BoxPrompt(object=1, frame=-1, box=BOX.box)], "on frame -1"),
  ([sam2.BoxPrompt(object=1, frame=0, box=(30, 4, 6, 20))], "is not x0 < x1"),
  ([sam2.BoxPrompt(object=1, frame=0, box=(6, 4, 61, 20))], "within the frame of 60 x 40"),
  ([sam2.BoxPrompt(object=1, frame=0, box=(6, -4, 60, 20))], "within the frame of 60 x 40"),
  ([sam2.BoxPrompt(object=1, frame=0, box=(6, 4, float("nan"), 20))], "not finite"),
  ([sam2.PointPrompt(object=1, frame=0, points=(), inside=())], "0 points"),
  ([sam2.PointPrompt(object=1, frame=0, points=((1, 2),), inside=())], "1 points, 0 flags"),
  ([sam2.PointPrompt(object=1, frame=0, points=((1, 41),), inside=(True,))], "outside of 60 x 40"),
  ([sam2.MaskPrompt(object=1, frame=0, mask=MASK.T)], "mask is (60, 40), but the frames are"),
  ([sam2.MaskPrompt(object=1, frame=0, mask=MASK.astype(np.uint8))], "expected bool"),
  ([BOX, sam2.MaskPrompt(object=1, frame=2, mask=MASK)], "a mask is the only prompt"),
  ([BOX, BOX], "2 boxes; give one"),
]


@pytest.mark.parametrize(("wrong", "text"), WRONG, ids=[text for _, text in WRONG])
def test_a_wrong_prompt_is_refused_in_one_line(wrong, text):
  with pytest.raises(errors.InputError) as caught:
    prompts.gather(wrong, SHAPE, 120)
  assert text in str(caught.value)
  assert "\n" not in str(caught.value)


def test_wrong_frames_are_refused_in_one_line():
  segmenter = sam2.Segmenter(sam2.smallest(), {})
  for frames, text in (
    (np.zeros((5, 40, 60), np.uint8), "expected [frames, height, width, 3]"),
    (np.zeros((0, 40, 60, 3), np.uint8), "not empty"),
    (np.zeros(SHAPE, np.float32), "dtype float32"),
  ):
    with pytest.raises(errors.InputError, match="frames: ") as caught:
      sam2.track(segmenter, frames, [BOX])
    assert text in str(caught.value)
  with pytest.raises(errors.InputError, match="videos: 1, with 0"):
    sam2.track_videos(segmenter, [np.zeros(SHAPE, np.uint8)], [])
  lazy = sam2.LazyFrames(shape=SHAPE, read=lambda a, b: np.zeros((b - a, 40, 61, 3), np.uint8))
  with pytest.raises(errors.InputError, match="frames 2 to 2: "):
    sam2.track(segmenter, lazy, [BOX])
