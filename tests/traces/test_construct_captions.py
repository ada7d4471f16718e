import json

import numpy as np
import pytest

from tests.traces import construct_runs as runs
from vr_jax import errors, records
from vr_jax.traces.construct import captions as captions_lib
from vr_jax.traces.construct import states as states_lib
from vr_jax.worlds import captions as world_captions
from vr_jax.worlds import write as worlds_write


def spans(video):
  return [(caption.start, caption.end) for caption in video.captions]


def test_a_differential_caption_lasts_from_the_key_frame_before_to_its_own():
  video = runs.parsed(runs.man())
  assert spans(video) == [(0, 0), (0, 2), (2, 4), (4, 6)]
  assert [caption.asked for caption in video.captions] == [0, 2, 4, 6]
  assert video.shown == records.Span(start=0, end=4)
  assert video.masked == records.Span(start=4, end=6)
  assert video.captions[1].text == "He is sitting on the floor. The pot is half full."


def test_the_caption_of_the_whole_video_is_left_out_wherever_it_stands_or_is_absent():
  value = runs.man()
  whole = value["captions"].pop()
  last_absent = runs.parsed(value)
  value["captions"].insert(0, whole)
  assert runs.parsed(value) == last_absent == runs.parsed(runs.man())


def test_captions_come_in_the_order_of_their_indices_which_may_be_numbers():
  value = runs.man()
  value["captions"] = [e | {"idx": int(e["idx"])} for e in reversed(value["captions"])]
  assert runs.parsed(value) == runs.parsed(runs.man())


@pytest.mark.parametrize(
  "timestamp",
  [
    ["00:00:00.000", "00:00:08.000"],
    [0, 8],
    ["0", "8.0s"],
    ["0:00", "0:08"],
    {"start": 0, "end": "00:08,0"},
    "00:00:00.000 --> 00:00:08.000",
    "0-8",
  ],
)
def test_a_timestamp_is_read_in_the_forms_that_people_write(timestamp):
  assert runs.parsed(runs.man(timestamp=timestamp)) == runs.parsed(runs.man())


def test_captions_with_times_of_their_own_keep_them():
  value = runs.man(keyframe=None)
  for number, caption in enumerate(value["captions"][:-1]):
    caption |= {"start": 2 * number, "end": 2 * number + 2}
  video = runs.parsed(value)
  assert spans(video) == [(0, 2), (2, 4), (4, 6), (6, 8)]
  assert [caption.asked for caption in video.captions] == [0, 2, 4, 6]


def test_key_frames_may_count_frames_or_from_the_start_of_the_captioned_span():
  seconds = runs.parsed(runs.man(timestamp=[10, 18], keyframe=[10, 12, 14, 16]))
  assert spans(seconds) == [(10, 10), (10, 12), (12, 14), (14, 16)]
  assert runs.parsed(runs.man(timestamp=[10, 18])) == seconds
  frames = runs.man(timestamp=[10, 18], keyframe=[0, 50, 100, 150])
  assert runs.parsed(frames, keyframe_fps=25.0) == seconds
  assert seconds.shown.start == 10  # what comes before the captioned span isn't shown


def test_key_frames_count_from_where_the_first_one_is_nearer():
  video = runs.parsed(runs.man(timestamp=[0.8, 8.8]))
  assert spans(video) == [(0.8, 0.8), (0.8, 2.8), (2.8, 4.8), (4.8, 6.8)]
  video = runs.parsed(runs.man(timestamp=[0.8, 8.8], keyframe=[0.9, 2, 4, 6]))
  assert spans(video) == [(0.9, 0.9), (0.9, 2), (2, 4), (4, 6)]


def test_key_frames_of_another_unit_stop_whatever_is_skipped_until_the_unit_is_given(tmp_path):
  path = runs.write(tmp_path / "c.jsonl", runs.man(0), runs.man(1, keyframe=[0, 50, 100, 150]))
  bad = []

  def read(fps):
    return captions_lib.read(
      path, keyframe_fps=fps, even=False, on_bad=lambda where, error: bad.append(str(error))
    )

  with pytest.raises(captions_lib.UnitError, match=r"c\.jsonl:2: .*keyframe_fps"):
    read(0.0)
  assert [video.id for video in read(1.0)] == ["v0"] and "behind the timestamp's end" in bad[0]
  assert len(read(25.0)) == 2


