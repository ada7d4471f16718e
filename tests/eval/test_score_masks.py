import json
import subprocess
import sys
import zipfile

import numpy as np
from PIL import Image
import pytest

from tests.data import released_sets
from vr_jax import run_length
from vr_jax.data import segmentation_sets, segmented_video
from vr_jax.errors import InputError
from vr_jax.eval import mask_submissions, score_masks, segmentation

SPLITS = {"mevis": "train", "ref_youtube_vos": "train", "revos": "train", "ref_davis17": "val",
          "reason_vos": ""}  # fmt: skip


def true_masks(video, query):
  masks = segmented_video.object_masks(video.instances, query.instances, len(video.frames))
  frames = [video.frames[frame] for frame in masks]
  size = video.height, video.width
  return frames, np.stack([run_length.decode(mask, *size) for mask in masks.values()])


def predict(layout, root, out, change=lambda masks: masks, **arguments):
  """Writes the truth, changed, as predictions of every expression."""
  videos = list(segmentation_sets.read(layout, root, SPLITS[layout]))
  for video in videos:
    for query in video.queries:
      frames, masks = true_masks(video, query)
      folder = mask_submissions.folder(layout, out, video, query)
      mask_submissions.write(folder, frames, change(masks), **arguments)
  return videos


def shifted(masks):
  return np.roll(masks, 2, axis=2)


@pytest.fixture(params=SPLITS)
def released(request, tmp_path):
  layout = request.param
  return layout, getattr(released_sets, layout)(tmp_path / "set")


def test_the_truth_scores_100_and_other_masks_the_means_over_expressions(tmp_path, released):
  layout, root = released
  split, out = SPLITS[layout], tmp_path / "out"
  videos = predict(layout, root, out)
  options = {"split": split, "protocol": "expressions"}
  best = score_masks.score(layout, root, out, **options)
  for scores in (
    (best["referring"], best["reasoning"], best["overall"]) if layout == "revos" else (best,)
  ):
    assert (scores["J"], scores["F"], scores["J&F"]) == (100, 100, 100)
  predict(layout, root, out, shifted)
  expected = [
    segmentation.j_and_f(shifted(masks), masks)
    for video in videos
    for query in video.queries
    for _, masks in [true_masks(video, query)]
  ]
  found = score_masks.score(layout, root, out, **options)
  if layout != "revos":
    assert found["J"] == pytest.approx(100 * np.mean([each.j for each in expected]))
    assert found["F"] == pytest.approx(100 * np.mean([each.f for each in expected]))
    assert found["J&F"] == pytest.approx((found["J"] + found["F"]) / 2)
    assert found["expressions"] == len(expected) and not found["without_prediction"]


def test_revos_has_two_groups_and_their_mean_and_counts_no_other(tmp_path):
  root, out = released_sets.revos(tmp_path / "set"), tmp_path / "out"
  (park,) = predict("revos", root, out, shifted)
  found = score_masks.score("revos", root, out)
  for name, query in (("referring", park.queries[0]), ("reasoning", park.queries[1])):
    _, masks = true_masks(park, query)
    score = segmentation.j_and_f(shifted(masks), masks)
    assert found[name]["J"] == round(100 * score.j, 2)
    assert found[name]["F"] == round(100 * score.f, 2)
    foreground = np.stack([released_sets.labels(frame, 5) > 0 for frame in range(5)])
    wrong = (shifted(masks) & ~masks).sum(axis=(1, 2)) / foreground.sum(axis=(1, 2))
    assert found[name]["R"] == pytest.approx(100 * (1 - wrong).mean(), abs=0.01)
    assert found[name]["visa_R"] == 0  # 255 for each wrong pixel
  both = (found["referring"]["J"] + found["reasoning"]["J"]) / 2
  assert found["overall"]["J"] == pytest.approx(both)
  once = score_masks.score("revos", root, out, pixel_value=1)
  assert once["referring"]["visa_R"] == found["referring"]["R"]
  assert found["expressions"] == 3
  rows = list(score_masks.measures("revos", [park], root, out))
  for row, kind in zip(rows, ("referring", "reasoning"), strict=False):
    assert {name: 100 * value for name, value in row.items()} == pytest.approx(
      {name: value for name, value in found[kind].items() if name != "J&F"}
    )


def test_a_video_without_prediction_scores_0_and_in_reason_vos_is_left_out(tmp_path):
  root, out = released_sets.mevis(tmp_path / "mevis"), tmp_path / "out"
  videos = predict("mevis", root, out)
  (out / videos[0].name).rename(tmp_path / "elsewhere")
  found = score_masks.score("mevis", root, out)
  assert (found["J"], found["without_prediction"], found["expressions"]) == (50, 3, 6)
  root, out = released_sets.reason_vos(tmp_path / "reason"), tmp_path / "other"
  predict("reason_vos", root, out)
  (out / "mose_park_1").rename(tmp_path / "elsewhere2")
  found = score_masks.score("reason_vos", root, out)
  assert (found["J"], found["without_prediction"], found["expressions"]) == (100, 1, 1)
  (out / "mose_park_2").rename(tmp_path / "elsewhere3")
  with pytest.raises(InputError, match="holds no prediction"):
    score_masks.score("reason_vos", root, out)


