"""Key frames, boxes and masks in the report."""

import base64
import io
import re

import numpy as np
from PIL import Image
import pytest

from tests.eval import conftest as runs
from vr_jax import errors, run_length
from vr_jax.eval import report

HOSTILE = "<script>alert(1)</script>"
FOUND = {
  "frame": 2,
  "box": [10.0, 20.0, 40.0, 50.0],
  "true_box": [12.0, 21.0, 44.0, 50.0],
  "problem": "",
  "height": 60,
  "width": 80,
}


def _mask():
  pixels = np.zeros((60, 80), bool)
  pixels[20:40, 10:30] = True
  return run_length.encode(pixels)


@pytest.fixture
def page(workdir):
  """page(**fields) -> the report whose only reply found this, from its picture on.

  reply: further fields of the reply. since: the class that the text begins with.
  """

  def write(*, reply=None, since="found", **fields):
    made = runs.rollout("q-001", ["He falls."], "…", correct=True)
    rollout = {**made, "alignment": None, "times": [0.5 * number for number in range(8)]}
    rollout |= {"grounding": {**FOUND, **fields}, **(reply or {})}
    runs.keep_one_reply(workdir, rollout, runs.frames("q-001", 8))
    text = report.write_report(workdir).read_text(encoding="utf-8")
    return text[text.index(f'class="{since}">') :]

  return write


def test_boxes_lie_where_they_are_in_the_video(page):
  text = page()
  assert 'viewBox="0 0 80 60"' in text
  places = re.findall(
    r'<rect class="(\w+)" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', text
  )
  assert [(kind, *map(float, place)) for kind, *place in places] == [
    ("truth", 12, 21, 32, 29),
    ("found", 10, 20, 30, 30),
  ]
  assert "key frame 2, 1 s" in text


def test_without_a_box_it_is_said_why(page):
  assert "No key frame: range." in page(frame=None, box=None, true_box=None, problem="range")
  text = page(box=None, true_box=None, problem="outside")
  assert "the object is not in it" in text
  assert "no box: outside" in text
  assert "<rect class" not in text


def test_masks_lie_over_their_frames(page):
  text = page(masks={"0": None, "2": _mask(), "5": _mask()})
  masks = re.findall(r'class="mask" src="data:image/png;base64,([^"]+)"', text)
  assert len(masks) == 3  # over the key frame, and in the strip
  alpha = np.asarray(Image.open(io.BytesIO(base64.b64decode(masks[0]))))[..., 3]
  np.testing.assert_array_equal(alpha > 0, run_length.decode(_mask(), 60, 80))


def test_the_rewards_of_the_episode_and_of_both_turns_stand_beside_the_picture(page):
  def turn(reply, shown, kind, frame, **rewards):
    known = {"kind": kind, "problem": "", "first": frame, "last": frame}
    return {"reply": reply, "shown": shown, "rewards": rewards, **known}

  turns = [
    turn("<think>…</think>", [0, 4], "retrieve", 2, format=0.5, temporal=0.375, spatial=0.0),
    turn("<think>…</think>", [2], "answer", None, format=0.25, temporal=0.0, spatial=1.0),
  ]
  whole = {"format": 0.75, "temporal": 0.375, "spatial": 1.0, "total": 2.125}
  text = page(reply={"rewards": whole, "turns": turns, "relevant": [[0.0, 4.0]]}, since="chips")
  episode, first, second = (
    " ".join(re.sub(r"<[^>]*>", " ", part).split())
    for part in re.split(r'<div class="segment segment-\d">', text)
  )
  assert "format 0.75 temporal 0.38 spatial 1.00 total 2.12" in episode
  assert "key frame 2, 1 s" in episode
  assert "format 0.50 temporal 0.38 spatial 0.00" in first
  assert "format 0.25 temporal 0.00 spatial 1.00" in second


def test_a_problem_stays_text(page):
  assert HOSTILE not in page(box=None, problem=HOSTILE)


@pytest.mark.parametrize(
  ("fields", "complaint"),
  [
    ({"frame": 8}, "frame 8 is not in a clip of 8"),
    ({"frame": -1}, "frame -1 is not in a clip of 8"),
    ({"box": [1.0, 2.0]}, "a box should be"),
    ({"masks": {"9": None}}, "frame 9 is not in a clip of 8"),
    ({"masks": {"first": None}}, "'first' should be the index of a frame"),
    ({"masks": {"0": {"size": [4, 4], "counts": "0"}}}, "masks have to be of the frames' size"),
  ],
)
def test_a_wrong_field_is_named(page, fields, complaint):
  with pytest.raises(errors.InputError) as caught:
    page(**fields)
  assert complaint in str(caught.value)
