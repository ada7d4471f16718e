"""Compares the tokens a second of `vr-jax eval` with those of the sampler alone.

    python -m benchmarks.benchmark_eval [--questions=512] [--repeats=3] [--config=moss_chatv:tiny]

Asks the questions of simulated videos, as `moss_video@recipe`: once with all that the command does
(videos are opened, prompts made and stacked, replies decoded and written), and once the batches
that are made already, in turn. Programs are compiled and frames decoded before. Prints one line of
JSON for each of two configurations, with both medians and the ratio; the goal is 0.9.

- here: random weights of the tiny recipe. Prompts are made while the devices decode, but the
  devices are the host's own cores, and the network is so small that prompts are much of the work.
  `host_core_ms`, `sampler_core_ms`: process time of both a question. Where both sides keep all
  cores busy, no more than `most_possible` can be reached, however they are ordered.
- by plan: what the host does is that of the recipe's size 3b, and is done here: 16 frames of 448 x
  448, 128 tokens to two frames, resized as torchvision does, 768 tokens a reply, 16 questions at a
  time. In place of sampling it waits as long as one TPU v6e chip, the smallest slice, needs for so
  many by plan:

      python launch/plan.py --config=moss_chatv:3b --topology=v6e-1 --quick \\
        --config.mesh="(1,1,1,1)" --config.rl.batch_size=8 --config.rl.num_generations=2 \\
        --programs=encoder,rollout

  That is the roofline of 8 prompts with two replies each, so less than 16 prompts take. The host of
  such a chip has more cores than this machine.
"""

import argparse
from collections.abc import Callable, Sequence
import dataclasses
import json
import os
from pathlib import Path
import statistics
import sys
import tempfile
import time
from typing import Any
from unittest import mock

import jax
from jaxtyping import PyTree
import numpy as np

from vr_jax import main as main_lib
from vr_jax import records
from vr_jax.data import benchmark_item, examples
from vr_jax.data.benchmark_sets import registry
from vr_jax.eval.benchmarks import (
  asked_items,
  frame_cache,
  play_items,
  protocols,
  reply_store,
)
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.train import batching, initialization, paths, run_context

PLANNED_SECONDS = 3.75  # of a chunk by the roofline: encoder 0.09, prefill 0.06, decoding 3.60
PLANNED: dict[str, Any] = {
  "eval.batch_size": 16,
  "data.simulate.world.height": 448,
  "data.simulate.world.width": 448,
  "data.fps": 2.0,
  "data.frames": 16,
  "model.resize_backend": "torchvision",
  "model.max_pixels": 128 * 28 * 28,
  "model.prefix_buckets": "(1152,)",
  "model.frame_buckets": "(8,)",
  "model.patch_buckets": "(512,)",
  "rl.max_new_tokens": 768,
}
PROTOCOL = protocols.get("moss_video@recipe")


def main() -> int:
  """Prints the lines."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks.benchmark_eval", description=__doc__)
  parser.add_argument("--questions", type=int, default=512)
  parser.add_argument("--planned_questions", type=int, default=96)
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--config", default="moss_chatv:tiny")
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    asked = prepare(options.config, {}, options.questions, Path(folder))
    params = initialization.fresh_params(asked.context)
    print(json.dumps({"devices": "here", **compare(asked, params, options.repeats)}))
  with tempfile.TemporaryDirectory() as folder:
    asked = prepare("moss_chatv:tiny", PLANNED, options.planned_questions, Path(folder))
    with mock.patch.object(play_items, "sample_chunk", wait_as_planned):
      print(json.dumps({"devices": "by plan", **compare(asked, {}, options.repeats)}))
  return 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Questions:
  """Questions, and what asks them. folder: an empty one for replies."""

  context: run_context.RunContext
  asker: asked_items.ItemAsker
  items: Sequence[benchmark_item.Item]
  folder: Path


def prepare(config_name: str, fields: dict[str, Any], questions: int, folder: Path) -> Questions:
  """Simulates a run's data, and takes its held-out questions. fields: of the config, by name."""
  words = [f"--config={config_name}", f"--workdir={folder / 'run'}", "--mode=data"]
  words += [
    f"--config.data.simulate.videos={questions + 8}",
    "--config.data.simulate.questions_per_video=1",
    f"--config.data.test_fraction={questions / (questions + 8):.4f}",
    *(f"--config.{name}={value}" for name, value in fields.items()),
  ]
  config, workdir, mode = main_lib.parse_flags(["vr-jax", *words])
  main_lib.run(config, workdir, mode)
  context = run_context.make_run_context(config, workdir, judged=False)
  root = folder / "sets"
  write_set(context, root, paths.videos_directory(config, workdir))
  played = play_items.with_protocol(context, PROTOCOL)
  (folder / "replies").mkdir()
  return Questions(
    context=played,
    asker=asked_items.ItemAsker(
      context=played,
      protocol=PROTOCOL,
      cache=frame_cache.FrameCache(
        videos=root,
        cache=folder / "frames",
        limits=paths.decode_limits(config.data),
      ),
      root=root,
    ),
    items=registry.read_items("moss_video", root).items[:questions],
    folder=folder / "replies",
  )


