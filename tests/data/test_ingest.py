import json
import os
import resource
import shutil
import subprocess

import numpy as np
import pytest

from tests.data import annotation_files, ffmpeg, videos
from vr_jax.data import examples, guarded_reader, ingest, sampling
from vr_jax.errors import InputError

record = annotation_files.record
CONFIG = ingest.IngestConfig(fps=1.0)
SKIP = ingest.IngestConfig(fps=1.0, on_bad="skip")


@pytest.fixture
def inputs(tmp_path):
  """Two videos with one question each."""
  for mark, name in enumerate(("a.mp4", "b.mp4")):
    videos.write(tmp_path / "videos" / name, mark=20 + 40 * mark)
  values = [record(id=name, video=name) for name in ("a.mp4", "b.mp4")]
  annotation_files.write(tmp_path / "notes.jsonl", *values)
  return tmp_path


def run(root, config=CONFIG, **arguments):
  return ingest.ingest(root / "videos", root / "notes.jsonl", root / "output", config, **arguments)


def left_in(root):
  return {path.name for path in root.iterdir()} - {"videos", "notes.jsonl"}


def test_everything_is_written_and_can_be_opened(ingested):
  assert ingested.report == ingest.Report(
    videos=10,
    frames=100,
    examples={"train": 24, "validation": 3, "test": 3},
    skipped_videos=0,
    skipped_records=0,
  )
  splits_of = {}
  for split, count in ingested.report.examples.items():
    source, store = ingest.open_split(ingested.output, split)
    assert len(source) == count
    for example in source:
      assert store.read(example.video, [0, 9]).shape == (2, 64, 64, 3)
      splits_of.setdefault(example.video, set()).add(split)
  assert len(splits_of) == 10
  assert all(len(splits) == 1 for splits in splits_of.values())
  assert not (ingested.output / "bad_records.jsonl").exists()


def test_each_video_is_decoded_once_and_only_if_asked_about(inputs, monkeypatch):
  values = [record(id=str(index), video="a.mp4") for index in range(9)]
  annotation_files.write(inputs / "notes.jsonl", *values)
  opened = []
  extract_all = guarded_reader.extract_all

  def note(paths, **settings):
    opened.extend(path.name for path in paths)
    return extract_all(paths, **settings)

  monkeypatch.setattr(guarded_reader, "extract_all", note)
  run(inputs)
  assert opened == ["a.mp4"]


def test_progress_is_told_after_each_video(inputs):
  calls, compared = [], []
  run(
    inputs,
    progress=lambda done, total: calls.append((done, total)),
    compared=lambda done, total: compared.append((done, total)),
  )
  assert calls == [(1, 2), (2, 2)]
  assert [done for done, _ in compared] == [*range(1, compared[0][1] + 1)]


def test_a_complete_output_is_left_as_it_is(inputs, monkeypatch):
  report = run(inputs)
  monkeypatch.setattr(guarded_reader, "extract_all", None)
  assert run(inputs) == report


@pytest.mark.parametrize("change", ["config", "another video", "a video"])
def test_an_output_of_other_inputs_or_another_config_is_named(inputs, change):
  run(inputs)
  config = CONFIG
  if change == "config":
    config = ingest.IngestConfig(fps=2.0)
  elif change == "another video":
    videos.write(inputs / "videos" / "c.mp4")
  else:
    videos.write(inputs / "videos" / "a.mp4", size=96)
  with pytest.raises(
    InputError, match="output: was ingested from other inputs or with another con"
  ):
    run(inputs, config)


def test_annotations_that_are_edited_or_more_are_named_and_ones_that_are_missing_do_no_harm(inputs):
  pattern, second = inputs / "notes*.jsonl", inputs / "notes2.jsonl"
  annotation_files.write(second, record(id="c", video="a.mp4"))
  ingest.ingest(inputs / "videos", pattern, inputs / "output", CONFIG)
  ingest.check_annotations(inputs / "output", pattern)
  (inputs / "notes.jsonl").rename(inputs / "moved.jsonl")
  ingest.check_annotations(inputs / "output", pattern)
  ingest.check_annotations(inputs / "output", inputs / "moved.jsonl")
  ingest.check_annotations(inputs / "output", inputs / "gone" / "notes*.jsonl")
  annotation_files.write(inputs / "notes3.jsonl", record(id="d", video="a.mp4"))
  with pytest.raises(InputError, match=r"notes3\.jsonl: is not as it was when .*/output was inges"):
    ingest.check_annotations(inputs / "output", pattern)
  (inputs / "moved.jsonl").rename(inputs / "notes.jsonl")
  with pytest.raises(InputError, match=r"notes3\.jsonl: is not as it was when .*/output was inges"):
    ingest.ingest(inputs / "videos", pattern, inputs / "output", CONFIG)
  older = json.loads((inputs / "output" / "ingest.json").read_text())
  del older["annotations"]
  (inputs / "output" / "ingest.json").write_text(json.dumps(older))
  ingest.check_annotations(inputs / "output", pattern)


