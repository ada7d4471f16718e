"""Duplicates among questions, by text, and videos with the same frames, also re-encoded."""

import dataclasses

import numpy as np
from PIL import Image
import pytest

from tests.data import ffmpeg
from tests.traces import construct_runs as runs
from vr_jax import errors
from vr_jax.data import guarded_reader, ingest, video_file
from vr_jax.traces.construct import (
  benchmark_files,
  duplicates,
  frame_hashes,
  read_frames,
  video_files,
)
from vr_jax.worlds import render
from vr_jax.worlds import write as worlds_write


def record(name, video="a.mp4", question="What colour will the cup be at 8s?", **changes):
  steps = [f"At {2 * n}s, the cup is {colour}." for n, colour in enumerate(("red", "blue", "red"))]
  return {
    "id": name,
    "video": video,
    "question": question,
    "options": ["A. blue", "B. red"],
    "answer": "A",
    "steps": [{"text": text, "start": 0, "end": 2} for text in steps],
    **changes,
  }


def found(*records, copies=None, threshold=0.9):
  one = copies or {}
  return [
    (index, reason)
    for index, reason, _ in duplicates.find(records, lambda v: one.get(v, v), threshold)
  ]


def test_a_question_that_is_there_twice_is_a_duplicate_whatever_case_order_and_video():
  again = record("2", video="b.mp4", options=["A. RED", "B. blue."], answer="B")
  assert found(record("1"), again, record("3")) == [(1, "duplicate"), (2, "duplicate")]


def test_other_words_for_the_same_question_about_a_video_or_its_copy_are_a_near_duplicate():
  long = "Look at the whole video and tell me which colour you expect of the cup at {}8s?"
  trace = [{"text": "Another trace.", "start": 0, "end": 2}]
  one = record("1", question=long.format(""))
  other = record("2", video="b.mp4", question=long.format(" "), steps=trace)
  assert found(one, other) == []
  assert found(one, other, copies={"b.mp4": "a.mp4"}) == [(1, "near-duplicate")]


def test_texts_that_differ_in_a_word_of_the_question_are_near_duplicates_across_videos():
  long = "The video that you were shown now goes on for long. What is the colour of the cup {}8s?"
  texts = [
    f"At {n}s, in front of the window, on the old table near the door, the cup of the tall woman, "
    "who has come in from the garden just now, is red."
    for n in range(6)
  ]
  steps = [{"text": text, "start": 0, "end": 2} for text in texts]
  one = record("1", question=long.format("at "), steps=steps)
  other = record("2", video="b.mp4", question=long.format("by "), steps=steps)
  assert found(one, other) == [(1, "near-duplicate")]
  steps = [*steps[:-1], steps[-1] | {"text": texts[-1].replace("red", "blue and full of tea")}]
  assert found(one, record("2", video="b.mp4", question=long, steps=steps)) == []


def test_questions_whose_traces_differ_in_one_value_are_kept():
  other = record("2", video="b.mp4")
  other["steps"] = [other["steps"][0] | {"text": "At 0s, the cup is green."}, *other["steps"][1:]]
  assert found(record("1"), other) == []


@pytest.fixture(scope="module")
def films(tmp_path_factory):
  """Three videos of simulated scenes, a re-encoded, scaled and shorter one, and a black one."""
  directory = tmp_path_factory.mktemp("films")
  world = dataclasses.replace(runs.world(), height=128, width=128, fps=4)
  for number in range(3):
    scene, _ = worlds_write.sample_video(world, seed=8, index=number, questions=1)
    images = (frame.image for frame in render.iterate_frames(scene))
    render.write_video(directory / f"{number}.mp4", images, scene.fps)
  low = ("-vf", "scale=96:72,eq=brightness=0.05", "-c:v", "libx264", "-crf", "34", "-r", "5")
  ffmpeg.run("-i", directory / "0.mp4", "-t", "8", *low, directory / "again.mkv")
  (directory / "copy.mp4").write_bytes((directory / "0.mp4").read_bytes())
  black = "color=c=black:s=64x64:r=4:d=6"
  ffmpeg.run("-f", "lavfi", "-i", black, "-c:v", "libx264", directory / "black.mp4")
  return directory


