"""Stage `traces`: makes supervised traces to train on.

writer (sampler or endpoint) -> replies -> template and answer -> judge -> chunk on disk -> data set

A writer proposes one trace for each question, and a filter keeps the good ones. Outcomes are
written chunk by chunk, so the same command resumes after any interruption. See docs/traces.md.
"""

from collections.abc import Mapping, Sequence
import contextlib
import json
from pathlib import Path
from typing import Any

import jax
import ml_collections

from vr_jax import atomic, errors, optional_sections, schema
from vr_jax.data import examples, ingest, trace_store
from vr_jax.envs import registry
from vr_jax.parallel import processes
from vr_jax.traces import beam, proposers
from vr_jax.traces import filter as filter_lib
from vr_jax.train import config_checks, console, paths


def write(config: ml_collections.ConfigDict, workdir: Path) -> None:
  """Writes config.traces.directory, or resumes an interrupted start.

  Of several processes, which call it together, the first one asks the endpoint and the judge.

  Raises:
    InputError: the recipe has no observations, the instruction doesn't ask for the tags, there is
      no data, a package is missing, the writer or judge doesn't work, or the directory holds other
      traces. With several processes, also if this project's sampler is to write.
  """
  _check(config)
  processes.first_for_all("traces", lambda: _write(config, workdir))


def _write(config: ml_collections.ConfigDict, workdir: Path) -> None:
  section, source = config.traces, paths.shards_directory(config, workdir)
  if not atomic.is_whole(source):
    raise errors.InputError(f"{source}: no such data; run --mode=data first")
  ingest.check_annotations(source, paths.annotation_file(config, workdir))
  output = Path(section.directory) if section.directory else workdir / "traces"
  if section.workers and trace_store.summary(output) is None:
    beam.load(config)
  writer = proposers.make(config, workdir)
  with contextlib.closing(writer):
    trace_store.claim(output, _about(config, source, writer))
    counts = trace_store.summary(output)
    if counts is None:
      _keep_tokenizer(config, workdir, output)
      chunks = _plan(config, source, writer)
      if section.workers:
        beam.decide(config, workdir, output, chunks, writer)
      else:
        trace_filter = filter_lib.Filter(
          source=source,
          output=output,
          environment=writer.environment,
          judge=proposers.judge_of(writer.environment),
          threshold=section.threshold,
        )
        decide(trace_filter, writer, chunks)
      counts = trace_store.assemble(output, source, chunks)
  _print_counts(counts, output)


def decide(
  trace_filter: filter_lib.Filter,
  writer: proposers.Writer,
  chunks: Sequence[trace_store.TraceChunk],
) -> None:
  """Decides the remaining chunks, while the writer goes on with later ones."""
  left = trace_store.open_chunks(trace_filter.output, chunks)
  before = len(chunks) - len(left)
  with console.progress("traces", len(chunks), done=before) as tick:
    proposers.each(writer, left, trace_filter.decide, lambda done: tick(before + done))


def _check(config: ml_collections.ConfigDict) -> None:
  if not registry.environment_class(config.recipe).has_observation or "traces" not in config:
    raise errors.InputError(
      f"config.recipe={config.recipe}: its replies hold no observation; "
      "traces are those of videop2r"
    )
  if config.traces.writer == "sampler" and jax.process_count() > 1:
    raise errors.InputError(
      f"config.traces.writer=sampler: samples in one process, but here are {jax.process_count()}; "
      "start --mode=traces as one process, on one host, or let an endpoint write "
      "(--config.traces.writer=openai; vr-jax serve is one)"
    )
  config_checks.check_template(config, told=config.traces.writer != "sampler")


def _about(
  config: ml_collections.ConfigDict, source: Path, writer: proposers.Writer
) -> dict[str, Any]:
  """Returns what the traces depend on, JSON-able. Fields that only affect speed are left out."""
  section = config.traces
  fields = ("writer", "threshold", "examples", "batch_size", "max_tokens")
  # How the judge is asked may change at any time: it does not affect the answers.
  declared = schema.fields(optional_sections.JudgeSection)
  judge = {field.name: config.judge[field.name] for field in declared if field.change != "any time"}
  return {
    **{name: section[name] for name in fields},
    **writer.identity(),
    "judge": judge,
    "instruction": config.env.instruction,
    "sampling": repr(paths.sampling_rule(config.data)),
    "ingested": json.loads((source / "ingest.json").read_text())["fingerprint"],
  }


def _plan(
  config: ml_collections.ConfigDict, source: Path, writer: proposers.Writer
) -> list[trace_store.TraceChunk]:
  left_out, kept = writer.left_out(), {}
  for split in trace_store.SPLITS:
    count = len(examples.ExampleSource(source, split))
    usable = [index for index in range(count) if index not in left_out.get(split, ())]
    kept[split] = usable[: config.traces.examples or None]
  return trace_store.plan(kept, config.traces.batch_size)


def _keep_tokenizer(config: ml_collections.ConfigDict, workdir: Path, output: Path) -> None:
  """Copies a tokenizer that was trained on this data: weights that use it may train on traces."""
  if config.model.tokenizer == paths.TRAINED:
    path = paths.tokenizer_path(config, workdir)
    if not path.is_file():
      raise errors.InputError(
        f"{path}: no such tokenizer; run --mode=data with this config.model.architecture first"
      )
    atomic.write_bytes(output / path.name, [path.read_bytes()])


def _print_counts(counts: Mapping[str, Mapping[str, int]], output: Path) -> None:
  for split, count in counts.items():
    if count["questions"]:
      reasons = [f"{count[reason]} {reason}" for reason in trace_store.REASONS if count[reason]]
      rejected = f"; rejected: {', '.join(reasons)}" if reasons else ""
      console.print_line(
        f"traces: {split}: {count['accepted']} of {count['questions']} kept{rejected}"
      )
  console.print_line(f"traces: train on them with --config.data.directory={output}")
