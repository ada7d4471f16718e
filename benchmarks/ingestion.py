"""Times decoding videos for the frame store: in worker processes against in this process.

    python -m benchmarks.ingestion

All sides cut the same simulated H.264 videos at 2 frames a second, and run in turn:

- here: `video_file.extract` in this process, one video after the other;
- one: `guarded_reader.extract_all` with one worker process;
- all: the same with the default number of processes, one a core.

Starting the workers is included. Two kinds of videos: many short ones of the tiny size (112 x 112
pixels, 10 s, 8 frames a second), and few of 448 x 448 pixels, 60 s, 24 frames a second. Prints one
JSON line: for each kind, median seconds and CPU seconds of a round, and the ratios of time.
"""

import json
from pathlib import Path
import resource
import statistics
import tempfile
from typing import Any

from benchmarks import measure
from vr_jax.data import guarded_reader, video_file
from vr_jax.worlds import config, write

KINDS = {
  "short": (100, config.WorldConfig(height=112, width=112, seconds=10.0, shown=8.0, fps=8)),
  "long": (4, config.WorldConfig(height=448, width=448, seconds=60.0, shown=48.0, fps=24)),
}
REPEATS = 3
CUT = {"fps": 2.0, "quality": 90, "max_side": 448}


def cpu_seconds() -> float:
  """CPU seconds of this process and of those that it started and that have ended."""
  used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
  return sum(each.ru_utime + each.ru_stime for each in used)


def measure_kind(paths: list[Path]) -> dict[str, Any]:
  """Times all sides on these videos."""
  cpu: dict[str, list[float]] = {}

  def side(name, cut):
    def timed() -> None:
      begun = cpu_seconds()
      frames = sum(len(video.jpegs) for video in cut())
      cpu.setdefault(name, []).append(cpu_seconds() - begun)
      assert frames >= len(paths)

    return timed

  one = guarded_reader.DecodeLimits(processes=1)
  every = guarded_reader.DecodeLimits()
  rounds = measure.in_turn(
    {
      "here": side("here", lambda: [video_file.extract(path, **CUT) for path in paths]),
      "one": side("one", lambda: list(guarded_reader.extract_all(paths, limits=one, **CUT))),
      "all": side("all", lambda: list(guarded_reader.extract_all(paths, limits=every, **CUT))),
    },
    repeats=REPEATS,
  )
  return {
    "videos": len(paths),
    "seconds": measure.medians(rounds),
    "cpu_seconds": {name: round(statistics.median(each[1:]), 3) for name, each in cpu.items()},
    "here_over_one": measure.ratio(rounds, "here", "one"),
    "here_over_all": measure.ratio(rounds, "here", "all"),
  }


def main() -> None:
  """Makes the videos, times the sides, and prints the JSON line."""
  about, results = measure.About("av"), {}
  with tempfile.TemporaryDirectory() as folder:
    for kind, (count, world) in KINDS.items():
      root = Path(folder) / kind
      write.write_dataset(root, world, videos=count, seed=0, questions_per_video=1)
      results[kind] = measure_kind(sorted((root / "videos").rglob("*.mp4")))
  print(json.dumps({"benchmark": "ingestion", **results, **about.fields()}))


if __name__ == "__main__":
  main()
