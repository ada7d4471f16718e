"""Checks that an episode about an hour of video costs no more than one about a minute.

    python -m benchmarks.long_video

An episode is the opening prompt and two retrievals of Video-MTR, 8 + 4 + 4 frames, through
`rollout.dialogue` down to the patches that a model reads. Its frame pool is the whole store: one
frame a second, 448 x 448 pixels, 60 of them or 3600, each length in a store of its own. Bytes are
those that the process reads from files (Linux: rchar of /proc/self/io), cached or not.

- opening: opening the frame store, and its shard with a first frame; once a process
- cold: an episode while none of the files is in the page cache
- warm: an episode while they are

Prints one JSON line: bytes and seconds of each (medians), and the ratio of the long video to the
short one, taken within each round. The goal is at most 1.3, cold and warm.
"""

from collections.abc import Callable
import json
import os
from pathlib import Path
import statistics
import tempfile
import time
from typing import Any

import numpy as np
import simplejpeg

from benchmarks import measure, workload
from vr_jax import records
from vr_jax.data import batches, frame_store, sampling, video_file
from vr_jax.envs import video_mtr
from vr_jax.models.qwen2_5_vl import processor as processor_lib
from vr_jax.rollout import dialogue

MINUTES = (1, 60)
SIDE = 448  # pixels
REPEATS = 15
GOAL = 1.3
TASK = video_mtr.VideoMTR(
  instruction="Look or answer.",
  last_instruction="Answer.",
  turns=3,
  history_turns=2,
  frame_budget=16,
  on_invalid_action="rethink",
)

Cost = dict[str, float]  # bytes, seconds


def write_store(directory: Path, minutes: int, side: int) -> None:
  """Writes a store of one video: textured pictures, no two in a row the same."""
  rng = np.random.default_rng(0)
  coarse = rng.integers(0, 256, (7, side // 28, side // 28, 3), np.uint8)
  jpegs = [simplejpeg.encode_jpeg(np.kron(c, np.ones((28, 28, 1), np.uint8)), 90) for c in coarse]
  count = 60 * minutes
  extracted = video_file.ExtractedVideo(
    jpegs=tuple(jpegs[number % len(jpegs)] for number in range(count)),
    timestamps=np.arange(count, dtype=np.float64),
    ends=np.arange(1, count + 1, dtype=np.float64),
    height=side,
    width=side,
    duration=float(count),
  )
  directory.mkdir()
  writer = frame_store.FrameStoreWriter(directory, fps=1.0, shard_megabytes=256.0)
  writer.add("0.mp4", extracted)
  writer.close()


class BenchmarkVideo:
  """A stored video, and episodes about it."""

  def __init__(self, directory: Path, processor: processor_lib.Qwen2_5_VLProcessor):
    self._directory, self._processor = directory, processor

  def open(self) -> None:
    """Opens the store and reads one frame, as a process does once."""
    self._store = frame_store.FrameStore(self._directory)
    self._store.jpegs("0.mp4", [0])

  def forget(self) -> None:
    """Drops the files from the page cache."""
    for path in self._directory.iterdir():
      descriptor = os.open(path, os.O_RDONLY)
      os.fsync(descriptor)
      os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
      os.close(descriptor)

  def episode(self) -> None:
    """Plays the opening prompt and two retrievals: the second quarter of the video, its middle."""
    end = self._store.duration("0.mp4")
    example = records.Example(
      id="0",
      video="0.mp4",
      question="Which?",
      answer="A",
      options=("A. red", "B. blue"),
      problem_type="multiple choice",
      shown=records.Span(start=0.0, end=end),
    )
    clip = batches.select_clip(example, self._store, sampling.PoolRule(frames=round(end)))
    scene = dialogue.EpisodeScene(example=example, pool=clip)
    episode = dialogue.Dialogue(environment=TASK, processor=self._processor, scenes=[scene])
    shown = len(episode.prompt(0).frames)
    replies = ()
    for first, last in ((len(clip) // 4, len(clip) // 2), (len(clip) // 2, len(clip) // 2 + 9)):
      reply = f"<think></think>\n<retrieve>{first},{last}</retrieve>"
      replies = (*replies, tuple(self._processor.encode_reply(reply)))
      observation = episode.observe(0, 0, replies)
      shown += len(observation.frames) if observation is not None else 0
    if shown != TASK.frame_budget:
      raise ValueError(f"the episode showed {shown} frames, not {TASK.frame_budget}")


def compare(minutes: tuple[int, int] = MINUTES, *, side: int, repeats: int) -> dict[str, Any]:
  """The fields of the JSON line without machine and versions."""
  config = workload.model_config(workload.ISSUE)
  processor = processor_lib.Qwen2_5_VLProcessor(
    config, workload.byte_tokenizer(config.model_type), 28 * 28, side * side, system=""
  )
  kinds = ("opening", "cold", "warm")
  costs: dict[str, dict[str, list[Cost]]] = {kind: {} for kind in kinds}
  with tempfile.TemporaryDirectory() as directory:
    videos = {
      f"{length} min": BenchmarkVideo(Path(directory) / str(length), processor)
      for length in minutes
    }
    for length in minutes:
      write_store(Path(directory) / str(length), length, side)
    for number in range(repeats + 1):
      for name, video in videos.items():
        video.forget()
        found = {"opening": _cost(video.open)}
        video.forget()
        found |= {"cold": _cost(video.episode), "warm": _cost(video.episode)}
        for kind in kinds if number else ():
          costs[kind].setdefault(name, []).append(found[kind])
  return {kind: _summary(sides) for kind, sides in costs.items()}


def _cost(work: Callable[[], None]) -> Cost:
  before, begun = _bytes_read(), time.perf_counter()
  work()
  seconds = time.perf_counter() - begun
  return {"bytes": _bytes_read() - before - _OWN, "seconds": seconds}


def _bytes_read() -> int:
  fields = Path("/proc/self/io").read_text().split()
  return int(fields[fields.index("rchar:") + 1])


# Bytes that reading the counter adds to it.
_OWN = -_bytes_read() + _bytes_read()


def _summary(sides: dict[str, list[Cost]]) -> dict[str, Any]:
  short, long = sides
  found: dict[str, Any] = {}
  for unit in ("bytes", "seconds"):
    rounds = {name: [cost[unit] for cost in costs] for name, costs in sides.items()}
    found[unit] = {name: round(statistics.median(values), 5) for name, values in rounds.items()}
    found[f"{unit}_ratio"] = measure.ratio(rounds, long, short)
  return found


def main() -> None:
  """Runs the comparison and prints its line."""
  about = measure.About("array_record", "numpy")
  found = compare(side=SIDE, repeats=REPEATS)
  print(json.dumps({"benchmark": "long_video", **found, "goal": GOAL, **about.fields()}))


if __name__ == "__main__":
  main()
