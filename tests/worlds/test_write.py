import errno
import json

import av
import pytest

from vr_jax import errors, records
from vr_jax.worlds import config as config_lib
from vr_jax.worlds import render, write

TINY = config_lib.WorldConfig(
  height=112,
  width=112,
  rows=2,
  columns=2,
  objects_max=2,
  behaviours=("cycle", "grow", "move"),
  families=("choice", "name", "visits"),
)
# One shape, one behaviour: few enough scenes that two videos soon draw the same.
SMALL = config_lib.WorldConfig(
  height=32,
  width=32,
  rows=2,
  columns=2,
  fps=1,
  objects_max=1,
  shapes=("circle",),
  colours=("red", "green", "blue", "yellow"),
  behaviours=("grow",),
  families=("name",),
)


def lines(directory):
  return [json.loads(line) for line in (directory / "annotations.jsonl").open(encoding="utf-8")]


def write_tiny(directory, **changes):
  fields = {"videos": 3, "seed": 1, "questions_per_video": 2} | changes
  return write.write_dataset(directory, TINY, **fields)


def test_the_same_seed_gives_the_same_bytes(tmp_path):
  for name in ("a", "b"):
    assert write_tiny(tmp_path / name) == 6
  files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
  assert [str(file) for file in files] == [
    "annotations.jsonl", "videos/000000.mp4", "videos/000001.mp4", "videos/000002.mp4"
  ]  # fmt: skip
  for file in files:
    assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def looks(examples):
  """What a video shows: every state of every object, in the order of time."""
  return examples[0].states


def test_no_two_videos_of_a_data_set_look_the_same(tmp_path):
  drawn = [write.sample_video(SMALL, seed=0, index=k, questions=1)[1] for k in range(30)]
  assert len(set(map(looks, drawn))) < 30, "the world is too large for this test"
  write.write_dataset(tmp_path / "data", SMALL, videos=30, seed=0, questions_per_video=1)
  assert len({json.dumps(line["states"]) for line in lines(tmp_path / "data")}) == 30


def test_a_world_with_fewer_scenes_than_videos_is_an_error_that_says_how_many_there_were():
  with pytest.raises(errors.InputError, match=r"no new scene after \d+ of 2000 videos"):
    list(write.distinct_videos(SMALL, videos=2000, seed=0, questions=1))


def test_a_larger_data_set_starts_with_the_smaller_one(tmp_path):
  write_tiny(tmp_path / "small", videos=2)
  write_tiny(tmp_path / "large")
  assert lines(tmp_path / "large")[:4] == lines(tmp_path / "small")


def test_a_line_holds_the_fields_of_an_example_in_their_json_form(tmp_path):
  write_tiny(tmp_path / "data")
  for line in lines(tmp_path / "data"):
    assert set(line) == {
      "id", "video", "question", "options", "answer", "problem_type", "shown", "masked", "relevant",
      "states", "steps", "source",
    }  # fmt: skip
    assert (tmp_path / "data" / "videos" / line["video"]).is_file()
    assert line["problem_type"] in records.PROBLEM_TYPES
    assert (line["shown"], line["masked"], line["source"]) == ([0, 8], [8, 10], "simulator")
    assert all(0 <= start < end <= 8 for start, end in line["relevant"])
    assert set(line["states"][0]) == {"object", "time", "attribute", "value"}
    assert [step["start"] for step in line["steps"]] == [0, 2, 4, 6, 8]
    assert all(f"{step['start']:g}s" in step["text"] for step in line["steps"])
    if line["options"]:
      assert line["answer"] in [option[0] for option in line["options"]]
  assert len({line["id"] for line in lines(tmp_path / "data")}) == 6


def test_annotations_say_what_sample_video_says(tmp_path):
  write_tiny(tmp_path / "data")
  expected = [
    json.loads(json.dumps(write.to_json(example)))
    for index in range(3)
    for example in write.sample_video(TINY, seed=1, index=index, questions=2)[1]
  ]
  assert lines(tmp_path / "data") == expected


def test_videos_have_the_length_and_size_of_the_config(tmp_path):
  write_tiny(tmp_path / "data", videos=1)
  with av.open(str(tmp_path / "data" / "videos" / "000000.mp4")) as container:
    frames = list(container.decode(video=0))
  assert len(frames) == 80
  assert (frames[0].height, frames[0].width) == (112, 112)
  assert frames[-1].time == pytest.approx(79 / 8)


def test_progress_is_told_after_each_video(tmp_path):
  told = []
  write_tiny(tmp_path / "data", progress=lambda done, total: told.append((done, total)))
  assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_directory_that_holds_something_is_left_alone(tmp_path):
  (tmp_path / "notes.txt").write_text("mine")
  with pytest.raises(errors.InputError, match="is not an empty directory"):
    write_tiny(tmp_path)
  assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("fields", [{"videos": 0}, {"questions_per_video": 0}])
def test_nothing_to_write_is_refused(tmp_path, fields):
  with pytest.raises(errors.InputError, match="must be 1 or more"):
    write_tiny(tmp_path / "data", **fields)


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
  real = render.write_video

  def full(path, frames, fps):
    if path.name == "000001.mp4":
      raise OSError(errno.ENOSPC, "No space left on device")
    real(path, frames, fps)

  monkeypatch.setattr(render, "write_video", full)
  with pytest.raises(errors.InputError, match=r"data: cannot be written \(No space left"):
    write_tiny(tmp_path / "data")
  assert list(tmp_path.iterdir()) == []


def test_too_many_questions_leave_nothing_behind(tmp_path):
  with pytest.raises(errors.InputError, match="ask fewer"):
    write_tiny(tmp_path / "data", questions_per_video=50)
  assert list(tmp_path.iterdir()) == []


def test_a_run_that_was_killed_is_written_anew(tmp_path):
  partial = tmp_path / "data.partial" / "videos"
  partial.mkdir(parents=True)
  (partial / "999999.mp4").write_bytes(b"half")
  write_tiny(tmp_path / "data")
  assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
  assert not (tmp_path / "data" / "videos" / "999999.mp4").exists()