@pytest.mark.parametrize("place", [100, 70_000, -1])
def test_a_video_edited_at_its_size_is_another_and_one_copied_is_not(inputs, place):
  path = inputs / "videos" / "a.mp4"
  content = bytearray(path.read_bytes().ljust(140_000, b"\0"))
  path.write_bytes(content)
  report = run(inputs)
  path.write_bytes(content)
  os.utime(path, (1, 1))
  assert run(inputs) == report
  content[place] ^= 1
  path.write_bytes(content)
  with pytest.raises(InputError, match="output: was ingested from other inputs"):
    run(inputs)


def test_a_directory_with_something_else_in_it_is_left_alone(inputs):
  (inputs / "output").mkdir()
  (inputs / "output" / "thesis.tex").touch()
  with pytest.raises(InputError, match="output: is not empty and holds no ingested data"):
    run(inputs)
  assert (inputs / "output" / "thesis.tex").exists()


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"fingerprint": 1}'])
def test_a_damaged_report_is_named(inputs, content):
  run(inputs)
  (inputs / "output" / "ingest.json").write_text(content)
  with pytest.raises(InputError, match=r"output"):
    run(inputs)


def test_what_a_killed_run_left_behind_is_cleared(inputs):
  (inputs / "output.partial" / "frames").mkdir(parents=True)
  (inputs / "output.partial" / "frames" / "half").touch()
  (inputs / "output").mkdir()
  run(inputs)
  assert left_in(inputs) == {"output"}
  assert not (inputs / "output" / "frames" / "half").exists()


BAD_INPUTS = {
  "missing directory": (lambda root: shutil.rmtree(root / "videos"), r"videos: there is no such"),
  "empty directory": (
    lambda root: [path.unlink() for path in (root / "videos").iterdir()],
    r"videos: the directory holds no videos",
  ),
  "truncated": (lambda root: videos.truncate(root / "videos" / "b.mp4", 0.5), r"b\.mp4: cannot be"),
  "zero bytes": (lambda root: (root / "videos" / "b.mp4").write_bytes(b""), r"b\.mp4: cannot be"),
  "audio only": (
    lambda root: videos.write_audio(root / "videos" / "b.mp4"),
    r"b\.mp4: has no video",
  ),
  "text": (
    lambda root: (root / "videos" / "b.mp4").write_text("text"),
    r"b\.mp4: cannot be decoded",
  ),
  "too short": (
    lambda root: videos.write(root / "videos" / "b.mp4", frames=24),
    r"notes\.jsonl:2: field 'shown': 8 s is outside",
  ),
  "bad record": (
    lambda root: annotation_files.write(root / "notes.jsonl", record(answer="Z")),
    r"notes\.jsonl:1: field 'answer'",
  ),
  "no annotations": (lambda root: (root / "notes.jsonl").unlink(), r"notes\.jsonl: cannot be read"),
}


@pytest.mark.parametrize("name", BAD_INPUTS)
def test_bad_input_stops_the_run_and_leaves_nothing(inputs, name):
  spoil, problem = BAD_INPUTS[name]
  spoil(inputs)
  with pytest.raises(InputError, match=problem) as error:
    run(inputs)
  assert "\n" not in str(error.value)
  assert not left_in(inputs)


@pytest.mark.parametrize(
  "rule",
  [
    sampling.UniformRule(frames=10, required=10),
    sampling.RateRule(fps=1.0, min_frames=10, required=10),
  ],
  ids=str,
)
def test_a_question_that_is_shown_fewer_frames_than_required_is_bad(inputs, rule):
  config = ingest.IngestConfig(fps=1.0, rule=rule)
  with pytest.raises(InputError, match=r"notes\.jsonl:1: 0 to 8 s .* holds 8 stored frames, .* 10"):
    run(inputs, config)


def test_skipping_leaves_out_counts_and_lists_what_is_bad(inputs):
  (inputs / "videos" / "bad.mp4").write_bytes(b"")
  good = [record(id=str(index), video=name) for index, name in enumerate(["a.mp4", "b.mp4"] * 2)]
  bad = [
    "{",
    record(id="0"),
    record(id="5", video="bad.mp4"),
    record(id="6", video="bad.mp4"),
    record(id="7", shown=[0, 20], masked=None),
    record(id="8", shown=[0.2, 0.7], masked=None),
  ]
  annotation_files.write(inputs / "notes.jsonl", *good, *bad)
  report = run(inputs, SKIP)
  assert (report.videos, report.skipped_videos, report.skipped_records) == (2, 1, 6)
  assert sum(report.examples.values()) == 4
  lines = (inputs / "output" / "bad_records.jsonl").read_text().splitlines()
  listed = {entry["where"]: entry["problem"] for entry in map(json.loads, lines)}
  notes = inputs / "notes.jsonl"
  assert list(listed) == [
    *(f"{notes}:{line}" for line in (5, 6)),
    str(inputs / "videos" / "bad.mp4"),
    *(f"{notes}:{line}" for line in (7, 8, 9, 10)),
  ]
  assert listed[f"{notes}:6"] == f"field 'id': '0' is taken by {notes}:1"
  assert listed[f"{notes}:7"].startswith("its video is bad")
  assert "of 0.2 to 0.7 s no frame is stored" in listed[f"{notes}:10"]
  assert run(inputs, SKIP) == report


