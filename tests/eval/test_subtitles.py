import json

import numpy as np
import pytest

from vr_jax.errors import InputError
from vr_jax.eval.benchmarks import subtitles

SRT = """1
00:00:01,000 --> 00:00:03,500
<font color="white">Hello,</font>
all.

2
00:01:00,000 --> 00:01:02,000
Bye.

3
00:01:05,000 --> 00:01:06,000

"""


def test_srt_files_are_read_without_markup_and_empty_lines(tmp_path):
  path = tmp_path / "a.srt"
  path.write_text(SRT, encoding="utf-8-sig")
  assert subtitles.read(path) == [
    subtitles.Subtitle(start=1.0, end=3.5, text="Hello, all."),
    subtitles.Subtitle(start=60.0, end=62.0, text="Bye."),
  ]


def test_both_forms_of_longvideobench_are_read_and_shifted(tmp_path):
  path = tmp_path / "a.json"
  values = [
    {"timestamp": [10.0, 12.0], "text": "one"},
    {"timestamp": [14.0, None], "text": "two"},
    {"start": "00:00:20.500", "end": "00:00:21.000", "line": "three"},
  ]
  path.write_text(json.dumps(values))
  found = subtitles.read(path, starts_at=10.0)
  assert [(line.start, line.end, line.text) for line in found] == [
    (0.0, 2.0, "one"),
    (4.0, float("inf"), "two"),
    (10.5, 11.0, "three"),
  ]


def test_only_lines_at_the_times_of_frames_are_shown_once_and_in_order():
  lines = [
    subtitles.Subtitle(start=start, end=end, text=text)
    for start, end, text in ((8, 9, "late"), (0, 2, "first"), (2, 4, "next"), (5, 6, "between"))
  ]
  assert subtitles.shown_at(lines, np.array([0.0, 1.0, 2.0, 8.5])) == ("first", "next", "late")
  assert subtitles.shown_at(lines, np.array([4.0])) == ()


@pytest.mark.parametrize(
  ("name", "text", "message"),
  [
    ("a.srt", "1\nno times\ntext", "has no times"),
    ("a.json", "{}", "is no list"),
    ("a.json", '[{"text": "x"}]', "line 1 is no subtitle"),
    ("a.json", '[{"start": "x", "end": "y", "line": "z"}]', "is not written as"),
    ("a.json", "[", "can't be read"),
  ],
)
def test_what_is_no_subtitle_is_refused_by_its_file(tmp_path, name, text, message):
  (tmp_path / name).write_text(text)
  with pytest.raises(InputError, match=message) as error:
    subtitles.read(tmp_path / name)
  assert name in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_is_refused(tmp_path):
  with pytest.raises(InputError, match=r"b\.srt: can't be read"):
    subtitles.read(tmp_path / "b.srt")
