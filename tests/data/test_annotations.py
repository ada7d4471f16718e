import gzip
import json
import math

import numpy as np
import pytest

from tests.data import annotation_files
from vr_jax import records
from vr_jax.data import annotations, sampling
from vr_jax.envs import retrieval_actions
from vr_jax.errors import InputError

record = annotation_files.record
video_r1_record = annotation_files.video_r1_record
VIDEOS, fail, read = annotation_files.VIDEOS, annotation_files.fail, annotation_files.read


def place_in_video(tmp_path, value, duration=10.0):
  (annotation,) = read(tmp_path, value)
  times = np.arange(max(1, int(2 * duration))) / 2
  return annotations.place_in_video(annotation, duration, times, times, tolerance=0.05)


def test_a_record_becomes_an_example(tmp_path):
  assert place_in_video(tmp_path, record()) == records.Example(
    id="one",
    video="a.mp4",
    question="What colour will the circle be?",
    options=("A. red", "B. green"),
    answer="B",
    problem_type="multiple choice",
    shown=records.Span(start=0.0, end=8.0),
    masked=records.Span(start=8.0, end=10.0),
    relevant=(records.Span(start=2.0, end=4.0), records.Span(start=6.0, end=7.5)),
    states=(records.State(object="circle", time=2.0, attribute="colour", value="red"),),
    steps=(records.Step(text="At 2s, the circle is red.", start=2.0, end=4.0),),
    source="test",
  )


def test_only_five_fields_are_needed_and_all_is_shown_unless_said_otherwise(tmp_path):
  value = {
    "id": 3,
    "video": "deep/b.mp4",
    "question": "How many?",
    "answer": 2,
    "problem_type": "numerical",
    "taken_by": "a field of the user's own",
  }
  assert place_in_video(tmp_path, value, duration=4.25) == records.Example(
    id="3",
    video="deep/b.mp4",
    question="How many?",
    answer="2",
    problem_type="numerical",
    shown=records.Span(start=0.0, end=4.25),
    extra={"taken_by": "a field of the user's own"},
  )


def test_a_step_without_times_spans_what_is_shown(tmp_path):
  (step,) = place_in_video(tmp_path, record(steps=[{"text": "It turns."}])).steps
  assert step == records.Step(text="It turns.", start=0.0, end=8.0)


def test_a_video_r1_record_becomes_the_same_kind_of_example(tmp_path):
  value = video_r1_record(
    observation="A cup stands\non a table.",
    process="<think>It tips. Then it falls!</think>",
    other={"kept": True},
  )
  example = place_in_video(tmp_path, value)
  whole = {"start": 0.0, "end": 10.0}
  assert example == records.Example(
    id="7",
    video="a.mp4",
    question="What happens next?",
    options=("A. it falls", "B. it flies"),
    answer="A",
    problem_type="multiple choice",
    shown=records.Span(**whole),
    steps=tuple(
      records.Step(text=text, **whole)
      for text in ("A cup stands", "on a table.", "It tips.", "Then it falls!")
    ),
    source="NeXT-QA",
    observation="A cup stands\non a table.",
    reasoning="It tips. Then it falls!",
    extra={"other": {"kept": True}},
  )


def test_our_records_carry_the_two_texts_of_a_trace_too(tmp_path):
  value = record(observation="<observation>A circle.</observation>", reasoning=" It turns. ")
  example = place_in_video(tmp_path, value)
  assert (example.observation, example.reasoning) == ("A circle.", "It turns.")
  assert len(example.steps) == 1


def test_a_record_all_of_texts_is_read_as_the_same_record(tmp_path):
  value = video_r1_record(observation="A cup.", process="<think>It tips.</think>", select="True")
  (as_it_is,) = read(tmp_path, value)
  assert read(tmp_path, annotation_files.all_texts(value))[0].example == as_it_is.example
  (as_json,) = read(tmp_path, value | {"options": json.dumps(value["options"])})
  assert as_json.example == as_it_is.example


@pytest.mark.parametrize("nothing", ["", "null", "None", " "])
def test_texts_that_say_nothing_are_no_values(tmp_path, nothing):
  fields = dict.fromkeys(("options", "observation", "process", "data_source"), nothing)
  value = video_r1_record(problem_type="numerical", solution="<answer>3</answer>", **fields)
  example = place_in_video(tmp_path, value)
  assert (example.options, example.steps, example.source) == ((), (), "")
  assert (example.observation, example.reasoning) == ("", "")


def test_an_answer_that_stands_beside_a_bare_solution_is_the_answer(tmp_path):
  value = video_r1_record(solution="B", answer="B")
  assert place_in_video(tmp_path, value).answer == "B"


