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
  """page(**fields) -> the report whose only reply found this."""

  def write(**fields):
    made = runs.rollout("q-001", ["He falls."], "…", correct=True)
    rollout = {**made, "alignment": None, "times": [0.5 * number for number in range(8)]}
    rollout["grounding"] = {**FOUND, **fields}
    runs.keep_one_reply(workdir, rollout, runs.frames("q-001", 8))
    text = report.write_report(workdir).read_text(encoding="utf-8")
    return text[text.index('<figure class="found">') :]

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
