"""Masks that follow found objects, and the files that hold them."""

import json

import av
import numpy as np
from PIL import Image
import pytest

from tests.data import videos
from vr_jax import run_length
from vr_jax.data import video_file
from vr_jax.eval import found_object, mask_output
from vr_jax.models import sam2
from vr_jax.models.sam2 import parameters

FRAMES = 7


def _found(**changes):
  values = {"query": "the red one", "replies": ("<think>…",), "frame": 3, "description": "a square"}
  return found_object.FoundObject(
    **{**values, "box": (8.0, 4.0, 30.0, 33.0), "problem": "", **changes}
  )


@pytest.fixture(scope="module")
def video(tmp_path_factory):
  path = tmp_path_factory.mktemp("video") / "a.mp4"
  times = [0.0, 0.1, 0.2, 0.5, 0.6, 0.7, 1.1]
  videos.write(path, frames=FRAMES, size=64, times=times)
  return video_file.extract(path, fps=1e6, quality=95, max_side=2**31)


@pytest.fixture(scope="module")
def segmenter():
  """Random weights that take every object for visible."""
  config = sam2.smallest()
  params = parameters.initialise(config, seed=0)
  bias = "mask_decoder.pred_obj_score_head.proj_out.bias"
  return sam2.Segmenter(config, {**params, bias: params[bias] + 3})


@pytest.fixture(scope="module")
def tracked(video, segmenter):
  found = [
    _found(),
    _found(box=None, problem="json"),
    _found(frame=0, box=(20.0, 20.0, 60.0, 64.0)),
  ]
  return found, mask_output.track(segmenter, video, found)


def test_objects_are_followed_together_as_each_is_alone(video, segmenter, tracked):
  found, masks = tracked
  frames = np.stack([mask_output._decode(jpeg) for jpeg in video.jpegs])
  for each, of_object in zip(found, masks, strict=True):
    if each.box is None:
      assert of_object == [None] * FRAMES
      continue
    prompt = sam2.BoxPrompt(object=0, frame=each.frame, box=each.box)
    alone = sam2.track(segmenter, frames, [prompt]).masks[0]
    assert alone.any()
    together = [run_length.decode(mask, 64, 64) for mask in of_object]
    assert np.mean(alone != np.stack(together)) < 1e-3  # batches round otherwise


def test_what_is_written_is_what_was_found(tmp_path, video, tracked):
  found, masks = tracked
  mask_output.write(tmp_path, "a.mp4", video, found, masks)
  record = json.loads((tmp_path / "masks.json").read_text())
  assert record["timestamps"] == pytest.approx(video.timestamps)
  assert [each["frame"] for each in record["objects"]] == [3, 3, 0]
  assert record["objects"][1]["problem"] == "json"
  for number, of_object in enumerate(masks):
    pictures = sorted((tmp_path / f"{number:03d}").iterdir())
    assert [path.name for path in pictures] == [f"{frame:05d}.png" for frame in range(FRAMES)]
    for picture, mask, again in zip(
      pictures, of_object, record["objects"][number]["masks"], strict=True
    ):
      pixels = run_length.decode(mask, 64, 64)
      np.testing.assert_array_equal(np.asarray(Image.open(picture)), 255 * pixels)
      np.testing.assert_array_equal(run_length.decode(again, 64, 64), pixels)


def test_the_overlay_has_the_times_of_the_video_and_shows_box_and_masks(tmp_path, video, tracked):
  found, _ = tracked
  nothing, whole = np.zeros((64, 64), bool), np.ones((64, 64), bool)
  masks = [[run_length.encode(nothing)] * 6 + [run_length.encode(whole)], [None] * 7, [None] * 7]
  mask_output.write(tmp_path, "a.mp4", video, found, masks)
  with av.open(str(tmp_path / "overlay.mp4")) as container:
    shown = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
  assert [time for time, _ in shown] == pytest.approx(video.timestamps, abs=1e-4)
  frames = [mask_output._decode(jpeg).astype(int) for jpeg in video.jpegs]
  changed = [np.abs(image - frame).mean() for (_, image), frame in zip(shown, frames, strict=True)]
  assert min(changed[0], changed[3], changed[6]) > 3 * max(changed[1], changed[2], changed[4])
  red = np.array([230, 60, 60])
  assert np.abs(shown[6][1] - (frames[6] + red) / 2).mean() < 12


def test_an_odd_size_loses_a_row_of_the_overlay_and_none_of_the_masks(tmp_path, segmenter):
  image = np.random.default_rng(0).integers(0, 256, (45, 63, 3), np.uint8)
  cut = video_file.ExtractedVideo(
    jpegs=(video_file.encode(image, 95),),
    timestamps=np.zeros(1),
    ends=np.ones(1),
    height=45,
    width=63,
    duration=1.0,
  )
  found = [_found(frame=0, box=(0.0, 0.0, 63.0, 45.0))]
  mask_output.write(tmp_path, "a.mp4", cut, found, mask_output.track(segmenter, cut, found))
  assert np.asarray(Image.open(tmp_path / "000" / "00000.png")).shape == (45, 63)
  with av.open(str(tmp_path / "overlay.mp4")) as container:
    assert next(container.decode(video=0)).to_ndarray(format="rgb24").shape == (44, 62, 3)