def test_a_record_about_a_picture_is_one_about_a_moment(tmp_path):
  value = video_r1_record(data_type="image", path="./chart.PNG", process="It says 3.")
  example = place_in_video(tmp_path, value, duration=0.0)
  assert (example.video, example.shown) == ("chart.PNG", records.Span(start=0.0, end=0.0))
  assert example.steps == (records.Step(text="It says 3.", start=0.0, end=0.0),)


def test_gzipped_files_are_read_and_a_pattern_names_the_parts_of_one(tmp_path):
  lines = gzip.compress(json.dumps(video_r1_record(problem_id=1)).encode() + b"\n")
  (tmp_path / "rl.part1of2.jsonl.gz").write_bytes(lines)
  one = gzip.compress(json.dumps([video_r1_record(problem_id=2)]).encode())
  (tmp_path / "rl.part2of2.json.gz").write_bytes(one)
  (tmp_path / "sft.json").write_text("not for us")
  found = annotations.read(tmp_path / "rl.part*.gz", VIDEOS, on_bad=fail)
  assert [annotation.example.id for annotation in found] == ["1", "2"]
  assert found[1].where == f"{tmp_path / 'rl.part2of2.json.gz'}: record 0"
  with pytest.raises(InputError, match=r"\*\.json: there is no annotation file of this pattern"):
    annotations.read(tmp_path / "x*.json", VIDEOS, on_bad=fail)


def test_a_file_may_be_one_json_list_and_may_mix_families(tmp_path):
  path = tmp_path / "notes.json"
  path.write_text("\ufeff" + json.dumps([record(), video_r1_record()], indent=1), encoding="utf-8")
  found = annotations.read(path, VIDEOS, on_bad=fail)
  assert [annotation.example.id for annotation in found] == ["one", "7"]
  assert found[1].where == f"{path}: record 1"


def test_blank_lines_are_nothing_and_line_separators_within_texts_are_text(tmp_path):
  line = json.dumps(record(question="one\u2028two"), ensure_ascii=False)
  (annotation,) = read(tmp_path, "", line, "  ")
  assert annotation.example.question == "one\u2028two"
  assert annotation.where.endswith("notes.jsonl:2")


BAD_RECORDS = {
  "not JSON": ('{"id": 1,', "is not JSON"),
  "too many digits": ("9" * 5000, "is not JSON"),
  "nested without end": ("[" * 100_000, "is not JSON"),
  "no object": ("[1]", "is a list, not a JSON object"),
  "unknown video": (record(video="c.mp4"), "field 'video': there is no file 'c.mp4'"),
  "video outside": (record(video="../a.mp4"), "field 'video'.*below the video directory"),
  "absolute video": (record(video="/a.mp4"), "field 'video'.*below the video directory"),
  "answer no option": (record(answer="C"), "field 'answer': 'C' is none of the options A, B"),
  "answer as text": (record(answer="green"), "field 'answer': 'green' is none of the options"),
  "no options": (record(options=[]), "field 'options': two or more"),
  "unlettered options": (record(options=["red", "green"]), "field 'options': 'red' does not begin"),
  "twice a letter": (record(options=["A. x", "A. y"]), "field 'options': two or more"),
  "options of a number": (
    record(problem_type="numerical", answer="2"),
    "field 'options': a numerical question has none",
  ),
  "options no list": (record(options="A. red"), "field 'options': is a text, not a list"),
  "unknown type": (record(problem_type="riddle"), "field 'problem_type': 'riddle' is none of mult"),
  "empty question": (record(question=" "), "field 'question' is empty"),
  "null question": (
    '{"id":1,"video":"a.mp4","question":null,"answer":"x","problem_type":"OCR"}',
    "field 'question': is null, not a text",
  ),
  "half a surrogate": (record(question="\ud800"), "field 'question': holds half a surrogate"),
  "question no text": (record(question=["q"]), "field 'question': is a list, not a text"),
  "reversed span": (record(shown=[8, 0]), "field 'shown': .8, 0. does not end after it starts"),
  "empty span": (record(shown=[2, 2]), "field 'shown': .2, 2. does not end after"),
  "reversed masked": (record(masked=[10, 8]), "field 'masked'.*does not end after"),
  "reversed relevant": (record(relevant=[[0, 1], [4, 2]]), "field 'relevant'.*does not end after"),
  "reversed step": (record(steps=[{"text": "x", "start": 3, "end": 2}]), "field 'steps'.*does not"),
  "negative time": (record(shown=[-1, 4]), "field 'shown': -1 is not a time"),
  "not a number": (record(shown=[0, math.nan]), "field 'shown': nan is not a time"),
  "infinite": (record(shown=[0, math.inf]), "field 'shown': inf is not a time"),
  "time as text": (record(shown=["0", "8"]), "field 'shown': a time is a text"),
  "time as truth": (record(shown=[False, True]), "field 'shown': a time is true or false"),
  "span of three": (record(shown=[0, 1, 2]), "field 'shown': needs .start, end. in seconds"),
  "state without time": (
    record(states=[{"object": "x"}]),
    "field 'states': needs objects with obj",
  ),
  "step with half a span": (record(steps=[{"text": "x", "start": 1}]), "field 'steps': needs obj"),
  "step no object": (record(steps=["x"]), "field 'steps': needs objects"),
  "misspelt field": (
    record(masked=None, maskd=[8, 10]),
    "field 'maskd' is unknown; is 'masked' meant",
  ),
  "image in a video": (
    video_r1_record(data_type="image"),
    "field 'data_type': 'image', but field 'path' is './a.mp4'; images end with .jpg",
  ),
  "video in an image": (
    video_r1_record(path="./chart.PNG"),
    "field 'data_type': 'video', but field 'path' is './chart.PNG'",
  ),
  "audio": (video_r1_record(data_type="audio"), "field 'data_type': 'audio' is neither"),
  "options in words": (video_r1_record(options="A or B"), "field 'options': is a text but not"),
  "options of a call": (
    video_r1_record(options="__import__('os').listdir()"),
    "field 'options': is a text but not a list",
  ),
  "deep options": (
    video_r1_record(options="[" * 100_000),
    "field 'options': is a text but not",
  ),
  "options of another kind": (
    video_r1_record(options="{'A': 'red'}"),
    "field 'options': is a text but not a list",
  ),
  "no answer tags": (video_r1_record(solution="A"), "field 'solution': is not of the form"),
  "wrong solution": (video_r1_record(solution="<answer>C</answer>"), "field 'answer': 'C' is none"),
}
BAD_RECORDS |= {
  f"no {field}": (record(**{field: None}), f"field '{field}' is missing")
  for field in ("id", "video", "question", "answer", "problem_type")
}
BAD_RECORDS |= {
  f"Video-R1, no {field}": (video_r1_record(**{field: None}), f"field '{field}' is missing")
  for field in ("problem_id", "data_type", "solution", "problem_type", "path")
}


