"""Stage `traces`: a writer proposes one trace a question, a filter keeps the good ones, and these become a data set to train on.

writer (sampler or endpoint) -> replies -> template and answer -> judge -> chunk on disk -> data set

What is decided is written chunk by chunk, so that the same command goes on after any interruption. See docs/traces.md.
"""

from collections.abc import Mapping, Sequence
import contextlib
import json
from pathlib import Path
from typing import Any

import jax
import ml_collections

from vr_jax import atomic, errors
from vr_jax.data import examples, trace_store
from vr_jax.envs import registry
from vr_jax.traces import beam, proposers
from vr_jax.traces import filter as trace_filter
from vr_jax.train import config_checks, console, paths
from vr_jax.train import workdir as workdir_lib


def write(config: ml_collections.ConfigDict, workdir: Path) -> None:
  """Writes config.traces.directory, or goes on where an earlier start stopped.

  Raises:
    InputError: a recipe without observations, an instruction that does not ask for the tags, no data, a package, a writer or a
      judge that can't be had, or a directory of other traces.
  """
  _check(config)
  section, source = config.traces, paths.shards_directory(config, workdir)
  if not source.is_dir():
    raise errors.InputError(f"{source}: no such data; run --mode=data first")
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
        sieve = trace_filter.Filter(
          source=source,
          output=output,
          environment=writer.environment,
          judge=writer.environment.judge,
          threshold=section.threshold,
        )
        decide(sieve, writer, chunks)
      counts = trace_store.assemble(output, source, chunks)
  _say(counts, output)


def decide(
  sieve: trace_filter.Filter, writer: proposers.Writer, chunks: Sequence[trace_store.TraceChunk]
) -> None:
  """Decides the chunks that are open, while the writer goes on with the next ones."""
  left = trace_store.open_chunks(sieve.output, chunks)
  before = len(chunks) - len(left)
  with console.progress("traces", len(chunks), done=before) as tick:
    proposers.each(writer, left, sieve.decide, lambda done: tick(before + done))


def _check(config: ml_collections.ConfigDict) -> None:
  if jax.process_count() > 1:
    raise errors.InputError(
      "--mode=traces: one process writes traces; config.traces.workers adds more"
    )
  if not registry.environment_class(config.recipe).has_observation or "traces" not in config:
    raise errors.InputError(
      f"config.recipe={config.recipe}: its replies hold no observation; traces are those of videop2r"
    )
  config_checks.check_template(config, told=config.traces.writer != "sampler")


def _about(
  config: ml_collections.ConfigDict, source: Path, writer: proposers.Writer
) -> dict[str, Any]:
  """What the traces depend on, and not how fast they come."""
  section = config.traces
  fields = ("writer", "threshold", "examples", "batch", "max_tokens")
  judge = {
    name: value
    for name, value in config.judge.to_dict().items()
    if name not in workdir_lib.JUDGE_OPERATION
  }
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
    here = [index for index in range(count) if index not in left_out.get(split, ())]
    kept[split] = here[: config.traces.examples or None]
  return trace_store.plan(kept, config.traces.batch_size)


def _keep_tokenizer(config: ml_collections.ConfigDict, workdir: Path, output: Path) -> None:
  """A tokenizer that was learnt from this data goes with the traces: weights that know it may be trained on them."""
  if config.model.tokenizer == paths.TRAINED:
    path = paths.tokenizer_path(config, workdir)
    if not path.is_file():
      raise errors.InputError(
        f"{path}: no such tokenizer; run --mode=data with this config.model.architecture first"
      )
    atomic.write_bytes(output / path.name, [path.read_bytes()])


def _say(counts: Mapping[str, Mapping[str, int]], output: Path) -> None:
  for split, count in counts.items():
    if count["questions"]:
      reasons = [f"{count[reason]} {reason}" for reason in trace_store.REASONS if count[reason]]
      rejected = f"; rejected: {', '.join(reasons)}" if reasons else ""
      console.print_line(
        f"traces: {split}: {count['accepted']} of {count['questions']} kept{rejected}"
      )
  console.print_line(f"traces: train on them with --config.data.directory={output}")
