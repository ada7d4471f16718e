"""Simulated videos and annotations through ingestion to batches."""

import json

import numpy as np

from vr_jax.data import batches, ingest, sampling
from vr_jax.worlds import config, render, write

WORLD = config.WorldConfig()


def test_simulated_questions_arrive_as_they_were_made_with_the_frames_that_were_drawn(tmp_path):
  write.write_dataset(tmp_path / "raw", WORLD, videos=6, seed=3, questions_per_video=2)
  rule = sampling.UniformRule(frames=8)
  settings = ingest.IngestConfig(fps=1.0, test_fraction=0.0, validation_fraction=0.0, rule=rule)
  ingest.ingest(
    tmp_path / "raw" / "videos", tmp_path / "raw" / "annotations.jsonl", tmp_path / "out", settings
  )
  source, store = ingest.open_split(tmp_path / "out", "train")
  clips = batches.batches(
    source,
    store,
    seed=0,
    batch_size=12,
    frame_rule=rule,
    transform=lambda clip, epoch: clip,
    shuffle=False,
    repeat=False,
  )
  (batch,) = list(clips)
  lines = (tmp_path / "raw" / "annotations.jsonl").read_text().splitlines()
  assert [write.to_json(clip.example) for clip in batch] == [json.loads(line) for line in lines]
  for index in range(6):
    scene, _ = write.sample_video(WORLD, seed=3, index=index, questions=2)
    drawn = np.stack([frame.image for frame in render.iterate_frames(scene)])
    clip = batch[2 * index]
    np.testing.assert_allclose(clip.timestamps, np.arange(8), atol=1e-6)
    error = np.abs(clip.frames.astype(int) - drawn[: 8 * scene.fps : scene.fps])
    assert error.mean() < 6