@pytest.mark.parametrize("name", BAD_RECORDS)
def test_a_bad_record_is_an_error_of_one_line_with_file_line_and_field(tmp_path, name):
  value, problem = BAD_RECORDS[name]
  with pytest.raises(InputError, match=problem) as error:
    read(tmp_path, record(id="good"), value)
  assert str(error.value).startswith(f"{tmp_path / 'notes.jsonl'}:2: ")
  assert "\n" not in str(error.value)


def test_bad_records_can_be_passed_over(tmp_path):
  values = [value for value, _ in BAD_RECORDS.values()]
  path = annotation_files.write(tmp_path / "notes.jsonl", *values, record(id="good"))
  found = []
  (good,) = annotations.read(path, VIDEOS, on_bad=lambda where, error: found.append(where))
  assert good.example.id == "good"
  assert found == [f"{path}:{line + 1}" for line in range(len(values))]


def test_an_id_is_used_once_and_the_error_says_where_it_was_used_before(tmp_path):
  with pytest.raises(InputError, match=r"notes\.jsonl:3: field 'id': 'one' is taken by .*jsonl:1"):
    read(tmp_path, record(), record(id="two"), record())


OUTSIDE = {
  "shown": {"shown": [0, 10.5], "masked": None},
  "masked": {"masked": [8, 10.5]},
  "relevant": {"relevant": [[1, 2], [9, 10.5]]},
  "steps": {"steps": [{"text": "x", "start": 9, "end": 10.5}]},
  "states": {"states": [{"object": "x", "time": 10.5, "attribute": "colour", "value": "red"}]},
}


@pytest.mark.parametrize("field", OUTSIDE)
def test_a_time_after_the_end_of_the_video_is_an_error(tmp_path, field):
  with pytest.raises(InputError, match=rf":1: field '{field}': 10.5 s is outside .* of 10 s"):
    place_in_video(tmp_path, record(**OUTSIDE[field]))
  place_in_video(tmp_path, record(**OUTSIDE[field]), duration=10.46)


@pytest.mark.parametrize("fields", [{"shown": [0, 8.5]}, {"shown": [9, 10]}, {"shown": None}])
def test_what_is_masked_is_not_shown(tmp_path, fields):
  with pytest.raises(InputError, match="field 'masked': overlaps what is shown"):
    place_in_video(tmp_path, record(**fields))