def test_davis_merges_an_annotators_objects_and_matches_them(tmp_path):
  root, out, merged = released_sets.ref_davis17(tmp_path / "set"), tmp_path / "out", tmp_path / "m"
  videos = predict("ref_davis17", root, out)
  mask_submissions.merge_davis(out, merged, videos)
  found = score_masks.score("ref_davis17", root, merged, split="val")
  assert (found["J"], found["F"], len(found["annotators"])) == (100, 100, 4)
  # Labels 3 to 9 of the truth are of no object: DAVIS compares each of them with nothing, too.
  assert found["objects"] == 2 * 10
  with Image.open(merged / "anno_0" / "street" / "00002.png") as image:
    assert image.mode == "P"
    values = np.array(image)
    assert image.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
  # Object 10 is the second of the expressions, as texts are sorted.
  for label, number in ((1, 1), (2, 10), (3, 2)):
    np.testing.assert_array_equal(values == label, released_sets.mask(number, 2, 3))
  # One annotator's masks are nothing: a quarter of the mean is lost, but for the absent labels.
  for path in (merged / "anno_2").rglob("*.png"):
    Image.fromarray(np.zeros((24, 40), np.uint8)).save(path)
  worse = score_masks.score("ref_davis17", root, merged, split="val")
  assert worse["annotators"][2]["J"] < 100 and worse["annotators"][1]["J"] == 100
  assert worse["J"] == pytest.approx(np.mean([one["J"] for one in worse["annotators"]]))


def test_void_pixels_cost_nothing_in_davis(tmp_path):
  root, out, merged = released_sets.ref_davis17(tmp_path / "set"), tmp_path / "out", tmp_path / "m"

  def into_void(masks):
    masks[:, -2:] = masks.any()
    return masks

  videos = predict("ref_davis17", root, out, into_void)
  mask_submissions.merge_davis(out, merged, videos)
  assert score_masks.score("ref_davis17", root, merged, split="val")["J"] == 100
  alone = score_masks.score("ref_davis17", root, out, split="val", protocol="expressions")
  assert alone["J"] < 100


def test_an_archive_has_the_paths_that_servers_expect_and_the_same_bytes(tmp_path):
  for layout, first in (("mevis", "park/0/00000.png"), ("ref_youtube_vos", "Annotations/park/0/")):
    root, out = getattr(released_sets, layout)(tmp_path / layout), tmp_path / f"{layout}_out"
    predict(layout, root, out)
    count = mask_submissions.pack(out, tmp_path / "a.zip")
    first_bytes = (tmp_path / "a.zip").read_bytes()
    mask_submissions.pack(out, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == first_bytes
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
      assert len(archive.namelist()) == count
      assert archive.namelist()[0].startswith(first)
      with archive.open(archive.namelist()[0]) as file, Image.open(file) as image:
        assert image.mode == "L" and {*np.unique(image)} == {0, 255}
  (tmp_path / "empty").mkdir()
  with pytest.raises(InputError, match="holds no PNG"):
    mask_submissions.pack(tmp_path / "empty", tmp_path / "b.zip")


def remove_one(out):
  (out / "park" / "1" / "00003.png").unlink()


def resize_one(out):
  path = out / "park" / "1" / "00003.png"
  Image.open(path).resize((20, 12)).save(path)


@pytest.mark.parametrize(
  ("change", "problem"),
  [
    (remove_one, r"park/1/00003.png: is missing"),
    (resize_one, r"park/1/00003.png: is of \(12, 20\) pixels .* the truth of \(24, 40\)"),
    (lambda out: (out / "park" / "0").rename(out / "park" / "7"), r"park/0/00000.png: is missing"),
  ],
)
def test_a_prediction_that_cannot_be_scored_is_named(tmp_path, change, problem):
  root, out = released_sets.mevis(tmp_path / "set"), tmp_path / "out"
  predict("mevis", root, out)
  change(out)
  with pytest.raises(InputError, match=problem):
    score_masks.score("mevis", root, out)


def test_the_command_prints_scores_and_says_what_is_wrong(tmp_path):
  root, out = released_sets.mevis(tmp_path / "set"), tmp_path / "out"
  predict("mevis", root, out)
  command = [sys.executable, "-m", "vr_jax.eval.score_masks", "mevis", str(root)]
  done = subprocess.run([*command, str(out)], capture_output=True, text=True, check=True)
  assert json.loads(done.stdout)["J&F"] == 100
  bad = subprocess.run([*command, "nowhere"], capture_output=True, text=True, check=False)
  assert (bad.returncode, bad.stdout) == (2, "")
  assert bad.stderr == "nowhere: there is no such directory of predictions\n"
  valid = released_sets.mevis(tmp_path / "valid", "valid")
  for arguments, problem in (
    (["mevis", str(root)], "usage: LAYOUT"),
    (["mevis", str(root), str(out), "--pixel_value=0"], "pixel_value"),
    (["mevis", str(root), str(out), "--protocol=both"], "--protocol=both: one of objects"),
    (["mevis", str(valid), str(out), "--split=valid"], "send the predictions to its server"),
    (["lv_vis", str(root), str(out)], "lv_vis: has no layout of submissions"),
  ):
    with pytest.raises(InputError, match=problem):
      score_masks.run(arguments)
  with pytest.raises(InputError, match="4 masks for 5 frames"):
    mask_submissions.write(tmp_path / "x", ["a"] * 5, np.zeros((4, 2, 2), bool))