def frames(films, *names, cache, on_bad=None):
  return read_frames.read(
    films,
    names,
    cache,
    fps=1.0,
    limits=guarded_reader.DecodeLimits(processes=1),
    on_bad=on_bad or ingest.BadInputs("stop"),
  )


def test_a_re_encoded_clip_is_found_and_other_scenes_are_not(films, tmp_path):
  known = frames(films, "0.mp4", "black.mp4", cache=tmp_path)
  index = frame_hashes.HashedFrames(known, similarity=0.7, share=0.5)
  again, one, two, copy, black = frames(
    films, "again.mkv", "1.mp4", "2.mp4", "copy.mp4", "black.mp4", cache=tmp_path
  )
  assert not set(again.checksums) & set(known[0].checksums)
  assert "look like those of 0.mp4" in index.find(again)
  assert index.find(one) == index.find(two) == ""
  assert "frames are those of 0.mp4" in index.find(copy)
  black = dataclasses.replace(black, checksums=tuple(range(len(black.checksums))))
  assert index.find(black) == ""  # a black frame is like no other


def test_videos_with_the_same_frames_are_copies_of_the_first_by_name(films, tmp_path):
  found = frames(films, "copy.mp4", "0.mp4", "1.mp4", cache=tmp_path)
  assert frame_hashes.find_copies(found) == {"copy.mp4": "0.mp4"}


def test_frames_are_read_once_and_bad_files_are_named(films, tmp_path, monkeypatch):
  folder = tmp_path / "v"
  folder.mkdir()
  (folder / "a.mp4").write_bytes((films / "1.mp4").read_bytes())
  (folder / "b.mp4").write_bytes(b"no video")
  bad, opened = ingest.BadInputs("skip"), []
  extract = guarded_reader.extract_all
  monkeypatch.setattr(
    guarded_reader,
    "extract_all",
    lambda files, **how: (opened.append([path.name for path in files]), extract(files, **how))[1],
  )
  first = frames(folder, "a.mp4", "b.mp4", cache=tmp_path / "c", on_bad=bad)
  second = frames(folder, "a.mp4", "b.mp4", cache=tmp_path / "c", on_bad=bad)
  assert opened == [["a.mp4", "b.mp4"], ["b.mp4"]]  # what was bad may be readable another time
  assert [f.to_json() for f in first] == [f.to_json() for f in second] and len(first) == 1
  assert [entry["where"].endswith("b.mp4") for entry in bad.entries] == [True, True]
  (file,) = (tmp_path / "c").iterdir()
  file.write_text("{}\n{}\n")
  with pytest.raises(errors.InputError, match="is damaged; remove it"):
    frames(folder, "a.mp4", "b.mp4", cache=tmp_path / "c", on_bad=bad)


def test_a_video_that_was_bad_under_a_limit_is_read_with_a_higher_one(films, tmp_path):
  bad = ingest.BadInputs("skip")

  def read(limits):
    return read_frames.read(films, ["0.mp4"], tmp_path, fps=1.0, limits=limits, on_bad=bad)

  assert read(guarded_reader.DecodeLimits(processes=1, megapixels=0.001)) == []
  assert len(bad.entries) == 1
  assert len(read(guarded_reader.DecodeLimits(processes=1))) == 1 and len(bad.entries) == 1


def test_noise_of_a_flat_picture_sets_no_bits():
  rng = np.random.default_rng(0)
  flat = (100 + rng.integers(-2, 3, (90, 120))).astype(np.uint8)
  assert np.unpackbits(frame_hashes.hash_frame(flat)).sum() == 0
  edge = flat.copy()
  edge[:, 60:] += 100
  assert np.unpackbits(frame_hashes.hash_frame(edge)).sum() >= 16


def captioned(video, end=6.0):
  value = runs.man(video_path=video, timestamp=[0, 8], keyframe=[0, 2, 4, end])
  return runs.parsed(value)


