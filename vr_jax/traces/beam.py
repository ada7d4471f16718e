"""The trace stage as an Apache Beam pipeline (extra `beam`): what it writes is the same whatever the number of workers.

    Create(chunks) -> Reshuffle -> Map(propose, filter, judge, write)

An endpoint is asked by the workers. This project's sampler, which owns the devices, proposes first, in this process; its replies
wait on disk in replies/. A chunk is one file either way, so that a pipeline may follow on one process, and one process on it.
"""

from collections.abc import Sequence
import dataclasses
import functools
import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_collections

from vr_jax import atomic, errors
from vr_jax.data import trace_store
from vr_jax.traces import filter as trace_filter
from vr_jax.traces import proposers
from vr_jax.train import console, judge_factory, paths


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
  """What a worker needs to know beside its chunk."""

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
  """Decides the chunks that are open, in config.traces.workers processes or on the runner of config.traces.beam.

  Raises:
    InputError: Beam is not installed, or what a worker met, which the first of them noted.
  """
  beam, options = load(config)
  left = trace_store.open_chunks(output, chunks)
  if config.traces.writer == "sampler":
    _sample(output, left, writer)
  job = Job(config=ml_collections.FrozenConfigDict(config), workdir=workdir, output=output)
  _run(beam, options, left, job)


def _run(
  beam: ModuleType, options: Any, chunks: Sequence[trace_store.TraceChunk], job: Job
) -> None:
  problem = job.output / "problem.json"
  problem.unlink(missing_ok=True)
  try:
    with beam.Pipeline(options=options) as pipeline:
      _ = pipeline | beam.Create(chunks) | beam.Reshuffle() | beam.Map(decide_one, job)
  except RuntimeError as error:  # All that a runner says of an exception in a worker.
    if problem.is_file():
      raise errors.InputError(json.loads(problem.read_text())) from error
    raise


def decide_one(chunk: trace_store.TraceChunk, job: Job) -> None:
  """Proposes (with an endpoint), filters, judges and writes one chunk; what a worker does."""
  try:
    sieve, writer = _worker(job)
    if writer is None:
      replies = json.loads(_replies(job.output, chunk).read_text())
    else:
      ((_, wait),) = writer.proposals([chunk])
      replies = wait()
    sieve.decide(chunk, replies)
  except errors.InputError as error:
    atomic.write_json_lines(job.output / "problem.json", [str(error)])
    raise


@functools.lru_cache(maxsize=1)
def _worker(job: Job) -> tuple[trace_filter.Filter, proposers.Writer | None]:
  """What a process keeps from chunk to chunk: the filter, and who writes, where it is an endpoint."""
  config = ml_collections.ConfigDict(job.config)
  config.judge = judge_factory.split_limits(config.judge, config.traces.workers)
  if config.traces.writer == "sampler":
    writer, environment = None, proposers.judged(config, job.workdir)
  else:
    writer = proposers.make(config, job.workdir)
    environment = writer.environment
  sieve = trace_filter.Filter(
    source=paths.shards_directory(config, job.workdir),
    output=job.output,
    environment=environment,
    judge=environment.judge,
    threshold=config.traces.threshold,
  )
  return sieve, writer


def _sample(
  output: Path, chunks: Sequence[trace_store.TraceChunk], writer: proposers.Writer
) -> None:
  """Writes the replies to the chunks that have none yet."""
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


def load(config: ml_collections.ConfigDict) -> tuple[ModuleType, Any]:
  """Beam, and its options: several processes of this machine, unless config.traces.beam says otherwise.

  Raises InputError where it is not installed, or the workers can't share the judge.
  """
  judge_factory.split_limits(config.judge, config.traces.workers)
  try:
    beam = importlib.import_module("apache_beam")
    options = importlib.import_module("apache_beam.options.pipeline_options")
  except ImportError as error:
    raise errors.InputError(
      "config.traces.workers: the package apache_beam is missing; pip install 'vr_jax[beam]', or set workers to 0"
    ) from error
  local = [
    "--runner=DirectRunner",
    "--direct_running_mode=multi_processing",
    f"--direct_num_workers={config.traces.workers}",
  ]
  return beam, options.PipelineOptions(list(config.traces.beam) or local)
