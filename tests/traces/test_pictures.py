"""Traces of pictures beside those of videos: written, ingested again, and trained on."""

import dataclasses

from PIL import Image

from tests.data import annotation_files, videos
from tests.traces import trace_runs
from tests.train import nano
from vr_jax.envs import videop2r
from vr_jax.traces import proposers
from vr_jax.traces import stage as traces_stage
from vr_jax.train import data_stage, metrics, sft_loop

REPLY = videop2r.format_reply("It flies away.", "What flies falls no more.", "B")


def test_pictures_and_videos_become_traces_that_are_ingested_again_and_trained_on(
  tmp_path, monkeypatch
):
  nano.use_devices(monkeypatch, 1)
  raw = tmp_path / "raw"
  videos.write(raw / "a.mp4")
  records = [annotation_files.video_r1_record(problem_id=1, solution="<answer>B</answer>")]
  for number, colour in enumerate(("red", "blue", "green"), start=2):
    Image.new("RGB", (64, 64), colour).save(raw / f"{colour}.png")
    record = {"problem_id": number, "data_type": "image", "path": f"./{colour}.png"}
    records.append(annotation_files.video_r1_record(**{**records[0], **record}))
  notes = annotation_files.write(tmp_path / "notes.jsonl", *records)

  def config(directory, annotations, **overrides):
    return trace_runs.config(
      directory,
      data__simulate__videos=0,
      data__videos=str(raw),
      data__annotations=str(annotations),
      data__validation_fraction=0.0,
      data__test_fraction=0.0,
      **overrides,
    )

  first = config(tmp_path / "data", notes)
  data_stage.prepare(first, tmp_path)
  monkeypatch.setattr(
    proposers, "make", lambda config, workdir: trace_runs.Told(config, lambda example: REPLY)
  )
  traces_stage.write(first, tmp_path)
  output = tmp_path / "traces"
  given = trace_runs.all_examples(tmp_path / "data" / "shards", "train")
  trace = {"observation": "It flies away.", "reasoning": "What flies falls no more."}
  expected = [dataclasses.replace(example, **trace) for example in given]
  assert trace_runs.all_examples(output / "shards", "train") == expected
  kinds = {line["path"]: line["data_type"] for line in trace_runs.lines(output / "traces.jsonl")}
  assert kinds == {"a.mp4": "video", **dict.fromkeys(("red.png", "blue.png", "green.png"), "image")}

  again = config(tmp_path / "again", output / "traces.jsonl")
  data_stage.prepare(again, tmp_path)
  found = trace_runs.all_examples(tmp_path / "again" / "shards", "train")
  assert [dataclasses.replace(example, steps=()) for example in found] == expected

  trained = config(output, "", sft__steps=1, sft__batch_size=4, sft__max_reply_tokens=160)
  sft_loop.train(trained, tmp_path)
  (line,) = metrics.read(tmp_path / "metrics.jsonl")
  assert 0 < line["values"]["loss"] < 10