def test_files_of_videos_are_found_where_archives_put_them_and_missing_ones_named(films, tmp_path):
  folder = tmp_path / "videos"
  inside = folder / "pexels_videos_1"  # of the archive that the line names
  inside.mkdir(parents=True)
  (inside / "one.mp4").write_bytes((films / "1.mp4").read_bytes())
  made = runs.config(1)
  made.construct.update(videos=str(folder), captions="c.jsonl")
  bad = ingest.BadInputs("skip")
  videos = [captioned("pexels/one.mp4"), captioned("pexels/none.mp4")]
  kept, known = video_files.look(videos, made, tmp_path / "c", bad)
  assert [video.video for video in kept] == ["pexels_videos_1/one.mp4"]
  assert known.compared and known.comparison is None
  assert "there is no file 'pexels/none.mp4'" in bad.entries[0]["problem"]
  late = runs.parsed(runs.man(video_path="one.mp4", timestamp=[0, 60], keyframe=[0, 2, 4, 40]))
  with pytest.raises(
    errors.InputError, match=r"until 40 s, but 'pexels_videos_1/one\.mp4' lasts 12"
  ):
    video_files.look([late], made, tmp_path / "c", ingest.BadInputs("stop"))
  assert video_file.find(folder) == ("pexels_videos_1/one.mp4",)


@pytest.mark.parametrize(
  ("file", "path", "fits"),
  [
    ("mixkit/1.mp4", "pexels/1.mp4", False),
    ("pexels/mixkit/1.mp4", "pexels/1.mp4", False),
    ("a/pexels/1.mp4", "pexels/1.mp4", True),
    ("pexels_videos_1/pexels/1.mp4", "pexels/1.mp4", True),
    ("pexels_videos_1/1.mp4", "pexels/1.mp4", True),
    ("pexels_videos_2/1.mp4", "pexels/1.mp4", False),
    ("1.mp4", "pexels/1.mp4", True),
    ("b/1.mp4", "a/b/1.mp4", True),
    ("c/1.mp4", "1.mp4", True),
  ],
)
def test_a_caption_never_gets_the_video_of_another_folder(films, tmp_path, file, path, fits):
  (tmp_path / "v" / file).parent.mkdir(parents=True)
  (tmp_path / "v" / file).write_bytes((films / "1.mp4").read_bytes())
  bad = ingest.BadInputs("skip")
  made = runs.config(videos=str(tmp_path / "v"), captions="c.jsonl")
  kept, _ = video_files.look([captioned(path)], made, tmp_path / "c", bad)
  assert [video.video for video in kept] == ([file] if fits else [])
  assert len(bad.entries) == (not fits)


def test_two_paths_of_captions_are_never_one_file(films, tmp_path):
  (tmp_path / "v").mkdir()
  (tmp_path / "v" / "1.mp4").write_bytes((films / "1.mp4").read_bytes())
  made = runs.config(videos=str(tmp_path / "v"), captions="c.jsonl")
  videos = [captioned(path) for path in ("pexels/1.mp4", "mixkit/1.mp4", "pexels/1.mp4")]
  bad = ingest.BadInputs("skip")
  kept, _ = video_files.look(videos, made, tmp_path / "c", bad)
  assert [video.video for video in kept] == ["1.mp4", "1.mp4"]
  assert "'mixkit/1.mp4' and 'pexels/1.mp4' would both be '1.mp4'" in bad.entries[0]["problem"]
  bad = ingest.BadInputs("skip")
  video_files.look([*videos[:1], captioned("1.mp4")], made, tmp_path / "c", bad)
  assert "'pexels/1.mp4' and '1.mp4' would both be" in bad.entries[0]["problem"]


def hashed(name, numbers):
  """A video of frames that are alike only where they have the same number; no checksum is."""
  rng = np.random.default_rng(sum(map(ord, name)))
  rows = [np.random.default_rng(n).integers(0, 256, 128, np.uint8) for n in numbers]
  return frame_hashes.FrameHashes(
    name=name,
    checksums=tuple(map(int, rng.integers(0, 2**32, len(rows)))),
    times=tuple(map(float, range(len(rows)))),
    hashes=np.array(rows),
    duration=float(len(rows)),
  )


def test_a_short_video_inside_of_a_long_one_is_found_whichever_is_the_benchmarks():
  long, short, other = hashed("a", range(40)), hashed("b", range(20, 26)), hashed("c", [25, 99, 98])
  for one, two in ((long, short), (short, long)):
    found = frame_hashes.HashedFrames([other, one], similarity=0.7, share=0.5).find(two)
    assert found == f"6 of 6 frames look like those of {one.name}"
    same = dataclasses.replace(two, checksums=one.checksums[: len(two.checksums)])
    assert " of 6 frames are those of" in frame_hashes.HashedFrames(
      [one], similarity=0.7, share=0.5
    ).find(same)
  assert not frame_hashes.HashedFrames([other], similarity=0.7, share=0.5).find(long)
  still = hashed("d", [25] * 40)  # is like one of the other's three frames, however often
  assert not frame_hashes.HashedFrames([other], similarity=0.7, share=0.5).find(still)


