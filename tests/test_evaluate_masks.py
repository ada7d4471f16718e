"""`vr-jax eval` on sets of masks: from a policy and SAM2 to scores and to archives for servers."""

import json
import shutil
import zipfile

import numpy as np
from PIL import Image
import pytest

from tests import untrained
from tests.data import released_sets
from tests.train import nano
from vr_jax import main
from vr_jax.data import segmentation_sets
from vr_jax.eval import score_masks
from vr_jax.eval.benchmarks import reply_store
from vr_jax.models import sam2
from vr_jax.models.sam2 import parameters

SPLITS = {"ref_davis17": "val", "revos": "valid", "reason_vos": ""}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return untrained.make_run(
    tmp_path_factory.mktemp("revseg") / "run", nano.config("configs/revseg.py", eval__batch_size=8)
  )


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  """Random weights that take every object for visible."""
  config, path = sam2.smallest(), tmp_path_factory.mktemp("weights") / "sam2"
  params = parameters.initialise(config, seed=0)
  bias = "mask_decoder.pred_obj_score_head.proj_out.bias"
  sam2.save(sam2.Segmenter(config, {**params, bias: params[bias] + 3}), path)
  return path


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
  root = tmp_path_factory.mktemp("sets")
  released_sets.mevis(root / "mevis", "valid_u")
  shutil.copytree(root / "mevis" / "valid_u", root / "mevis" / "valid")
  (root / "mevis" / "valid" / "mask_dict.json").unlink()
  for layout in ("ref_youtube_vos", *SPLITS):
    getattr(released_sets, layout)(root / layout)
  return root


def _eval(capsys, *words) -> str:
  code = main.cli(["vr-jax", "eval", *map(str, words)])
  out, err = capsys.readouterr()
  assert code == 0, err
  return out


def _say(directory, said) -> None:
  """Writes a test's replies in place of those of random weights. said: by id, frame and box."""
  path = directory / "replies-00000.jsonl"
  lines = [json.loads(line) for line in path.open()]
  for line in lines:
    if (found := said(line["id"])) is not None:
      frame, box = found
      texts = (
        json.dumps([{"frame_idx": frame, "object description": "it"}]),
        json.dumps([{"bbox_2d": box}]),
      )
      *line["earlier"], line["reply"] = (
        f"<think>…</think> <answer>{text}</answer>" for text in texts
      )
      line["turns"], line["truncated"] = 2, False
  path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def _box(name):
  """A box of a key frame of 112 x 112, whatever the expression."""
  return 1, [10, 20, 40, 60]


def test_scores_are_those_of_the_sets_programs_and_count_what_failed(
  run, weights, sets, tmp_path, capsys
):
  """Random replies give no box, and a test's do; all that follows from them is real."""
  names, boxed = ["mevis", *SPLITS], {"park/0", "classic-car/0", "park/1/0"}
  benchmarks = [f"{name}@official" for name in names]
  flags = [f"--checkpoint={run}", f"--sam2={weights}", f"--benchmark_data={sets}"]
  flags += [f"--benchmarks={','.join(benchmarks)}", "--split=mevis:valid_u", f"--out={tmp_path}"]
  _eval(capsys, *flags)
  rows = {row["protocol"]: row for row in json.loads((tmp_path / "table.json").read_text())}
  assert set(rows) == set(benchmarks)
  for row in rows.values():  # of a random policy, no expression has a box
    assert row["unparsed"] + row["truncated"] + row["failed"] > 0
  assert rows["mevis@official"]["questions"] == 6
  before = (tmp_path / "mevis@official" / "found" / "park.json").stat().st_mtime_ns

  for name in benchmarks:
    _say(tmp_path / name, lambda key: _box(key) if key in boxed else None)
  out = _eval(capsys, *flags)
  rows = {row["protocol"]: row for row in json.loads((tmp_path / "table.json").read_text())}
  assert (tmp_path / "mevis@official" / "found" / "park.json").stat().st_mtime_ns > before
  masks = [
    np.array(Image.open(path))
    for path in sorted((tmp_path / "mevis@official" / "predictions" / "park").rglob("*.png"))
  ]
  assert len(masks) == 3 * 5
  assert {mask.shape for mask in masks} == {(released_sets.HEIGHT, released_sets.WIDTH)}
  assert any(mask.any() for mask in masks)
  for name in names:
    row, root = rows[f"{name}@official"], sets / name
    where = tmp_path / f"{name}@official" / ("merged" if name == "ref_davis17" else "predictions")
    found = score_masks.score(name, root, where, split=SPLITS.get(name, "valid_u"))
    found = found["reasoning"] if name == "revos" else found  # the small set has no other
    for measure in ("J", "F", "J&F"):
      assert row["values"][measure]["value"] == pytest.approx(found[measure]), (name, measure)
    assert 0 < row["values"]["J&F"]["value"] < 100
    if name == "revos":
      assert row["values"]["R"]["value"] == pytest.approx(found["R"])
  assert "no question of type/referring" in out

  again = _eval(capsys, *flags, "--score_only")
  assert again == out
  other = tmp_path / "other"
  shutil.copytree(tmp_path / "mevis@official", other / "mevis@official")
  changed = _eval(capsys, *flags, "--score_only", "--benchmarks=mevis@official", f"--base={other}")
  assert "+0.0" in changed


