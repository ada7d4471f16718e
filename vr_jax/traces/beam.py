"""Runs the trace stage as a pipeline: its workers propose, filter, judge and write.

The output does not depend on the number of workers. If traces come from an endpoint, the workers
ask it. This project's sampler owns the devices, so it runs before the pipeline, in this process,
and leaves its replies on disk in replies/.
"""

from collections.abc import Sequence
import dataclasses
import functools
import json
from pathlib import Path

import ml_collections

from vr_jax import atomic
from vr_jax.data import trace_store
from vr_jax.traces import filter as filter_lib
from vr_jax.traces import pipeline, proposers
from vr_jax.train import console, judge_factory, paths


@dataclasses.dataclass(frozen=True, kw_only=True)
class TracesJob:
  """What a worker needs besides its chunk. output: the directory of the traces."""

  config: ml_collections.FrozenConfigDict
  workdir: Path
  output: Path


def decide(
  config: ml_collections.ConfigDict,
  workdir: Path,
  output: Path,
  chunks: Sequence[trace_store.TraceChunk],
  writer: proposers.Writer,
) -> None:
  """Decides the remaining chunks, in config.traces.workers processes or on config.traces.beam.

  Raises:
    InputError: Beam is not installed, or a worker raised it.
  """
  beam = load(config)
  left = trace_store.open_chunks(output, chunks)
  if config.traces.writer == "sampler":
    _sample(output, left, writer)
  job = TracesJob(config=ml_collections.FrozenConfigDict(config), workdir=workdir, output=output)
  beam.run(left, decide_one, job, output)


def decide_one(chunk: trace_store.TraceChunk, job: TracesJob) -> None:
  """Processes one chunk in a worker: endpoint (if it is the writer), filter, judge, write."""
  trace_filter, writer = _load_worker(job)
  if writer is None:
    replies = json.loads(_replies(job.output, chunk).read_text())
  else:
    ((_, wait),) = writer.proposals([chunk])
    replies = wait()
  trace_filter.decide(chunk, replies)


@functools.lru_cache(maxsize=1)
def _load_worker(job: TracesJob) -> tuple[filter_lib.Filter, proposers.Writer | None]:
  """Makes what a worker process reuses for all chunks.

  Returns (filter, writer or None if replies are read from disk).
  """
  config = ml_collections.ConfigDict(job.config)
  config.judge = judge_factory.split_limits(config.judge, config.traces.workers)
  if config.traces.writer == "sampler":
    writer, environment = None, proposers.judged(config, job.workdir)
  else:
    writer = proposers.make(config, job.workdir)
    environment = writer.environment
  trace_filter = filter_lib.Filter(
    source=paths.shards_directory(config, job.workdir),
    output=job.output,
    environment=environment,
    judge=proposers.judge_of(environment),
    threshold=config.traces.threshold,
  )
  return trace_filter, writer


def _sample(
  output: Path, chunks: Sequence[trace_store.TraceChunk], writer: proposers.Writer
) -> None:
  """Samples and writes the replies of chunks that have none yet."""
  left = [chunk for chunk in chunks if not _replies(output, chunk).is_file()]
  (output / "replies").mkdir(exist_ok=True)
  with console.progress("sample", len(left)) as tick:
    proposers.each(
      writer,
      left,
      lambda chunk, replies: atomic.write_json_lines(_replies(output, chunk), [replies]),
      tick,
    )


def _replies(output: Path, chunk: trace_store.TraceChunk) -> Path:
  return output / "replies" / chunk.name


def load(config: ml_collections.ConfigDict) -> pipeline.Pipeline:
  """Imports Beam for this stage.

  Raises:
    InputError: Beam is not installed, or the judge's limits can't be split among the workers.
  """
  judge_factory.split_limits(config.judge, config.traces.workers)
  return pipeline.Pipeline.load(config.traces, "traces")
