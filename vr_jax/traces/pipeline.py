"""A stage as an Apache Beam pipeline (extra `beam`).

    Create(chunks) -> Reshuffle -> Map(work)

Each chunk is one file with or without Beam, so an interrupted stage can resume either way.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pipeline:
  """Beam, and its options."""

  beam: ModuleType
  options: Any

  @classmethod
  def load(cls, section: ml_collections.ConfigDict, name: str) -> "Pipeline":
    """Imports Beam, for config.<name>.workers processes here, or for the runner of its `beam`.

    section: of the config, with `workers` and `beam`.

    Raises InputError if Beam is not installed.
    """
    try:
      beam = importlib.import_module("apache_beam")
      options = importlib.import_module("apache_beam.options.pipeline_options")
    except ImportError as error:
      raise errors.InputError(
        f"config.{name}.workers: the package apache_beam is missing; "
        "pip install 'vr_jax[beam]', or set workers to 0"
      ) from error
    local = [
      "--runner=DirectRunner",
      "--direct_running_mode=multi_processing",
      f"--direct_num_workers={section.workers}",
    ]
    return cls(beam=beam, options=options.PipelineOptions(list(section.beam) or local))

  def run(
    self, chunks: Sequence[Any], work: Callable[[Any, Any], None], job: Any, output: Path
  ) -> None:
    """Calls work(chunk, job) for each chunk, in the workers of a pipeline.

    output: a directory that all workers share.

    Raises InputError if a worker raised it.
    """
    problem = output / "problem.json"
    problem.unlink(missing_ok=True)
    noted = functools.partial(_note_problem, problem, work)
    beam = self.beam
    try:
      with beam.Pipeline(options=self.options) as pipeline:
        _ = pipeline | beam.Create(chunks) | beam.Reshuffle() | "work" >> beam.Map(noted, job)
    # What a runner raises for any exception in a worker: its own, or that one with more words.
    except (RuntimeError, errors.InputError) as error:
      if problem.is_file():
        raise errors.InputError(json.loads(problem.read_text())) from error
      raise


def _note_problem(problem: Path, work: Callable[[Any, Any], None], chunk: Any, job: Any) -> None:
  """Calls work(chunk, job); writes the InputError that it raises to a file, and raises it."""
  try:
    work(chunk, job)
  except errors.InputError as error:
    atomic.write_json_lines(problem, [str(error)])
    raise
