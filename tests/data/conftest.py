"""A small ingested directory that the tests of the data room share, read-only."""

import dataclasses
from pathlib import Path

import pytest

from tests.data import annotation_files, videos
from vr_jax.data import ingest


@dataclasses.dataclass(frozen=True)
class Ingested:
  videos: Path
  annotations: Path
  output: Path
  config: ingest.IngestConfig
  report: ingest.Report


@pytest.fixture(scope="session")
def ingested(tmp_path_factory) -> Ingested:
  root = tmp_path_factory.mktemp("ingested")
  names = [f"{index:02d}.mp4" for index in range(10)]
  for index, name in enumerate(names):
    videos.write(root / "videos" / name, mark=20 * index)
  values = [
    annotation_files.record(id=f"{name} {question}", video=name)
    for question in range(3)
    for name in names
  ]
  annotations = annotation_files.write(root / "annotations.jsonl", *values)
  config = ingest.IngestConfig(fps=1.0, shard_megabytes=0.02)
  report = ingest.ingest(root / "videos", annotations, root / "output", config)
  return Ingested(root / "videos", annotations, root / "output", config, report)
