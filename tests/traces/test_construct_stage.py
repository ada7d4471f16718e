"""The construct stage on the simulator's captions: whole, interrupted, with Beam, and its files."""

import dataclasses
import json
import sys

import numpy as np
import pytest

from benchmarks import moss_construct
from tests.traces import construct_runs as runs
from vr_jax import errors, main, recipe_config
from vr_jax.data import annotations, examples, ingest
from vr_jax.traces.construct import assembly, chunk_work, stage, video_files
from vr_jax.traces.construct import captions as captions_lib
from vr_jax.worlds import captions as world_captions
from vr_jax.worlds import render
from vr_jax.worlds import write as worlds_write

VIDEOS = 12
FILES = ("annotations", "rejected", "bad_records", "train", "validation", "test")


def texts(output):
  return [(output / f"{name}.jsonl").read_text() for name in FILES] + [
    (output / name).read_text() for name in ("summary.json", "statistics.md")
  ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("construct")
  stage.write(runs.config(VIDEOS), workdir)
  return workdir


def test_questions_are_right_by_the_simulators_truth(tmp_path):
  found = moss_construct.run(tmp_path / "clean", 12, seed=4)
  assert found["kept"] > 20 and found["states"] > 300
  assert min(found[name] for name in ("right", "true_steps", "determined")) >= moss_construct.GOAL
  faulty = moss_construct.run(tmp_path / "faulty", 12, seed=4, faulty=1.0)
  assert faulty["states_right"] < 1
  assert faulty["rejected"]["not answerable from the trace"] > 1


def test_the_benchmark_notices_wrong_answers_and_steps(whole):
  world = runs.world()
  scene_of = {
    found[0].video: scene
    for scene, found in worlds_write.distinct_videos(world, videos=VIDEOS, seed=11, questions=1)
  }
  read = annotations.read(
    whole / "construct" / "annotations.jsonl", frozenset(scene_of), on_bad=ingest.BadInputs("stop")
  )
  for question in (annotation.example for annotation in read):
    scene = scene_of[question.video]
    assert moss_construct.is_right(question, scene)
    for other in {option[0] for option in question.options} - {question.answer}:
      wrong = dataclasses.replace(question, answer=other)
      assert not moss_construct.is_right(wrong, scene)
    values = {option[3:] for option in question.options}
    first, *rest = question.steps
    value = max((v for v in values if v in first.text), key=len)
    text = first.text.replace(value, next(iter(values - {value})))
    steps = (dataclasses.replace(first, text=text), *rest)
    assert moss_construct.has_true_steps(question, scene)
    assert not moss_construct.has_true_steps(dataclasses.replace(question, steps=steps), scene)
    assert not moss_construct.has_true_steps(dataclasses.replace(question, steps=()), scene)


def test_a_killed_run_goes_on_with_the_chunks_that_are_left(whole, tmp_path, monkeypatch):
  made, done = runs.config(VIDEOS, batch_size=3), []
  work = chunk_work.ChunkWorker.work

  def killed(worker, chunk):
    if len(done) == 2:
      raise KeyboardInterrupt
    done.append(chunk.number)
    work(worker, chunk)

  with monkeypatch.context() as patch:
    patch.setattr(chunk_work.ChunkWorker, "work", killed)
    with pytest.raises(KeyboardInterrupt):
      stage.write(made, tmp_path)
  assert not (tmp_path / "construct" / "summary.json").exists()
  later = []
  monkeypatch.setattr(
    chunk_work.ChunkWorker, "work", lambda w, c: (later.append(c.number), work(w, c))
  )
  stage.write(made, tmp_path)
  assert (done, later) == ([0, 1], [2, 3])
  assert texts(tmp_path / "construct") == texts(whole / "construct")


def test_chunks_are_done_again_where_the_videos_of_the_plan_moved(whole, tmp_path):
  captions = whole / "construct-captions.jsonl"
  videos = captions_lib.read(
    captions, keyframe_fps=0.0, even=False, on_bad=ingest.BadInputs("stop")
  )
  (tmp_path / "chunks").mkdir()
  worker = chunk_work.make_worker(runs.config(VIDEOS).construct, tmp_path)
  for chunk in chunk_work.plan([*videos[:4], *videos[5:]], 3):  # one was missing
    worker.work(chunk)
  chunks = chunk_work.plan(videos, 3)
  left = chunk_work.open_chunks(tmp_path, chunks)
  assert [chunk.number for chunk in left] == [1, 2, 3]
  for chunk in left:
    worker.work(chunk)
  assert not chunk_work.open_chunks(tmp_path, chunks)
  done = [video.id for chunk in chunks for video in chunk_work.load(tmp_path, chunk)]
  assert done == [video.id for video in videos]


def test_a_copy_without_questions_does_not_move_the_videos_of_a_split(whole, tmp_path):
  made = runs.config(VIDEOS)
  captions = whole / "construct-captions.jsonl"
  videos = captions_lib.read(
    captions, keyframe_fps=0.0, even=False, on_bad=ingest.BadInputs("stop")
  )
  (tmp_path / "chunks").mkdir()
  chunks = chunk_work.plan(videos, 16)
  worker = chunk_work.make_worker(made.construct, tmp_path)
  worker.work(chunks[0])
  # Of each video there is a copy before it by name that no caption is about.
  copies = {video.video: f"{-number}" for number, video in enumerate(videos)}
  known = video_files.VideoKnowledge(copies=copies, in_benchmark={}, compared=True, comparison=None)
  assembly.assemble(tmp_path, chunks, made, known, [])
  for name in examples.SPLITS:
    assert (tmp_path / f"{name}.jsonl").read_text() == (
      whole / "construct" / f"{name}.jsonl"
    ).read_text()


def test_benchmarks_that_come_later_are_not_passed_over(tmp_path):
  world = dataclasses.replace(runs.world(), height=64, width=64, fps=2)
  records, folder, benchmarks = [], tmp_path / "videos", tmp_path / "benchmarks"
  folder.mkdir()
  benchmarks.mkdir()
  for number in range(4):
    scene, _ = worlds_write.sample_video(world, seed=8, index=number, questions=1)
    place = folder if number < 3 else benchmarks
    images = (frame.image for frame in render.iterate_frames(scene))
    render.write_video(place / f"{number}.mp4", images, scene.fps)
    rng = np.random.default_rng(number)
    name = f"{number}.mp4"
    records.append(world_captions.record(scene, name=str(number), video=name, rng=rng))
  captions = runs.write(tmp_path / "c.jsonl", *records[:3])
  made = runs.config(captions=str(captions), videos=str(folder), benchmarks=str(benchmarks))
  stage.write(made, tmp_path / "run")
  stage.write(made, tmp_path / "run")  # nothing is done
  (benchmarks / "new.mp4").write_bytes((folder / "0.mp4").read_bytes())
  with pytest.raises(errors.InputError, match="with another files of benchmarks; choose another"):
    stage.write(made, tmp_path / "run")
  stage.write(made, tmp_path / "other")
  rejected = runs.lines(tmp_path / "other" / "construct" / "rejected.jsonl")
  assert {r["record"]["video"] for r in rejected if r["reason"] == "in a benchmark"} == {"0.mp4"}
  page = (tmp_path / "other" / "construct" / "statistics.md").read_text()
  assert "| frames of benchmarks | of 2 videos and 0 folders of pictures compared |" in page
  assert "not compared" not in page
  (benchmarks / "more.tar").write_bytes(b"")
  stage.write(made, tmp_path / "third")
  page = (tmp_path / "third" / "construct" / "statistics.md").read_text()
  row = "1: more.tar (neither a video nor a picture)"
  assert f"| files of benchmarks not compared | {row} |" in page


def test_a_pipeline_of_beam_writes_the_same(whole, tmp_path):
  here = ("--runner=DirectRunner", "--direct_running_mode=in_memory")
  stage.write(runs.config(VIDEOS, batch_size=5, workers=1, beam=here), tmp_path)
  assert texts(tmp_path / "construct") == texts(whole / "construct")


def test_what_a_worker_of_beam_meets_is_one_line(tmp_path):
  here = ("--runner=DirectRunner", "--direct_running_mode=in_memory")
  captions = runs.write(tmp_path / "c.jsonl", runs.man())
  made = runs.config(captions=str(captions), workers=1, beam=here)
  with pytest.raises(errors.InputError, match="tells no state in the simulator's words") as error:
    stage.write(made, tmp_path)
  assert "\n" not in str(error.value) and "while running" not in str(error.value)


def test_without_beam_it_is_said_which_extra_brings_it(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "apache_beam", None)
  with pytest.raises(errors.InputError, match=r"config\.construct\.workers: .*'vr_jax\[beam\]'"):
    stage.write(runs.config(4, workers=2), tmp_path)


def test_splits_are_by_video_and_those_that_ingestion_makes(whole):
  output = whole / "construct"
  parts = {name: runs.lines(output / f"{name}.jsonl") for name in examples.SPLITS}
  videos = {name: {record["video"] for record in part} for name, part in parts.items()}
  assert all(videos.values())
  assert sum(map(len, videos.values())) == len(set.union(*videos.values()))
  assert sum(map(len, parts.values())) == len(runs.lines(output / "annotations.jsonl"))
  read = annotations.read(
    output / "annotations.jsonl", set.union(*videos.values()), on_bad=ingest.BadInputs("stop")
  )
  config = ingest.IngestConfig(validation_fraction=0.25, test_fraction=0.25)
  split = ingest.split([annotation.example for annotation in read], config)
  assert {name: {e.video for e in part} for name, part in split.items()} == videos


def test_the_page_has_the_counts(whole):
  summary = json.loads((whole / "construct" / "summary.json").read_text())
  page = (whole / "construct" / "statistics.md").read_text()
  kept = runs.lines(whole / "construct" / "annotations.jsonl")
  assert summary["kept"] == len(kept) and f"| questions kept | {len(kept)} |" in page
  letters = [record["answer"] for record in kept]
  assert summary["answer_positions"] == {x: letters.count(x) for x in sorted(set(letters))}
  for name, count in summary["rejected"].items():
    assert f"| {name} | {count} |" in page
  assert summary["questions"] == len(kept) + sum(summary["rejected"].values())
  assert "not compared: construct.videos is empty" in page
  assert set(summary["attributes"]) >= {"colour", "place", "size"}
  assert summary["steps"]["most"] == 5 and summary["masked_seconds"]["mean"] == 2


def test_answers_are_spread_over_the_positions(tmp_path):
  stage.write(runs.config(40, least_options=4), tmp_path)
  summary = json.loads((tmp_path / "construct" / "summary.json").read_text())
  counts = summary["answer_positions"]
  assert summary["options"] == {"4": summary["kept"]} and set(counts) == set("ABCD")
  expected = summary["kept"] / 4
  # Chi-squared with three degrees of freedom: above 16.3 in one of a thousand sets.
  assert sum((count - expected) ** 2 / expected for count in counts.values()) < 16.3


def test_another_config_needs_another_directory(whole, tmp_path):
  with pytest.raises(
    errors.InputError, match=r"another captions, seed; choose another config\.construct\.di"
  ):
    stage.write(runs.config(VIDEOS, seed=5), whole)
  stage.write(runs.config(VIDEOS, in_flight=3, batch_size=16), whole)  # nothing is done
  (tmp_path / "construct").mkdir()
  (tmp_path / "construct" / "mine.txt").write_text("")
  with pytest.raises(errors.InputError, match="holds no questions"):
    stage.write(runs.config(VIDEOS), tmp_path)


def test_bad_lines_stop_in_one_line_or_are_counted(tmp_path, whole):
  good = (whole / "construct-captions.jsonl").read_text().splitlines()
  path = runs.write(tmp_path / "c.jsonl", *good[:8], '{"video', runs.man())
  with pytest.raises(errors.InputError, match=r"c\.jsonl:9: is not JSON"):
    stage.write(runs.config(captions=str(path)), tmp_path)
  stage.write(runs.config(captions=str(path), on_bad="skip"), tmp_path)
  bad = runs.lines(tmp_path / "construct" / "bad_records.jsonl")
  assert [entry["where"].rpartition(":")[2] for entry in bad] == ["9", "10"]
  with pytest.raises(errors.InputError, match=r"left out parts of .*on_bad=skip"):
    stage.write(runs.config(captions=str(path)), tmp_path)  # although all is written
  nothing = runs.write(tmp_path / "n.jsonl", "{}", "{}")
  with pytest.raises(errors.InputError, match=r"not one usable line is left; first, .*n\.jsonl:1"):
    stage.write(
      runs.config(captions=str(nothing), on_bad="skip", directory=f"{tmp_path}/n"), tmp_path
    )


def test_a_damaged_chunk_is_named(tmp_path):
  stage.write(runs.config(6), tmp_path)
  (tmp_path / "construct" / "summary.json").unlink()
  chunk = tmp_path / "construct" / "chunks" / "000000.jsonl"
  for damage in ("{}\n", chunk.read_text()[:-30], chunk.read_text().replace('"id"', '"it"', 1)):
    chunk.write_text(damage)
    with pytest.raises(errors.InputError, match=r"000000\.jsonl: is damaged; remove it"):
      stage.write(runs.config(6), tmp_path)
  chunk.unlink()
  stage.write(runs.config(6), tmp_path)


@pytest.mark.parametrize(
  ("fields", "says"),
  [
    ({}, "construct.captions: is empty"),
    ({"captions": "missing.jsonl"}, "missing.jsonl: cannot be read"),
    ({"captions": "c", "benchmarks": "b"}, "needs config.construct.videos"),
    ({"captions": "c", "least_options": 5}, "is more than config.construct.options=4"),
    ({"captions": "c", "least_steps": 40}, "is more than config.construct.most_steps=32"),
    ({"captions": "c", "blind_right": 5}, "is more than config.construct.guesses=4"),
    ({"captions": "c", "workers": 2, "budget": 9}, "is that of one process"),
    ({"captions": "c", "workers": 2, "reader": "local"}, "would load the model"),
    ({"captions": "c", "workers": 20, "reader": "openai"}, "is less than"),
  ],
)
def test_fields_that_contradict_are_named(tmp_path, monkeypatch, fields, says):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(errors.InputError) as error:
    stage.write(runs.config(**fields), tmp_path)
  assert says in str(error.value) and "\n" not in str(error.value)


def test_a_model_has_to_be_named(tmp_path):
  captions = runs.write(tmp_path / "c.jsonl", runs.man())
  made = runs.config(captions=str(captions), reader="openai")
  with pytest.raises(errors.InputError, match=r"config\.construct\.model: is empty"):
    stage.write(made, tmp_path)


def test_the_command_line_has_the_mode(tmp_path, capsys):
  words = ["vr-jax", "--config=moss_chatv:tiny", f"--workdir={tmp_path}", "--mode=construct"]
  assert main.cli([*words, "--config.data.simulate.videos=6"]) == 0
  assert "questions about 6 videos kept" in capsys.readouterr().out


def test_another_recipe_has_no_such_mode(tmp_path):
  with pytest.raises(errors.InputError, match="--mode=construct is of moss_chatv"):
    stage.write(recipe_config.load("grpo:tiny"), tmp_path)