def test_captions_without_key_frames_are_spread_evenly_only_if_asked_for():
  with pytest.raises(errors.InputError, match="captions without times"):
    runs.parsed(runs.man(keyframe=None))
  even = runs.parsed(runs.man(keyframe=None), even=True)
  assert spans(even) == [(0, 2), (2, 4), (4, 6), (6, 8)]


@pytest.mark.parametrize(
  ("changes", "says"),
  [
    ({"video_path": "../x.mp4"}, "'video_path'"),
    ({"video_path": None}, "'video_path'"),
    ({"video_id": [1]}, "'video_id'"),
    ({"captions": "text"}, "'captions': needs a list"),
    ({"captions": [{"idx": "0", "content": "One."}]}, "1 besides that of the whole video"),
    ({"captions": [{"idx": "zero", "content": "One."}]}, "idx 'zero'"),
    ({"captions": [{"idx": True, "content": "One."}]}, "idx True"),
    ({"captions": [{"idx": "0", "content": " "}]}, "content of '0' is no text"),
    ({"captions": [{"idx": i, "content": "One."} for i in (0, 0)]}, "there twice"),
    ({"captions": [{"idx": i, "content": "One."} for i in (0, 2)]}, "have a gap"),
    ({"keyframe": [0, 2, 2, 4]}, "does not increase"),
    ({"keyframe": [0, 2]}, "2 key frames for 4 captions"),
    ({"keyframe": [0, 50, 100, 150]}, "config.construct.keyframe_fps"),
    ({"keyframe": [3, 4, 5, 6]}, "near neither 0"),
    ({"keyframe": "all"}, "'keyframe': needs a list"),
    ({"keyframe": [0, 2, "soon", 6]}, "'soon' is no time"),
    ({"keyframe": [0, 2, float("nan"), 6]}, "is no time"),
    ({"timestamp": ["00:08", "00:00"]}, "is empty"),
    ({"timestamp": [1, 2, 3]}, "no pair of times"),
    ({"timestamp": [0, True]}, "is no time"),
  ],
)
def test_a_line_that_can_not_be_used_is_named_in_one_line(changes, says):
  with pytest.raises(errors.InputError) as error:
    runs.parsed(runs.man(**changes))
  assert says in str(error.value) and str(error.value).startswith("c.jsonl:1: ")


@pytest.mark.parametrize("times", [[(0, 2), (1, 3)], [(0, 2), (2, 2)], [(0, 2), (2, 20)]])
def test_captions_that_overlap_or_leave_their_span_are_refused(times):
  value = runs.man(
    captions=[
      {"idx": n, "content": "One.", "start": start, "end": end}
      for n, (start, end) in enumerate(times)
    ]
  )
  with pytest.raises(errors.InputError, match=r"c\.jsonl:1: captions of"):
    runs.parsed(value)


def test_damaged_lines_are_counted_and_good_ones_are_kept(tmp_path):
  path = runs.write(
    tmp_path / "c.jsonl", runs.man(0), '{"video_id": ', "[1]", runs.man(0), runs.man(1)
  )
  bad = []
  videos = captions_lib.read(
    path, keyframe_fps=0.0, even=False, on_bad=lambda where, error: bad.append(str(error))
  )
  assert [video.id for video in videos] == ["v0", "v1"]
  assert ["c.jsonl:2: is not JSON" in bad[0], "no JSON object" in bad[1], "taken by" in bad[2]] == [
    True
  ] * 3


def test_the_simulator_writes_lines_that_are_read_as_true_states():
  seen, wordings = set(), set()
  for index in range(60):
    scene, _ = worlds_write.sample_video(runs.world(), seed=3, index=index, questions=1)
    rng = np.random.default_rng(index)
    wordings.add(int(np.random.default_rng(index).integers(world_captions.WORDINGS)))
    value = world_captions.record(scene, name=str(index), video=f"{index}.mp4", rng=rng)
    video = runs.parsed(json.loads(json.dumps(value)))
    assert spans(video) == [(2.0 * cell, 2.0 * cell + 2) for cell in range(scene.cells)]
    for state in states_lib.read_by_rule(video):
      true = scene.value(scene.object(state.object), state.attribute, state.caption)
      assert state.value == true
      seen.add(state.attribute)
  assert seen == {"colour", "place", "size", "visibility", "box", "label", "charge"}
  assert wordings == set(range(world_captions.WORDINGS))
