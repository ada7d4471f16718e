"""The trace pipeline against its sampler alone: tokens a second, in one run.

    python -m benchmarks.traces

Tiny recipe of VideoP2R with random weights, whose replies run to the last token. Two sides, which sample the same tokens:

- raw: `rollout.sampler.sample` on the prompts of all chunks, which were read and put on the device before
- pipeline: `traces_stage.decide`: frames are read, prompts made and sampled, replies decoded, taken apart, held against their
  answers, judged by the rule, and written

Random weights write nothing that passes the first filter, so what is decided are the simulator's own replies in the place of
theirs, decoded all the same: every one of them goes through all steps. The data set, which is assembled once at the end, is timed
by itself. Prints one JSON line; the goal is 0.9 of the raw tokens a second.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import itertools
import json
from pathlib import Path
import tempfile
import time

import jax
import ml_collections
import numpy as np

from benchmarks import measure
from vr_jax import main as vr_jax
from vr_jax import records
from vr_jax.data import examples, trace_store
from vr_jax.traces import filter as trace_filter
from vr_jax.traces import proposers
from vr_jax.traces import stage as traces_stage

VIDEOS = 640
REPEATS = 5
GOAL = 0.9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference(proposers.Sampled):
  """Samples and decodes like its base, and then says what the simulator says: said, of each example."""

  said: Sequence[str | None] = ()

  def proposals(
    self, chunks: Sequence[trace_store.TraceChunk]
  ) -> Iterator[tuple[trace_store.TraceChunk, proposers.Replies]]:
    """Those of the sampler, replaced where they are waited for."""
    for chunk, replies in super().proposals(chunks):
      yield chunk, lambda chunk=chunk, replies=replies: self._replaced(chunk, replies())

  def _replaced(self, chunk: trace_store.TraceChunk, sampled: Sequence[str]) -> list[str]:
    said = [self.said[index] for index in chunk.indices]
    return [mine or theirs for mine, theirs in zip(said, sampled, strict=True)]


def tiny_config(workdir: Path) -> ml_collections.ConfigDict:
  """The tiny recipe with few videos, no warm start, and no features kept from round to round."""
  fields = {"data.simulate.videos": VIDEOS, "sft.steps": 0, "model.feature_cache_gib": 0}
  overrides = [f"--config.{name}={value}" for name, value in fields.items()]
  recipe = ["--config=configs/videop2r.py:tiny", f"--workdir={workdir}"]
  return vr_jax.parse_flags(["traces", *recipe, *overrides])[0]


def measure_run(workdir: Path) -> dict[str, object]:
  """Both sides of a run in a workdir."""
  config = tiny_config(workdir)
  vr_jax.run(config, workdir, "data")
  made = proposers.make(config, workdir)
  source, rounds = made.context.data, itertools.count()
  train = examples.ExampleSource(source, "train")
  said = [made.environment.reference_reply(train[index]) for index in range(len(train))]
  writer = Reference(context=made.context, workdir=workdir, said=said)
  chunks = trace_store.plan({"train": range(len(train))}, config.traces.batch_size)
  read = writer.batches("train", chunks)
  prompts = jax.block_until_ready([made.context.builder.prompt(batch) for batch in read])
  sampled = [writer.sample(prompt).kind for prompt in prompts]

  def raw() -> list[jax.Array]:
    return [writer.sample(prompt).tokens for prompt in prompts]

  def pipeline() -> None:
    output = workdir / f"round-{next(rounds)}"
    trace_store.claim(output, {})
    sieve = trace_filter.Filter(
      source=source,
      output=output,
      environment=writer.environment,
      judge=writer.environment.judge,
      threshold=config.traces.threshold,
    )
    traces_stage.decide(sieve, writer, chunks)

  seconds = measure.in_turn({"raw": raw, "pipeline": pipeline}, repeats=REPEATS)
  begun = time.perf_counter()
  kept = trace_store.assemble(workdir / "round-0", source, chunks)
  tokens = sum(int((np.asarray(kind) == records.Kind.MODEL).sum()) for kind in sampled)
  medians = measure.medians(seconds)
  return {
    "questions": sum(len(chunk.indices) for chunk in chunks),
    "kept": kept["train"]["accepted"],
    "tokens": tokens,
    "tokens_per_second": {name: round(tokens / value) for name, value in medians.items()},
    "share_of_raw": measure.ratio(seconds, "raw", "pipeline"),
    "assemble_seconds": round(time.perf_counter() - begun, 3),
  }


def main() -> None:
  """Runs both sides and prints the line."""
  about = measure.About()
  with tempfile.TemporaryDirectory() as directory:
    found = measure_run(Path(directory) / "run")
  print(json.dumps({"benchmark": "traces", **found, "goal": GOAL, **about.fields()}))


if __name__ == "__main__":
  main()
