"""Compares the tokens a second of `vr-jax eval` with those of the sampler alone.

    python -m benchmarks.benchmark_eval [--questions=512] [--repeats=3] [--config=moss_chatv:tiny]

Asks random weights the questions of simulated videos, as `moss_video@recipe`: once with all that
the command does (videos are opened, prompts made, replies decoded and written), and once the
prompts that are made already, in turn. Programs are compiled and frames decoded before. Prints one
line of JSON with both medians and the ratio; the goal is 0.9. Prompts are made while the devices
decode. Where the devices are the host's own cores, that takes as much of them as it costs.
"""

import argparse
from collections.abc import Callable
import json
from pathlib import Path
import statistics
import sys
import tempfile
import time

from vr_jax import main as main_lib
from vr_jax.data import examples
from vr_jax.data.benchmark_sets import registry
from vr_jax.eval.benchmarks import (
  asked_items,
  frame_cache,
  play_items,
  protocols,
  reply_store,
)
from vr_jax.train import initialization, paths, run_context


def main() -> int:
  """Prints the line."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks.benchmark_eval", description=__doc__)
  parser.add_argument("--questions", type=int, default=512)
  parser.add_argument("--repeats", type=int, default=3)
  parser.add_argument("--config", default="moss_chatv:tiny")
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    print(json.dumps(measure(options.config, options.questions, options.repeats, Path(folder))))
  return 0


def measure(config_name: str, questions: int, repeats: int, folder: Path) -> dict[str, float]:
  """Tokens a second of both, and their ratio."""
  words = [f"--config={config_name}", f"--workdir={folder / 'run'}", "--mode=data"]
  words += [
    f"--config.data.simulate.videos={questions + 8}",
    "--config.data.simulate.questions_per_video=1",
    f"--config.data.test_fraction={questions / (questions + 8):.4f}",
  ]
  config, workdir, mode = main_lib.parse_flags(["vr-jax", *words])
  main_lib.run(config, workdir, mode)
  context = run_context.make_run_context(config, workdir, judged=False)
  root = folder / "sets"
  write_set(context, root, paths.videos_directory(config, workdir))
  items = registry.read_items("moss_video", root).items[:questions]
  protocol = protocols.get("moss_video@recipe")
  played = play_items.with_protocol(context, protocol)
  asker = asked_items.ItemAsker(
    context=played,
    protocol=protocol,
    cache=frame_cache.FrameCache(
      videos=root,
      cache=folder / "frames",
      limits=paths.decode_limits(config.data),
    ),
    root=root,
  )
  params, size = initialization.fresh_params(context), config.eval.batch_size
  starts = range(0, len(items), size)
  chunks = [
    [each for each in play_items.ask_chunk(asker, items[start : start + size])[0] if each]
    for start in starts
  ]
  stores = iter(range(repeats + 1))

  def whole() -> int:
    store = reply_store.ReplyStore(directory=folder / f"replies{next(stores)}")
    store.begin({})
    play_items.play(played, params, asker, items, store)
    return sum(reply.tokens for reply in store.read().values())

  def sampler() -> int:
    replies = [
      play_items.play_chunk(played, params, protocol, asked, size, number)
      for number, asked in enumerate(chunks)
    ]
    return sum(reply.tokens for chunk in replies for reply in chunk)

  whole()  # compiles, and decodes frames
  rates: dict[str, list[float]] = {"eval": [], "sampler": []}
  for _ in range(repeats):
    for name, work in (("eval", whole), ("sampler", sampler)):
      rates[name].append(_tokens_per_second(work))
  medians = {name: statistics.median(values) for name, values in rates.items()}
  return {
    "questions": len(items),
    **{f"{name}_tokens_per_second": round(value, 1) for name, value in medians.items()},
    "ratio": round(medians["eval"] / medians["sampler"], 3),
  }


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


def _tokens_per_second(work: Callable[[], int]) -> float:
  begun = time.perf_counter()
  tokens = work()
  return tokens / (time.perf_counter() - begun)


if __name__ == "__main__":
  sys.exit(main())
