"""Subtitles are read in three formats, and shown at the times of frames alone."""

import json
import math

from hypothesis import given, strategies
import pytest

from vr_jax.data import subtitles
from vr_jax.errors import InputError

Subtitle = subtitles.Subtitle

SRT = """1
00:00:01,000 --> 00:00:02,500
<i>Good</i> day.
- To you.

2
00:01:00,250 --> 00:01:03,000 X1:40

before an empty line

1984
3
01:00:00.5 --> 01:00:01
last
"""


def write(path, content):
  path.write_bytes(content.encode() if isinstance(content, str) else json.dumps(content).encode())
  return path


@pytest.mark.parametrize("change", [str, lambda text: text.replace("\n", "\r\n")])
def test_subrip_is_read_with_empty_lines_and_numbers_as_text(tmp_path, change):
  path = tmp_path / "a.srt"
  path.write_bytes(b"\xef\xbb\xbf" + change(SRT).encode())
  assert subtitles.read(path) == (
    Subtitle(1.0, 2.5, "Good day. - To you."),
    Subtitle(60.25, 63.0, "before an empty line 1984"),
    Subtitle(3600.5, 3601.0, "last"),
  )


def test_both_json_schemas_are_read_and_moved_to_the_clip(tmp_path):
  seconds = write(tmp_path / "a.json", [{"timestamp": [13, 15.5], "text": "one\ntwo"}])
  clock = write(
    tmp_path / "b.json", [{"start": "00:00:13.000", "end": "00:00:15.500", "line": "one two"}]
  )
  expected = (Subtitle(1.0, 3.5, "one two"),)
  assert subtitles.read(seconds, offset=12.0) == subtitles.read(clock, offset=12.0) == expected


def test_lines_without_text_are_left_out_and_hours_may_be_absent(tmp_path):
  empty = [{"timestamp": [0, 1], "text": " "}, {"timestamp": [1, 2], "text": "x"}]
  assert subtitles.read(write(tmp_path / "a.json", empty)) == (Subtitle(1.0, 2.0, "x"),)
  short = "1\n01:01,000 --> 01:02,000\n\n2\n01:02,000 --> 01:03,000\ny\n"
  assert subtitles.read(write(tmp_path / "a.srt", short)) == (Subtitle(62.0, 63.0, "y"),)


def test_a_subtitle_without_an_end_lasts_as_long_as_the_video(tmp_path):
  path = write(tmp_path / "a.json", [{"timestamp": [20.0, None], "text": "x"}])
  assert subtitles.read(path, offset=12.0, duration=30.0) == (Subtitle(8.0, 30.0, "x"),)
  assert subtitles.read(path)[0].end == math.inf


@pytest.mark.parametrize(
  ("name", "content", "complaint"),
  [
    ("a.srt", "no times at all", "line 1: needs SubRip"),
    ("a.srt", "1\n00:00:01,000 --> 00:00:02,000\nx\n2\n00:aa:00 --> 1\ny", "has no times"),
    ("a.json", "{", "is not JSON"),
    ("a.json", {"a": 1}, "needs a list"),
    ("a.json", [{"timestamp": [1, 2]}], "entry 0: has no text"),
    ("a.json", [{"timestamp": [None, 2], "text": "x"}], "entry 0: field 'timestamp'"),
    ("a.json", [{"timestamp": [1, 10**400], "text": "x"}], "entry 0: field 'timestamp'"),
    ("a.json", [{"start": "1", "end": "00:00:01", "line": "x"}], "entry 0: needs 'timestamp'"),
  ],
)
def test_a_file_of_another_format_is_refused_with_its_place(tmp_path, name, content, complaint):
  with pytest.raises(InputError, match=complaint):
    subtitles.read(write(tmp_path / name, content))


def test_a_file_that_is_absent_or_no_text_is_refused(tmp_path):
  with pytest.raises(InputError, match=r"a\.srt: cannot be read: No such file"):
    subtitles.read(tmp_path / "a.srt")
  (tmp_path / "a.srt").write_bytes(b"\xff\xfe\x00")
  with pytest.raises(InputError, match=r"a\.srt: is not UTF-8"):
    subtitles.read(tmp_path / "a.srt")


def test_only_what_is_seen_at_a_frame_is_shown_once_and_in_order():
  lines = [Subtitle(4.0, 6.0, "second"), Subtitle(1.0, 4.0, "first"), Subtitle(7.0, 8.0, "between")]
  assert subtitles.at_times(lines, [9.0, 5.0, 2.0, 3.0]) == ("first", "second")
  assert subtitles.at_times(lines, []) == ()


def test_a_subtitle_is_seen_from_its_start_up_to_its_end():
  lines = [Subtitle(1.0, 4.0, "a"), Subtitle(4.0, 6.0, "b")]
  assert subtitles.at_times(lines, [4.0]) == ("b",)
  assert subtitles.at_times(lines, [1.0]) == ("a",)
  assert subtitles.at_times(lines, [6.0]) == ()


seconds = strategies.floats(0, 100)


@given(
  strategies.lists(strategies.tuples(seconds, seconds)), strategies.lists(seconds, max_size=20)
)
def test_the_texts_at_some_times_are_those_that_a_plain_search_finds(spans, times):
  lines = [Subtitle(start, end, str(index)) for index, (start, end) in enumerate(spans)]
  plain = [line.text for line in lines if any(line.start <= time < line.end for time in times)]
  assert sorted(subtitles.at_times(lines, times)) == sorted(plain)


def test_texts_are_between_frames_as_longvideobench_puts_them():
  """Worked by hand with its loader: a text follows the frames up to its middle, included.

  a has no frame within, b is shorter than a second and counts from 1.4 to 2.4, c has frames at its
  ends alone, d has the frame at 4, and e is in the middle of its frame's time.
  """
  times = [0.0, 2.0, 4.0, 6.0]
  texts = [(0.5, 1.5, "a"), (1.6, 2.2, "b"), (2.0, 4.0, "c"), (3.0, 6.0, "d"), (5.0, 7.0, "e")]
  said = [Subtitle(*each) for each in texts]
  assert subtitles.between_frames(said, times) == (0, "b", 1, 2, "d", 3, "e")
  assert subtitles.between_frames([said[4], said[1]], times) == (0, 1, 2, 3, "e", "b")
  assert subtitles.between_frames([], times) == (0, 1, 2, 3)
  assert subtitles.between_frames(said, []) == ()
