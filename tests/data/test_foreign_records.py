"""Records and files of other trainers, and fields that are meant otherwise: each is one line."""

import json
from pathlib import Path
import subprocess
import sys

import pytest

from tests import own_code
from tests.data import annotation_files
from vr_jax import records
from vr_jax.data import annotations
from vr_jax.errors import InputError

record = annotation_files.record
video_r1_record = annotation_files.video_r1_record
VIDEOS, fail, read = annotation_files.VIDEOS, annotation_files.fail, annotation_files.read


FOREIGN = {
  "LLaVA": {
    "id": "q",
    "video": "a.mp4",
    "conversations": [
      {"from": "human", "value": "<video>\nWhat falls?"},
      {"from": "gpt", "value": "a cup"},
    ],
  },
  "messages": {
    "videos": ["a.mp4"],
    "messages": [
      {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What falls?"}]},
      {"role": "assistant", "content": "a cup"},
    ],
  },
  "verl": {
    "data_source": "mine",
    "videos": [{"video": "a.mp4"}],
    "prompt": [{"role": "user", "content": "<video>What falls?"}],
    "reward_model": {"style": "rule", "ground_truth": "a cup"},
  },
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_record_of_another_trainer_is_named_and_the_program_of_the_docs_converts_it(
  tmp_path, name
):
  with pytest.raises(InputError, match=r"jsonl:1: .*data\.md#records-of-other-trainers\)$"):
    read(tmp_path, FOREIGN[name])
  (tmp_path / "theirs.json").write_text(json.dumps([FOREIGN[name]]))
  (program,) = (text for text in own_code.blocks("data.md", "python") if "def convert" in text)
  (tmp_path / "convert.py").write_text(program)
  command = [sys.executable, "convert.py", "theirs.json", "ours.jsonl"]
  subprocess.run(command, cwd=tmp_path, check=True)
  (found,) = annotations.read(tmp_path / "ours.jsonl", VIDEOS, on_bad=fail)
  asked = found.example
  assert (asked.video, asked.question, asked.answer) == ("a.mp4", "What falls?", "a cup")


@pytest.mark.parametrize(
  ("fields", "says"),
  [
    ({"answer": None, "anwser": "B"}, "field 'answer' is missing; is 'anwser' meant?"),
    ({"video": None, "video_path": "a.mp4"}, "field 'video' is missing; is 'video_path' meant?"),
    ({"id": None, "question_id": "x"}, "field 'id' is missing; is 'question_id' meant?"),
    ({"problem_type": None, "question_type": "x"}, "is 'question_type' meant?"),
    ({"shown": None, "shwon": [0, 8]}, "field 'shwon' is unknown; is 'shown' meant?"),
    ({"steps": None, "step": []}, "field 'step' is unknown; is 'steps' meant?"),
    ({"shown": None, "start": 0, "end": 8}, "field 'start' would be ignored: .* 'shown': .start"),
    ({"shown": None, "video_start": 0.5}, "field 'video_start' would be ignored"),
    ({"shown": None, "timestamps": [0, 8]}, "field 'timestamps' would be ignored"),
    ({"shown": None, "startTime": "00:03"}, "field 'startTime' would be ignored"),
    ({"shown": None, "end_sec": "8.5"}, "field 'end_sec' would be ignored"),
    ({"shown": None, "start_frame": 10}, "field 'start_frame' would be ignored"),
    ({"shown": None, "timestamps": [[0, 8]]}, "field 'timestamps' would be ignored"),
    ({"shown": None, "clip": {"start": 0, "end": 8}}, "field 'clip' would be ignored"),
    ({"shown": None, "time_range": "0:03 - 0:08"}, "field 'time_range' would be ignored"),
    ({"steps": ["A cup falls."]}, "field 'steps': needs objects with text$"),
    ({"options": ["A. red", "B. "]}, "field 'options': 'B. ' is a letter without a text"),
    ({"options": ["A", "B"]}, "field 'options': 'A' is a letter without a text"),
    ({"video": "https://x.org/a.mp4"}, "field 'video': 'https://x.org/a.mp4' is an address"),
    ({"video": "hf://datasets/x/a.mp4"}, "is an address; download it into the video directory"),
    ({"video": "a"}, "there is no file 'a' among the videos; is 'a.mp4' meant?"),
    ({"video": "b.mp4"}, "is 'deep/b.mp4' meant?"),
    ({"video": "deep\\b.mp4"}, "is 'deep/b.mp4' meant?"),
  ],
)
def test_a_field_that_is_meant_otherwise_is_named_with_what_to_write(tmp_path, fields, says):
  with pytest.raises(InputError, match=f"jsonl:1: .*{says}"):
    read(tmp_path, record(**fields))


@pytest.mark.parametrize(
  "fields",
  [
    {"question_id": "x"},
    {"answers": ["B"], "optional": 1, "sources": "x"},
    {"start": 0, "end": 8},
    {"shown": None, "masked": None, "start": None, "clip": "one", "timestamps": [1, 2, 3]},
    {"shown": None, "masked": None, "clip": "12-34", "start_state": "3", "time": "2024-01-02"},
    {"shown": None, "masked": None, "duration": 10.0, "end": "red", "start_and_end": 3},
  ],
)
def test_other_fields_beside_the_right_ones_are_the_users_own(tmp_path, fields):
  (found,) = read(tmp_path, record(**fields))
  assert found.example.extra == {name: value for name, value in fields.items() if value is not None}


def test_what_is_shown_may_be_said_in_records_of_the_video_r1_family(tmp_path):
  with pytest.raises(InputError, match="field 'start' would be ignored"):
    read(tmp_path, video_r1_record(start=0, end=4))
  (found,) = read(tmp_path, video_r1_record(start=0, end=4, shown=[0, 4], masked=[4, 6]))
  assert found.example.shown == records.Span(start=0.0, end=4.0)
  assert found.example.masked == records.Span(start=4.0, end=6.0)
  assert found.example.extra == {"start": 0, "end": 4}


@pytest.mark.parametrize(
  ("content", "says"),
  [
    (b"PAR1\xff\x15\x04", "is Parquet; write one JSON object a line"),
    (b"\x28\xb5\x2f\xfd\xff", "is Zstandard"),
    (b"PK\x03\x04\xff", "is a zip archive"),
    (b"id,video,question\n1,a.mp4,What?\n", "is a table, not JSON"),
    (b'{\n "data": [\n  {}\n ]\n}\n', "is one JSON object, .*; write the list in its field 'data'"),
    (b'{"q1":\n {}}\n', "is one JSON object, .*; write a list of such objects"),
  ],
)
def test_a_file_of_another_kind_is_named(tmp_path, content, says):
  (tmp_path / "notes.json").write_bytes(content)
  with pytest.raises(InputError, match=rf"notes\.json: {says}"):
    annotations.read(tmp_path / "notes.json", VIDEOS, on_bad=fail)


@pytest.mark.parametrize(
  ("place", "says"),
  [
    ("owner/some-data", "hf download owner/some-data --repo-type=dataset --local-dir=some-data"),
    ("https://x.org/notes.jsonl", "is an address; download it"),
    ("s3://bucket/notes.jsonl", "is an address; download it"),
    ("missing.jsonl", r"missing\.jsonl: there is no such annotation file"),
  ],
)
def test_an_id_on_the_hub_and_an_address_are_no_paths(tmp_path, monkeypatch, place, says):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(InputError, match=says):
    annotations.read(Path(place), VIDEOS, on_bad=fail)
