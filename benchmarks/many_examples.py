"""Times the start of training on a data set of a million examples, and its memory.

    python -m benchmarks.many_examples [--examples=10000,1000000] [--directory=DIR]

Makes data sets of these sizes, with four questions a video and 8 frames of 64 x 64 a video, from
copies of a few simulated ones; then runs two steps of the warm start of `moss_chatv:tiny` on each,
in a process of its own, with programs that are compiled already. Prints a JSON line for each size:
the seconds that the data set took to write, unless it was there; those from the start of the
process to the end of the first step, imports included, and those that cores have worked for all of
the process; the peak of its resident memory, and how much more that is than with the smallest size.
The goal for a million: a start of 60 s, and less than 1 KiB an example.

What ingestion checked stays checked: that examples fit the recipe is known from its file.
"""

import argparse
from collections.abc import Iterator
import dataclasses
import json
from pathlib import Path
import resource
import shutil
import subprocess
import sys
import tempfile
import time

from vr_jax import atomic, main, records
from vr_jax.data import examples, frame_store, video_file
from vr_jax.train import metrics, run_context

SOURCES = 64  # simulated videos that are copied
FRAMES = 8  # of a video
STEPS = 2
# What the checks of examples find if each can be used.
ALL_FIT = {"left_out": {}, "no_reply": {}, "short": 0, "fewest_frames": 0}


def simulate(directory: Path) -> None:
  """Makes the data that are copied."""
  _run(directory / "run", directory / "data", "data", f"--config.data.simulate.videos={SOURCES}")


def multiply(source: Path, directory: Path, count: int) -> None:
  """Writes a data set of `count` examples from copies of those in `source`."""
  train = examples.ExampleSource(source / "shards", "train")
  store = frame_store.FrameStore(source / "shards" / "frames")
  questions: dict[str, list[records.Example]] = {}
  for example in train:
    questions.setdefault(example.video, []).append(example)
  videos = sorted(questions)
  extracted = {video: _extracted(store, video) for video in videos}
  shards = directory / "shards"
  (shards / "frames").mkdir(parents=True)
  writer = frame_store.FrameStoreWriter(shards / "frames", fps=store.fps, shard_megabytes=256.0)
  for number in range(0, count, 4):
    writer.add(_name(number), extracted[videos[(number // 4) % len(videos)]])
  writer.close()

  def copies(count: int) -> Iterator[records.Example]:
    for number in range(count):
      own, name = questions[videos[(number // 4) % len(videos)]], _name(number - number % 4)
      example = own[number % 4 % len(own)]
      yield dataclasses.replace(example, id=f"{name}#{number % 4}", video=name)

  examples.write(shards, {"train": copies(count), "test": copies(8)})
  for path in (*source.glob("tokenizer-*.json"), source / "shards" / "ingest.json"):
    shutil.copy(path, directory / path.relative_to(source))


def _name(number: int) -> str:
  """The video of four questions from this one on."""
  return f"part-{number // 40_000:03d}/{number:09d}.mp4"


def _extracted(store: frame_store.FrameStore, video: str) -> video_file.ExtractedVideo:
  height, width = store.size(video)
  return video_file.ExtractedVideo(
    jpegs=tuple(store.jpegs(video, range(FRAMES))),
    timestamps=store.timestamps(video)[:FRAMES],
    ends=store.ends(video)[:FRAMES],
    height=height,
    width=width,
    duration=store.duration(video),
    original_height=height,
    original_width=width,
  )


def time_start(run: Path, data: Path) -> dict[str, float]:
  """Runs the warm start; returns seconds to the end of the first step, of cores, and peak MiB."""
  words = _words(run, data, "sft", f"--config.sft.steps={STEPS}")
  config, workdir, _ = main.parse_flags(words)
  checked = run_context.make_example_checks(config, workdir).result_file
  atomic.write_json_lines(checked, [ALL_FIT])
  begun, before = time.time(), resource.getrusage(resource.RUSAGE_CHILDREN)
  _run(run, data, "sft", f"--config.sft.steps={STEPS}")
  after = resource.getrusage(resource.RUSAGE_CHILDREN)
  values = metrics.read(run / "metrics.jsonl")[-1]["values"]
  lines = (run / "health" / "times.jsonl").read_text().splitlines()
  first = next(x for x in map(json.loads, filter(None, lines)) if x["event"] == "step")
  return {
    "seconds": first["time"] - begun,
    "core_seconds": sum(after[:2]) - sum(before[:2]),  # user and system
    "peak_mib": values["perf/host_peak_mib"],
  }


def _words(run: Path, data: Path, mode: str, *flags: str) -> list[str]:
  return [
    "vr-jax",
    "--config=moss_chatv:tiny",
    f"--workdir={run}",
    f"--mode={mode}",
    f"--config.data.directory={data}",
    "--config.data.fps=1.0",
    *flags,
  ]


def _run(run: Path, data: Path, mode: str, *flags: str) -> None:
  command = [sys.executable, "-m", "vr_jax.main", *_words(run, data, mode, *flags)[1:]]
  subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def report(directory: Path, sizes: list[int]) -> None:
  """Prints a line for each size."""
  if not (directory / "source" / "data").exists():
    simulate(directory / "source")
  smallest = None
  for size in sizes:
    data, write = directory / f"data-{size}", {}
    if not data.exists():
      begun = time.time()
      with atomic.directory(data) as partial:
        multiply(directory / "source" / "data", partial, size)
      write = {"write_seconds": time.time() - begun}
    with tempfile.TemporaryDirectory(dir=directory) as run:
      time_start(Path(run) / "first", data)  # compiles, and reads the files into the system's cache
      found = time_start(Path(run) / "second", data)
    smallest = smallest or (size, found["peak_mib"])
    more = (found["peak_mib"] - smallest[1]) * 2**20 / max(1, size - smallest[0])
    print(
      json.dumps({"examples": size, **write, **found, "bytes_an_example": round(more)}), flush=True
    )


if __name__ == "__main__":
  parser = argparse.ArgumentParser()
  parser.add_argument("--examples", default="10000,1000000")
  parser.add_argument("--directory", default="runs/many_examples")
  options = parser.parse_args()
  report(Path(options.directory), [int(size) for size in options.examples.split(",")])
