"""Compares the trace pipeline with its sampler alone, in tokens a second.

    python -m benchmarks.traces

Tiny recipe of VideoP2R with random weights, whose replies have the full length. Two sides, which
sample the same tokens:

- raw: `rollout.sampler.sample` on the prompts of all chunks, already on the device
- pipeline: `traces.stage.decide`, which reads frames, makes and samples prompts, decodes and parses
  replies, compares them with the answers, judges them by the rule, and writes them

No reply of random weights passes the first filter. So the simulator's own replies take their place
after decoding, and each of them passes through all filters. Assembling the data set, once at the
end, is timed separately. Prints one JSON line; the goal is 0.9 of the raw tokens a second.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import itertools
import json
from pathlib import Path
import tempfile
import time
from typing import cast

import jax
import ml_collections
import numpy as np

from benchmarks import measure
from vr_jax import main as vr_jax
from vr_jax import records
from vr_jax.data import examples, trace_store
from vr_jax.envs import videop2r
from vr_jax.rewards import judge
from vr_jax.traces import filter as trace_filter
from vr_jax.traces import proposers
from vr_jax.traces import stage as traces_stage
from vr_jax.train import run_context

VIDEOS = 640
REPEATS = 5
GOAL = 0.9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference(proposers.Sampled):
  """Samples and decodes like its base, then replaces replies by `references`, one an example."""

  references: Sequence[str | None] = ()

  def proposals(
    self, chunks: Sequence[trace_store.TraceChunk]
  ) -> Iterator[tuple[trace_store.TraceChunk, proposers.Replies]]:
    """The sampler's proposals; their replies are replaced when they are waited for."""
    for chunk, replies in super().proposals(chunks):
      yield chunk, lambda chunk=chunk, replies=replies: self._replaced(chunk, replies())

  def _replaced(
    self, chunk: trace_store.TraceChunk, sampled: Sequence[str | None]
  ) -> list[str | None]:
    references = [self.references[index] for index in chunk.indices]
    return [reference or reply for reference, reply in zip(references, sampled, strict=True)]


def tiny_config(workdir: Path) -> ml_collections.ConfigDict:
  """The tiny recipe with few videos, no warm start, and no feature cache."""
  fields = {"data.simulate.videos": VIDEOS, "sft.steps": 0, "model.feature_cache_gib": 0}
  overrides = [f"--config.{name}={value}" for name, value in fields.items()]
  recipe = ["--config=configs/videop2r.py:tiny", f"--workdir={workdir}"]
  return vr_jax.parse_flags(["traces", *recipe, *overrides])[0]


def measure_run(workdir: Path) -> dict[str, object]:
  """Measures both sides in a workdir; returns fields of the JSON line."""
  config = tiny_config(workdir)
  vr_jax.run(config, workdir, "data")
  context = run_context.make_run_context(config, workdir)
  source, rounds = context.data, itertools.count()
  train = examples.ExampleSource(source, "train")
  environment = cast(videop2r.VideoP2R, context.environment)
  references = [environment.reference_reply(train[index]) for index in range(len(train))]
  writer = Reference(context=context, workdir=workdir, references=references)
  chunks = trace_store.plan({"train": range(len(train))}, config.traces.batch_size)
  batches = writer.batches("train", chunks)
  prompts = jax.block_until_ready([context.builder.prompt(batch) for batch in batches])
  sampled = [writer.sample(prompt).kind for prompt in prompts]

  def raw() -> list[jax.Array | np.ndarray]:
    return [writer.sample(prompt).tokens for prompt in prompts]

  def pipeline() -> None:
    output = workdir / f"round-{next(rounds)}"
    trace_store.claim(output, {})
    sieve = trace_filter.Filter(
      source=source,
      output=output,
      environment=environment,
      judge=cast(judge.Judge, environment.judge),
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
