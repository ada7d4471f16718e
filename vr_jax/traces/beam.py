"""Runs the trace stage as an Apache Beam pipeline (extra `beam`).

    Create(chunks) -> Reshuffle -> Map(propose, filter, judge, write)

The output does not depend on the number of workers. If traces come from an endpoint, the workers
ask it. This project's sampler owns the devices, so it runs before the pipeline, in this process,
and leaves its replies on disk in replies/. Each chunk is one file with or without Beam, so an
interrupted stage can resume either way.
"""

from collections.abc import Callable, Sequence
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
from vr_jax.traces import filter as filter_lib
from vr_jax.traces import proposers
from vr_jax.train import console, judge_factory, paths


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
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
  beam, options = load(config)
  left = trace_store.open_chunks(output, chunks)
  if config.traces.writer == "sampler":
    _sample(output, left, writer)
  job = Job(config=ml_collections.FrozenConfigDict(config), workdir=workdir, output=output)
  _run(beam, options, left, job)


def _run(
  beam: ModuleType, options: Any, chunks: Sequence[trace_store.TraceChunk], job: Job
) -> None:
  run_pipeline(beam, options, chunks, decide_one, job, problem=job.output / "problem.json")


def run_pipeline(
  beam: ModuleType,
  options: Any,
  chunks: Sequence[Any],
  work: Callable[[Any, Any], None],
  job: Any,
  *,
  problem: Path,
) -> None:
  """Calls work(chunk, job) for each chunk, in the workers of a pipeline.

  beam, options: of `import_beam`.
  problem: file in which `noting_problem` writes what a worker met.

  Raises:
    InputError: a worker raised it.
  """
  problem.unlink(missing_ok=True)
  try:
    with beam.Pipeline(options=options) as pipeline:
      _ = pipeline | beam.Create(chunks) | beam.Reshuffle() | beam.Map(work, job)
  except RuntimeError as error:  # what a runner raises for any exception in a worker
    if problem.is_file():
      raise errors.InputError(json.loads(problem.read_text())) from error
    raise


def decide_one(chunk: trace_store.TraceChunk, job: Job) -> None:
  """Processes one chunk in a worker: endpoint (if it is the writer), filter, judge, write."""
  noting_problem(job.output / "problem.json", lambda: _decide_one(chunk, job))


def noting_problem(problem: Path, work: Callable[[], None]) -> None:
  """Does something in a worker; writes the InputError that it raises to a file, and raises it."""
  try:
    work()
  except errors.InputError as error:
    atomic.write_json_lines(problem, [str(error)])
    raise


def _decide_one(chunk: trace_store.TraceChunk, job: Job) -> None:
  trace_filter, writer = _load_worker(job)
  if writer is None:
    replies = json.loads(_replies(job.output, chunk).read_text())
  else:
    ((_, wait),) = writer.proposals([chunk])
    replies = wait()
  trace_filter.decide(chunk, replies)


@functools.lru_cache(maxsize=1)
def _load_worker(job: Job) -> tuple[filter_lib.Filter, proposers.Writer | None]:
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


def load(config: ml_collections.ConfigDict) -> tuple[ModuleType, Any]:
  """Imports Beam for this stage; see `import_beam`.

  Raises:
    InputError: Beam is not installed, or the judge's limits can't be split among the workers.
  """
  judge_factory.split_limits(config.judge, config.traces.workers)
  return import_beam("config.traces", config.traces.workers, config.traces.beam)


def import_beam(section: str, workers: int, own: Sequence[str]) -> tuple[ModuleType, Any]:
  """Imports Beam. Returns (Beam, its pipeline options).

  section: of the config, for messages.
  workers: number of processes on this machine, unless there are `own` options of Beam.

  Raises:
    InputError: Beam is not installed.
  """
  try:
    beam = importlib.import_module("apache_beam")
    options = importlib.import_module("apache_beam.options.pipeline_options")
  except ImportError as error:
    raise errors.InputError(
      f"{section}.workers: the package apache_beam is missing; "
      "pip install 'vr_jax[beam]', or set workers to 0"
    ) from error
  local = [
    "--runner=DirectRunner",
    "--direct_running_mode=multi_processing",
    f"--direct_num_workers={workers}",
  ]
  return beam, options.PipelineOptions(list(own) or local)