def test_masks_that_a_server_scores_are_packed_for_each_listed_frame(
  run, weights, sets, tmp_path, capsys
):
  """Also for expressions without a box; a missing video is told."""
  mine = tmp_path / "sets"
  shutil.copytree(sets / "mevis", mine / "mevis")
  shutil.copytree(sets / "ref_youtube_vos", mine / "ref_youtube_vos")
  shutil.rmtree(mine / "mevis" / "valid" / "JPEGImages" / "street")
  folder = mine / "ref_youtube_vos" / "valid" / "JPEGImages" / "park"
  shutil.copy(folder / "00000.jpg", folder / "00001.jpg")  # a picture that the set does not list
  flags = [f"--checkpoint={run}", f"--sam2={weights}", f"--benchmark_data={mine}"]
  flags += ["--benchmarks=mevis@official,ref_youtube_vos@official", f"--out={tmp_path / 'out'}"]
  out = _eval(capsys, *flags)
  assert "15 masks of 3 expressions of 1 videos for the server of mevis valid; 0 have a box" in out
  assert "mevis@official: partial: 3 expressions left out: valid/JPEGImages/street missing" in out
  assert not (tmp_path / "out" / "table.json").exists()
  youtube = tmp_path / "out" / "ref_youtube_vos@official"
  _say(youtube, _box)
  out = _eval(capsys, *flags)
  assert "10 masks of 2 expressions of 1 videos for the server of ref_youtube_vos valid" in out
  assert "2 have a box, 0 failed, 0 truncated" in out
  with zipfile.ZipFile(youtube / "submission.zip") as archive:
    assert archive.namelist() == [
      f"Annotations/park/{query}/{frame}.png"
      for query in "01"
      for frame in released_sets.names_of(5, step=5)
    ]
  (video,) = (json.loads(path.read_text()) for path in (youtube / "found").glob("*.json"))
  assert video["scores"] is None
  # Frame 1 of the clip that the policy sees, in the frames that the set lists.
  times = next(iter(reply_store.ReplyStore(directory=youtube).read().values())).times
  rate = segmentation_sets.LAYOUTS["ref_youtube_vos"].frame_rate
  assert {each["frame"] for each in video["expressions"]} == {round(times[1] * rate)}
  for found in video["expressions"]:
    assert found["box"] == pytest.approx([400 / 112, 480 / 112, 1600 / 112, 1440 / 112])
  with zipfile.ZipFile(tmp_path / "out" / "mevis@official" / "submission.zip") as archive:
    assert archive.namelist()[0] == "park/0/00000.png"


def test_a_video_that_cannot_be_read_counts_with_empty_masks(run, weights, sets, tmp_path, capsys):
  shutil.copytree(sets / "mevis", tmp_path / "mevis")
  picture = tmp_path / "mevis" / "valid_u" / "JPEGImages" / "street" / "00001.jpg"
  picture.write_bytes(picture.read_bytes()[:200])
  flags = [f"--checkpoint={run}", f"--sam2={weights}", f"--benchmark_data={tmp_path}"]
  flags += ["--benchmarks=mevis@official", "--split=mevis:valid_u", f"--out={tmp_path / 'out'}"]
  _eval(capsys, *flags)
  (row,) = json.loads((tmp_path / "out" / "table.json").read_text())
  assert (row["questions"], row["failed"]) == (6, 3)
  predictions = tmp_path / "out" / "mevis@official" / "predictions" / "street"
  assert len(list(predictions.rglob("*.png"))) == 3 * 3
  assert not any(np.array(Image.open(path)).any() for path in predictions.rglob("*.png"))
  (tmp_path / "out" / "mevis@official" / "found" / "park.json").unlink()
  assert main.cli(["vr-jax", "eval", *flags, "--score_only"]) == 2
  assert "1 of 2 videos are not tracked, such as park" in capsys.readouterr().err


def test_a_mistake_is_named_in_one_line(run, weights, sets, tmp_path, capsys):
  here, sam, data = f"--checkpoint={run}", f"--sam2={weights}", f"--benchmark_data={sets}"
  other = untrained.make_run(tmp_path / "other", nano.config(eval__batch_size=8))
  youtube, davis = "--benchmarks=ref_youtube_vos@official", "--benchmarks=ref_davis17@official"
  for words, says in (
    ((here, data, youtube), "ref_youtube_vos@official needs SAM2's weights; docs/sam2.md says"),
    ((here, data, youtube, "--sam2=nowhere"), "--sam2=nowhere: no such file or directory"),
    ((here, data, davis, sam, "--limit=3"), "--limit: ref_davis17@official needs all expressions"),
    ((here, data, "--benchmarks=mvbench@official", sam), "--sam2: has no effect; none of"),
    ((f"--checkpoint={other}", data, youtube, sam), "the replies of moss_chatv give no boxes"),
    ((here, data, youtube, sam, "--split=ref_youtube_vos:train"), "has no split 'train'"),
  ):
    out = f"--out={tmp_path / 'out'}"
    assert main.cli(["vr-jax", "eval", *map(str, (*words, out))]) == 2, words
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and says in lines[0], (words, lines)
