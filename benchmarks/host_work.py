"""Measures what the host does for an RL step: read clips, score replies, write what was said.

    python -m benchmarks.host_work [--prompts=2] [--frames=64] [--side=448] [--tokens=1024]

By default what one chip needs, at 16 replies a chip: 2 clips of 64 frames of 448 x 448 pixels, 16
replies of 1,024 tokens (the load of 7B in docs/pods.md). All of it is what a run does: clips come
from the frame store and become patches in the padded batch; replies are decoded and get the rewards
of MOSS-ChatV (accuracy, format, the process reward); their groups become lines of the rollout log.
Videos are simulated, and replies are random words of reference replies. The tokenizer is that of
the size tiny, whose words are whole tokens.

Prints one JSON line: seconds of one core for each part (medians of --repeats steps, after one that
compiles), bytes of the batch that goes to the devices and of the log. Other work on the machine
does not count, since it is time of this process alone.
"""

import argparse
from collections.abc import Callable, Sequence
from concurrent import futures
import dataclasses
import json
from pathlib import Path
import statistics
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from benchmarks import measure
from vr_jax import main as vr_jax
from vr_jax import records
from vr_jax.train import batching, rollout_log, run_context, scoring

VIDEOS = 4
_TAIL = 8  # tokens at the end of a reply: with the end of its thoughts and its answer


def make_config(workdir: Path, options: argparse.Namespace) -> ml_collections.ConfigDict:
  """The recipe of the size tiny with clips and replies of a released size."""
  side, frames = options.side, options.frames
  media = frames // 2 * (side // 28) ** 2
  fields = {
    "data.simulate.videos": VIDEOS,
    "data.simulate.questions_per_video": 2,
    "data.simulate.world.height": side,
    "data.simulate.world.width": side,
    "data.test_fraction": 0.0,
    "data.max_side": side,
    "data.frames": frames,
    "data.fps": 8.0,
    "model.max_pixels": side * side,
    "model.architecture.text_config.max_position_embeddings": media + options.tokens + 1024,
    "model.prefix_buckets": (media + 256,),
    "model.frame_buckets": (frames // 2,),
    "model.patch_buckets": ((side // 14) ** 2,),
    "rl.batch_size": options.prompts,
    "rl.microbatches": 1,
    "rl.max_new_tokens": options.tokens,
    "sft.batch_size": options.prompts,
    "sft.microbatches": 1,
    "cpu_devices": 1,
  }
  overrides = [f"--config.{name}={value}" for name, value in fields.items()]
  recipe = ["--config=configs/moss_chatv.py:tiny", f"--workdir={workdir}"]
  return vr_jax.parse_flags(["host_work", *recipe, *overrides])[0]


def make_rollout(
  context: run_context.RunContext, items: Sequence[batching.BatchItem], step: int
) -> records.Rollout:
  """Replies of full length, none like another: the tags and random words of reference replies."""
  rl, rng = context.config.rl, np.random.default_rng(step)
  shape = (len(items), rl.num_generations, rl.max_new_tokens)
  tokens = np.empty(shape, np.int32)
  words = np.concatenate([item.reply[2:-_TAIL] for item in items])
  for row, item in enumerate(items):
    tokens[row] = rng.choice(words, shape[1:])
    tokens[row, :, :2], tokens[row, :, -_TAIL:] = item.reply[:2], item.reply[-_TAIL:]
  kind = np.full(shape, int(records.Kind.MODEL), np.int32)
  return records.Rollout(
    tokens=tokens, log_probs=np.zeros(shape, np.float32), kind=kind, turn=np.zeros(shape, np.int32)
  )


def measure_host(workdir: Path, options: argparse.Namespace) -> dict[str, Any]:
  """Seconds of a core for each part of the host's work, and the sizes of what it makes."""
  config = make_config(workdir, options)
  vr_jax.run(config, workdir, "data")
  context = run_context.make_run_context(config, workdir)
  builder = context.builder
  (first,) = builder.read("train", options.prompts, limit=options.prompts, repeat=False)
  laps: dict[str, list[float]] = {"read": [], "score": [], "log": []}
  sizes = {}

  def timed(part: str, work: Callable[[], Any]) -> Any:
    begun = time.process_time()
    result = work()
    laps[part].append(time.process_time() - begun)
    return result

  with futures.ThreadPoolExecutor(max_workers=1) as thread:
    for step in range(options.repeats + 1):
      # A copy of a clip has not read its frames yet.
      clips = [dataclasses.replace(item.clip) for item in first.items]
      batch = timed("read", lambda clips=clips: builder.batch([builder.item(c) for c in clips]))
      rollout = make_rollout(context, batch.items, step)

      def score(batch: batching.Batch = batch, rollout: records.Rollout = rollout) -> Any:
        dialogue = builder.dialogue(batch)
        pending = scoring.PendingScores(
          thread, dialogue, rollout, None, mesh=context.mesh, rl=context.config.rl
        )
        return pending.wait()

      judged = timed("score", score)

      def write(step: int = step, batch: batching.Batch = batch, judged: Any = judged) -> bytes:
        advantages = jnp.zeros(judged.segment.shape)
        lines = rollout_log.group_lines(context, step, batch.items, judged, advantages)
        return b"".join(rollout_log.to_line(line) for line in lines)

      text = timed("log", write)
      # The tower's input may be part of the prompt: it is put on the devices once.
      arrays = {id(x): x for x in jax.tree.leaves((batch.prompt, batch.vision_inputs))}
      sent = sum(x.nbytes for x in arrays.values())
      sizes = {"batch_bytes": sent, "log_bytes": len(text)}
  seconds = {part: round(statistics.median(lap[1:]), 4) for part, lap in laps.items()}
  return {
    "prompts": options.prompts,
    "replies": options.prompts * config.rl.num_generations,
    "frames": options.frames,
    "side": options.side,
    "tokens": options.tokens,
    "core_seconds": {**seconds, "all": round(sum(seconds.values()), 4)},
    **sizes,
  }


def main(argv: Sequence[str] | None = None) -> None:
  """Measures and prints the line."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks.host_work", description=__doc__)
  parser.add_argument("--prompts", type=int, default=2)
  parser.add_argument("--frames", type=int, default=64)
  parser.add_argument("--side", type=int, default=448)
  parser.add_argument("--tokens", type=int, default=1024)
  parser.add_argument("--repeats", type=int, default=3)
  options = parser.parse_args(argv)
  about = measure.About()
  with tempfile.TemporaryDirectory() as directory:
    found = measure_host(Path(directory) / "run", options)
  print(json.dumps({"benchmark": "host_work", **found, **about.fields()}))


if __name__ == "__main__":
  main()
