"""Runs the construct stage as a pipeline: its workers read states, make and filter questions.

Replies of a model are kept by all workers in the same directory.
"""

from collections.abc import Sequence
import dataclasses
import functools
from pathlib import Path

import ml_collections

from vr_jax.traces import pipeline
from vr_jax.traces.construct import chunk_work


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConstructJob:
  """What a worker needs besides its chunk. output: the directory of the questions."""

  section: ml_collections.FrozenConfigDict
  output: Path


def work(
  chunks: Sequence[chunk_work.CaptionChunk], section: ml_collections.ConfigDict, output: Path
) -> None:
  """Does chunks in config.construct.workers processes, or on the runner of config.construct.beam.

  Raises:
    InputError: Beam is not installed, or a worker raised it.
  """
  job = ConstructJob(section=ml_collections.FrozenConfigDict(section), output=output)
  pipeline.Pipeline.load(section, "construct").run(chunks, work_one, job, output)


def work_one(chunk: chunk_work.CaptionChunk, job: ConstructJob) -> None:
  """Does one chunk in a worker."""
  _load_worker(job).work(chunk)


@functools.lru_cache(maxsize=1)
def _load_worker(job: ConstructJob) -> chunk_work.ChunkWorker:
  """Makes what a worker process reuses for all chunks; requests in flight are shared out."""
  section = ml_collections.ConfigDict(job.section)
  section.in_flight = max(1, section.in_flight // section.workers)
  return chunk_work.make_worker(section, job.output)