def test_skipping_everything_is_an_error(inputs):
  annotation_files.write(inputs / "notes.jsonl", record(answer="Z"))
  with pytest.raises(InputError, match=r"not one good record is left; first, .*:1: field 'answer'"):
    run(inputs, SKIP)
  assert not left_in(inputs)


@pytest.mark.parametrize(
  "fields",
  [{"on_bad": "ignore"}, {"quality": 0}, {"fps": 0.0}, {"max_side": 0}],
)
def test_a_config_that_makes_no_sense_is_an_error_that_names_the_field(fields):
  with pytest.raises(InputError, match=f"data.{next(iter(fields))}"):
    ingest.IngestConfig(**fields)


def test_a_rule_that_samples_faster_than_frames_are_kept_is_an_error():
  with pytest.raises(InputError, match="4 frames a second are more than the 2 stored"):
    ingest.IngestConfig(fps=2.0, rule=sampling.RateRule(fps=4.0))


def test_an_output_for_another_rule_is_named(inputs):
  run(inputs)
  with pytest.raises(InputError, match=r"output: was ingested from .* with another config"):
    run(inputs, ingest.IngestConfig(fps=1.0, rule=sampling.UniformRule(frames=4)))


@pytest.mark.parametrize("seed", range(2))
def test_copies_of_a_video_are_on_one_side_of_the_split_and_named(inputs, seed):
  videos_directory = inputs / "videos"
  videos.write(videos_directory / "c.mp4", mark=140)
  shutil.copy(videos_directory / "a.mp4", videos_directory / "renamed.mp4")
  ffmpeg.run("-i", videos_directory / "b.mp4", "-c", "copy", videos_directory / "remuxed.mkv")
  (videos_directory / "linked.mp4").symlink_to("c.mp4")
  copies = {"renamed.mp4": "a.mp4", "remuxed.mkv": "b.mp4", "linked.mp4": "c.mp4"}
  names = [*copies.values(), *copies]
  annotation_files.write(inputs / "notes.jsonl", *(record(id=name, video=name) for name in names))
  report = run(
    inputs,
    ingest.IngestConfig(
      fps=1.0, split_seed=seed, rule=sampling.UniformRule(frames=8),
      validation_fraction=0.33, test_fraction=0.33,
    ),
  )  # fmt: skip
  assert report.copies == copies
  assert report.examples == {"train": 2, "validation": 2, "test": 2}
  for split in examples.SPLITS:
    source = examples.ExampleSource(inputs / "output", split)
    first, second = sorted((example.video for example in source), key=names.index)
    assert copies[second] == first


def test_videos_that_differ_in_one_frame_are_no_copies(inputs):
  pictures = [videos.picture(index) for index in range(80)]
  pictures[40] = videos.picture(0, mark=200)
  videos.write(inputs / "videos" / "b.mp4", pictures=pictures)
  assert run(inputs).copies == {}


def test_split_fractions_over_one_are_an_error(inputs):
  with pytest.raises(InputError, match="split fractions"):
    run(inputs, ingest.IngestConfig(fps=1.0, test_fraction=0.8, validation_fraction=0.3))


def make_noise_videos(root):
  """Videos of noise: large enough that a disk may fill up in the middle of any output file."""
  rng = np.random.default_rng(0)
  noise = [rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(80)]
  for name in ("a.mp4", "b.mp4"):
    videos.write(root / "videos" / name, pictures=noise)


def test_a_full_disk_is_an_error_and_leaves_nothing(inputs):
  disk = inputs / "disk"
  disk.mkdir()
  mounted = subprocess.run(
    ["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", str(disk)], capture_output=True, check=False
  )
  if mounted.returncode:
    pytest.skip("mounting a small disk needs root; the test with a file size limit covers it")
  make_noise_videos(inputs)
  failures = 0
  try:
    for size in [*range(8, 600, 48), 2000]:
      subprocess.run(["mount", "-o", f"remount,size={size}k", str(disk)], check=True)
      try:
        ingest.ingest(inputs / "videos", inputs / "notes.jsonl", disk / "output", CONFIG)
        break
      except InputError as error:
        failures += 1
        assert "No space left on device" in str(error)
        assert "\n" not in str(error)
        assert not list(disk.iterdir())
    assert failures > 5
    assert examples.ExampleSource(disk / "output", "train")[0].video
  finally:
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_refuses_bytes_is_an_error_and_leaves_nothing(inputs):
  make_noise_videos(inputs)
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  failures = 0
  try:
    for size in (0, 100, 1000, 40_000, 100_000, 10_000_000):
      resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
      try:
        run(inputs)
      except InputError as error:
        failures += 1
        assert "File too large" in str(error)
        assert not left_in(inputs)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  assert failures == 5