def test_only_frames_of_the_captioned_span_are_compared(films, tmp_path):
  benchmark, folder = tmp_path / "benchmark", tmp_path / "v"
  benchmark.mkdir()
  folder.mkdir()
  small = ("-vf", "scale=96:72,eq=brightness=0.05", "-c:v", "libx264", "-crf", "34", "-r", "4")
  ffmpeg.run("-i", films / "0.mp4", *small, benchmark / "x.mp4")
  join = "[0:v][1:v][2:v]concat=n=3:v=1"
  parts = (arg for number in (0, 1, 2) for arg in ("-i", films / f"{number}.mp4"))
  ffmpeg.run(*parts, "-filter_complex", join, "-c:v", "libx264", folder / "1.mp4")
  made = runs.config(videos=str(folder), benchmarks=str(benchmark), captions="c.jsonl")

  def found(*starts):
    videos = [
      runs.parsed(runs.man(video_path="1.mp4", timestamp=[start, start + 11])) for start in starts
    ]
    _, known = video_files.look(videos, made, tmp_path / "c", ingest.BadInputs("stop"))
    return known.in_benchmark

  assert "look like those of x.mp4" in found(0)["1.mp4"]
  assert found(13) == {} and set(found(13, 0)) == {"1.mp4"}


def test_frames_of_a_benchmarks_folders_are_compared_and_what_is_not_is_named(films, tmp_path):
  benchmark = tmp_path / "benchmark"
  (benchmark / "tvqa" / "x").mkdir(parents=True)
  (benchmark / "images").mkdir()
  ffmpeg.run("-i", films / "1.mp4", "-vf", "fps=3", "-q:v", "4", benchmark / "tvqa/x/%05d.jpg")
  for number, side in enumerate((40, 60)):
    Image.new("RGB", (side, side)).save(benchmark / "images" / f"{number}.png")
  for name in ("videos.zip", "questions.json", "README", "LICENSE", "blobs/9f3a", "v_1"):
    (benchmark / name).parent.mkdir(exist_ok=True)
    (benchmark / name).write_bytes(b"[]")
  made = runs.config(1)
  made.construct.update(videos=str(films), benchmarks=str(benchmark), captions="c.jsonl")
  videos = [captioned(f"{number}.mp4") for number in range(3)]
  _, known = video_files.look(videos, made, tmp_path / "c", ingest.BadInputs("stop"))
  assert [*known.in_benchmark] == ["1.mp4"]
  assert "look like those of tvqa/x" in known.in_benchmark["1.mp4"]
  found = known.comparison
  assert found is not None and (found.videos, found.folders) == (0, 1)
  assert [*found.not_compared] == ["images", "blobs/9f3a", "v_1", "videos.zip"]
  assert "pixels" in found.not_compared["images"]
  # Another picture is another benchmark, and what was kept of its frames is read anew.
  about = benchmark_files.describe(benchmark)
  ffmpeg.run("-i", films / "0.mp4", "-vf", "fps=3", benchmark / "tvqa/x/%05d.jpg")
  assert benchmark_files.describe(benchmark) != about
  _, known = video_files.look(videos, made, tmp_path / "c", ingest.BadInputs("stop"))
  assert [*known.in_benchmark] == ["0.mp4"]


def test_a_benchmark_without_videos_or_with_a_bad_one_stops_the_run(films, tmp_path):
  benchmark = tmp_path / "benchmark"
  benchmark.mkdir()
  (benchmark / "questions.json").write_text("[]")
  made = runs.config(1)
  made.construct.update(videos=str(films), benchmarks=str(benchmark), captions="c.jsonl")
  skip = ingest.BadInputs("skip")
  with pytest.raises(errors.InputError, match=r"benchmarks=.*: holds no videos"):
    video_files.look([captioned("1.mp4")], made, tmp_path / "c", skip)
  (benchmark / "x.mp4").write_bytes(b"no video")
  with pytest.raises(errors.InputError, match=r"x\.mp4"):
    video_files.look([captioned("1.mp4")], made, tmp_path / "c", skip)