@pytest.mark.parametrize(
  ("content", "problem"),
  [
    (None, "there is no such annotation file"),
    (b"", "holds no annotations"),
    (b"\n \n", "holds no annotations"),
    (b"\xff\xfe\x00", "is not UTF-8 text"),
    (b"[{]", "is not JSON"),
    (b"[]", "holds no annotations"),
    (gzip.compress(b"[]", mtime=0)[:-9], "is damaged gzip"),
    (gzip.compress(b"[]" * 9, mtime=0)[:12] + b"x" * 20, "is damaged gzip"),
    (gzip.compress(b"\xff", mtime=0), "is not UTF-8 text"),
  ],
)
def test_a_file_that_is_no_annotation_file_is_named(tmp_path, content, problem):
  path = tmp_path / "notes.json"
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(InputError, match=rf"notes\.json: {problem}"):
    annotations.read(path, VIDEOS, on_bad=fail)


@pytest.mark.parametrize(
  ("duration", "count"), [(64.0, 64), (100.0, 64), (301.3, 64), (41.9, 40), (43.0, 42)]
)
@pytest.mark.parametrize("frames", [[0], [12, 13, 14], [3, 20, 4], list(range(30, 40))])
def test_relevant_frames_of_a_pool_become_spans_that_hold_them(tmp_path, duration, count, frames):
  value = video_r1_record(relevant_sample_frames=frames)
  example = place_in_video(tmp_path, value, duration=duration)
  times = np.arange(int(2 * duration)) / 2
  rule = sampling.PoolRule(frames=count)
  pool = times[sampling.choose(times, times, example.shown, rule, where="")]
  assert retrieval_actions.relevant_frames(example, pool) == tuple(sorted(frames))
  assert len(example.relevant) == (2 if 20 in frames else 1)


def test_the_last_frame_of_a_pool_lasts_to_the_end_and_seconds_come_before_frames(tmp_path):
  value = video_r1_record(relevant_sample_frames=[63])
  assert place_in_video(tmp_path, value, duration=64.0).relevant == (
    records.Span(start=63.5, end=64.0),
  )
  value = record(relevant_sample_frames=[0])
  assert place_in_video(tmp_path, value).relevant[0] == records.Span(start=2.0, end=4.0)
  assert place_in_video(tmp_path, record(relevant=None, relevant_sample_frames=[])).relevant == ()


@pytest.mark.parametrize(
  ("frames", "says"),
  [
    ([64], "64 is no frame of a pool of 64"),
    ([-1], "needs whole numbers, 0 or more"),
    ([1.5], "needs whole numbers"),
    ([True], "needs whole numbers"),
    ("[3]", "is a text, not a list"),
  ],
)
def test_relevant_frames_that_are_none_of_the_pool_are_named(tmp_path, frames, says):
  value = video_r1_record(relevant_sample_frames=frames)
  with pytest.raises(InputError, match=f"field 'relevant_sample_frames': {says}"):
    place_in_video(tmp_path, value, duration=64.0)


@pytest.mark.parametrize(
  ("answer", "text"), [(3.0, "3"), (2.5, "2.5"), (1e3, "1000"), ("3.0", "3.0")]
)
def test_a_whole_number_of_json_has_no_decimals_and_a_text_stays_as_it_is(tmp_path, answer, text):
  value = record(answer=answer, problem_type="numerical", options=None, id=7.0)
  (found,) = read(tmp_path, value)
  assert (found.example.answer, found.example.id) == (text, "7")
  assert annotations.find_lines(tmp_path / "notes.jsonl") == {"7": f"{tmp_path}/notes.jsonl:1"}


def test_a_check_of_examples_is_asked_about_each_and_named_by_line(tmp_path):
  path = annotation_files.write(tmp_path / "notes.jsonl", record(id="a"), record(id="b"))
  problems = {"a": "", "b": "field 'answer': is odd"}
  with pytest.raises(InputError, match=r"notes\.jsonl:2: field 'answer': is odd"):
    annotations.read(path, VIDEOS, on_bad=fail, check=lambda example: problems[example.id])


def test_a_name_in_another_unicode_form_is_the_file_on_disk(tmp_path):
  composed, decomposed = "caf\u00e9.mp4", "cafe\u0301.mp4"
  for disk, told in ((composed, decomposed), (decomposed, composed)):
    path = annotation_files.write(tmp_path / "notes.jsonl", record(video=told))
    (found,) = annotations.read(path, {disk}, on_bad=fail)
    assert found.example.video == disk
  path = annotation_files.write(tmp_path / "notes.jsonl", record(video=composed))
  (found,) = annotations.read(path, {composed, decomposed}, on_bad=fail)
  assert found.example.video == composed
