"""`vr-jax segment`: from queries to masks, and one line for each mistake."""

import json
import types

import numpy as np
import pytest

from tests import untrained
from tests.data import videos
from tests.train import nano
from vr_jax import ask, main, run_length
from vr_jax.data import video_file
from vr_jax.envs import retrieval_actions
from vr_jax.eval import mask_output
from vr_jax.models import sam2
from vr_jax.models.sam2 import parameters
from vr_jax.rollout import session as session_lib


@pytest.fixture(scope="module")
def video(tmp_path_factory):
  """A clip of 4 s with 8 frames a second."""
  return videos.write(tmp_path_factory.mktemp("video") / "clip.mp4", frames=32)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  return untrained.make_run(
    tmp_path_factory.mktemp("revseg") / "run", nano.config("configs/revseg.py")
  )


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  """Random weights that take every object for visible."""
  config, path = sam2.smallest(), tmp_path_factory.mktemp("weights") / "sam2"
  params = parameters.initialise(config, seed=0)
  bias = "mask_decoder.pred_obj_score_head.proj_out.bias"
  sam2.save(sam2.Segmenter(config, {**params, bias: params[bias] + 3}), path)
  return path


def _run(capsys, *words) -> tuple[str, str]:
  code = main.cli(["vr-jax", "segment", *map(str, words)])
  out, err = capsys.readouterr()
  assert code == 0, err
  return out, err


def test_a_policy_that_gives_no_box_leaves_empty_masks(run, video, weights, tmp_path, capsys):
  out, _ = _run(
    capsys, video, "the mark", f"--checkpoint={run}", f"--sam2={weights}", f"--out={tmp_path / 'm'}"
  )
  assert "→ no key frame (" in out
  assert "; its masks are empty" in out
  record = json.loads((tmp_path / "m" / "masks.json").read_text())
  (found,) = record["objects"]
  assert found["masks"] == [None] * 32
  assert len(found["replies"]) == 1
  assert (tmp_path / "m" / "overlay.mp4").stat().st_size


def test_masks_start_at_the_box_of_the_frame_that_the_policy_chose(
  run, video, weights, tmp_path, capsys, monkeypatch
):
  """The replies are a test's; all that follows from them is real."""
  said = {
    "the mark": (2, [0, 0, 28, 28]),  # of a key frame of 112 x 112
    "the rest": (3, [28, 28, 112, 112]),
  }

  def play(example, *, seed):
    frame, box = said[example.question]
    key = json.dumps([{"frame_idx": frame, "object description": "a mark"}])
    replies = [
      f"<think>…</think> <answer>{text}</answer>" for text in (key, json.dumps([{"bbox_2d": box}]))
    ]
    for number, reply in enumerate(replies):
      action = retrieval_actions.Action(kind="invalid", problem="format")
      yield session_lib.SessionTurn(number=number, frames=(), pixels=(), reply=reply, action=action)

  pools = []

  def session(context, params, pool):
    pools.append(pool.timestamps)
    return types.SimpleNamespace(play=play)

  monkeypatch.setattr(ask, "session", session)
  where = [f"--checkpoint={run}", f"--sam2={weights}", f"--out={tmp_path / 'm'}"]
  out, _ = _run(capsys, video, *said, *where, "--fresh_reverse")
  assert out.count("a mark, box") == 2
  record = json.loads((tmp_path / "m" / "masks.json").read_text())
  frames = video_file.extract(video, fps=1e6, quality=95, max_side=2**31)
  for found, pool, (place, box) in zip(record["objects"], pools, said.values(), strict=True):
    assert frames.timestamps[found["frame"]] == pytest.approx(pool[place])
    assert found["box"] == pytest.approx([64 / 112 * side for side in box])
    masks = [run_length.decode(mask, 64, 64) for mask in found["masks"]]
    assert len(masks) == 32
    assert any(mask.any() for mask in masks)
  assert [each["query"] for each in record["objects"]] == list(said)


def test_a_key_frame_is_found_by_its_time_alone():
  times = np.array([0.0, 0.125, 0.25])
  assert mask_output.frame_at(times, 0.12505) == 1
  with pytest.raises(ValueError, match=r"no frame at 0\.2 s"):
    mask_output.frame_at(times, 0.2)


def test_a_mistake_is_named_in_one_line(run, video, weights, tmp_path, capsys):
  here, sam, broken = f"--checkpoint={run}", f"--sam2={weights}", tmp_path / "broken.mp4"
  broken.write_bytes(video.read_bytes()[:2000])
  (tmp_path / "there").mkdir()
  other = untrained.make_run(tmp_path / "other", nano.config())
  for words, says in (
    ((), "needs a video and a query"),
    ((video, here, sam), "needs a video and a query"),
    ((video, " ", here, sam), "needs a video and a query"),
    ((tmp_path / "no.mp4", "the dog", here, sam), "no.mp4: no such file"),
    ((broken, "the dog", here, sam), "broken.mp4: cannot be decoded"),
    ((video, "the dog", here), "--sam2: needs SAM2's weights; docs/sam2.md says where"),
    ((video, "the dog", here, "--sam2=nowhere"), "--sam2=nowhere: no such file or directory"),
    ((video, "the dog", here, f"--sam2={tmp_path / 'there'}"), str(tmp_path / "there")),
    ((video, "the dog", here, sam, f"--out={tmp_path / 'there'}"), "exists; choose another"),
    ((video, "the dog", here, sam, "--sam=1"), "not a flag of vr-jax segment; is --sam2 meant?"),
    ((video, "the dog", here, sam, "--shown=3"), "--shown=3: needs two times in seconds"),
    ((video, "the dog", sam), "needs --checkpoint"),
    ((video, "the dog", f"--checkpoint={other}", sam), "its replies give no boxes"),
  ):
    out = () if any("--out" in str(word) for word in words) else (f"--out={tmp_path / 'new'}",)
    assert main.cli(["vr-jax", "segment", *map(str, (*words, *out))]) == 2, words
    lines = [
      line
      for line in capsys.readouterr().err.splitlines()
      if line not in ("vr-jax: loading SAM2", "vr-jax: reading the video")
    ]
    assert len(lines) == 1, (words, lines)
    assert says in lines[0], (words, lines)
    assert not (tmp_path / "new").exists()