def compare(asked: Questions, params: PyTree, repeats: int) -> dict[str, float]:
  """Tokens a second of both, their ratio, and the work of cores that bounds it."""
  context, items, size = asked.context, asked.items, asked.context.config.eval.batch_size
  ordered = sorted(items, key=play_items.item_order)
  chunks = [
    play_items.make_batch(asked.asker, ordered[start : start + size], size)
    for start in range(0, len(items), size)
  ]

  def whole() -> int:
    store = reply_store.ReplyStore(directory=Path(tempfile.mkdtemp(dir=asked.folder)))
    store.begin({})
    play_items.play(context, params, asked.asker, items, store)
    return sum(reply.tokens for reply in store.read().values())

  def sampler() -> int:
    return sum(
      _count_tokens(play_items.sample_chunk(context, params, PROTOCOL, chunk.batch, number))
      for number, chunk in enumerate(chunks)
      if chunk.batch is not None
    )

  tokens = whole()  # compiles, and decodes frames
  assert tokens == sampler()
  sides = {"eval": whole, "sampler": sampler}
  measured = {name: [] for name in sides}
  for _ in range(repeats):
    for name, work in sides.items():
      measured[name].append(_seconds(work))
  wall = {name: statistics.median(each[0] for each in found) for name, found in measured.items()}
  busy = {name: statistics.median(each[1] for each in found) for name, found in measured.items()}
  least = max(wall["sampler"], busy["eval"] / len(os.sched_getaffinity(0)))
  return {
    "questions": len(items),
    "tokens": tokens,
    **{f"{name}_tokens_per_second": round(tokens / value, 1) for name, value in wall.items()},
    "host_core_ms": round(1000 * (busy["eval"] - busy["sampler"]) / len(items), 2),
    "sampler_core_ms": round(1000 * busy["sampler"] / len(items), 2),
    "sampler_ms": round(1000 * wall["sampler"] / len(items), 2),
    "most_possible": round(wall["sampler"] / least, 3),
    "ratio": round(wall["sampler"] / wall["eval"], 3),
  }


def wait_as_planned(
  context: run_context.RunContext,
  params: PyTree,
  protocol: protocols.Protocol,
  batch: batching.Batch,
  number: int,
) -> play_items.PlayedChunk:
  """Takes the place of `play_items.sample_chunk`: as long as planned, and replies at random."""
  del params, protocol
  jax.block_until_ready(context.builder.prompt(batch))
  time.sleep(PLANNED_SECONDS)
  shape = (len(batch.prompt.tokens), 1, context.config.rl.max_new_tokens)
  tokens = np.random.default_rng(number).integers(0, 256, shape, np.int32)
  return play_items.PlayedChunk(
    batch=batch,
    rollout=records.Rollout(
      tokens=tokens,
      log_probs=np.zeros(shape, np.float32),
      kind=np.full(shape, int(records.Kind.MODEL), np.int32),
      turn=np.zeros(shape, np.int32),
    ),
  )


def _count_tokens(played: play_items.PlayedChunk) -> int:
  rows = mesh_lib.local_rows(played.rollout.kind)[: len(played.batch.items)]
  return int((rows == records.Kind.MODEL).sum())


def write_set(context: run_context.RunContext, root: Path, videos: Path) -> None:
  """Writes the held-out questions of a run as MOSS-Video's files, those with options or numbers."""
  root.mkdir()
  (root / "videos").symlink_to(videos.absolute())
  with (root / "test.jsonl").open("w") as file:
    for example in examples.ExampleSource(context.data, "test"):
      record = {
        "id": example.id,
        "video": example.video,
        "question": example.question,
        "options": list(example.options),
        "answer": example.answer,
        "problem_type": example.problem_type,
        "shown": [example.shown.start, example.shown.end],
      }
      file.write(json.dumps(record) + "\n")


def _seconds(work: Callable[[], object]) -> tuple[float, float]:
  """Seconds that it takes, and those of all cores together."""
  begun, busy = time.perf_counter(), time.process_time()
  work()
  return time.perf_counter() - begun, time.process_time() - busy


if __name__ == "__main__":
  sys.exit(main())
