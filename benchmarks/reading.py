"""Times reading frames: the frame store against decoding the video file.

    python -m benchmarks.reading

Both sides read the same frames, uint8 RGB [frames, height, width, 3]: clips of 8 random frames, in
the order of their times, from simulated H.264 videos of 60 s, 24 frames a second and 448 x 448
pixels. They run in turn.

- store: `FrameStore.read` of JPEG records by index; the store was written at 2 frames a second
  beforehand, untimed.
- decode: PyAV opens the file, seeks to the last keyframe at or before each frame (or goes on from
  where it is, if that is later) and decodes forward to the frame, with FFmpeg's frame and slice
  threads.

The cost of decoding depends on the distance of keyframes: 250 frames, the default of x264, or 48,
as on streaming sites. Prints one JSON line: for each, frames a second of both sides (medians over
repeats) and their ratio. The goal is a ratio of 5.
"""

import bisect
from collections.abc import Iterator
import json
from pathlib import Path
import statistics
import tempfile
import time

import av
from jaxtyping import Float, UInt8
import numpy as np

from vr_jax.data import frame_store
from vr_jax.worlds import config, render, write

WORLD = config.WorldConfig(height=448, width=448, seconds=60.0, shown=48.0, fps=24)
VIDEOS = 2
KEYFRAME_DISTANCES = (250, 48)
FRAMES_PER_CLIP = 8
REPEATS = 10
GOAL = 5.0

Frames = UInt8[np.ndarray, "frames height width 3"]


def write_video(path: Path, *, seed: int, keyframe_distance: int) -> None:
  """Writes a simulated video with a keyframe every `keyframe_distance` frames."""
  scene, _ = write.sample_video(WORLD, seed=seed, index=0, questions=1)
  with av.open(str(path), "w") as container:
    stream = container.add_stream("libx264", rate=scene.fps)
    stream.width, stream.height, stream.pix_fmt = scene.width, scene.height, "yuv420p"
    stream.options = {"crf": "18", "preset": "veryfast", "g": str(keyframe_distance)}
    for frame in render.iterate_frames(scene):
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.image, format="rgb24")))
    container.mux(stream.encode())


def decode_clip(path: Path, times: Float[np.ndarray, "frames"]) -> Frames:
  """The frames shown at `times` (increasing, seconds), decoded from the file."""
  found = []
  reformatter = av.video.reformatter.VideoReformatter()
  with av.open(str(path)) as container:
    stream = container.streams.video[0]
    stream.thread_type = "AUTO"
    entries = stream.index_entries
    # The index has decoding times, which differ from display times by a constant.
    keyframes = [
      float((entry.timestamp - entries[0].timestamp) * stream.time_base)
      for entry in entries
      if entry.is_keyframe
    ]
    position, frames = -1.0, _decode_from(container, stream, 0.0)
    for wanted in times:
      keyframe = keyframes[bisect.bisect_right(keyframes, wanted + 1e-4) - 1]
      if position < keyframe:
        frames = _decode_from(container, stream, keyframe)
      for frame in frames:
        position = frame.time
        if position >= wanted - 1e-4:
          break
      found.append(reformatter.reformat(frame, format="rgb24").to_ndarray())
  return np.stack(found)


def _decode_from(
  container: av.container.InputContainer, stream: av.VideoStream, seconds: float
) -> Iterator[av.VideoFrame]:
  container.seek(round(seconds / stream.time_base), stream=stream)
  return container.decode(stream)


def measure(directory: Path, keyframe_distance: int) -> dict[str, float]:
  """Frames a second of both sides, on videos made in `directory`."""
  files = [directory / f"{seed}.mp4" for seed in range(VIDEOS)]
  for seed, file in enumerate(files):
    write_video(file, seed=seed, keyframe_distance=keyframe_distance)
  (directory / "store").mkdir()
  store = frame_store.write(
    directory / "store",
    [(file.name, file) for file in files],
    fps=2.0,
    quality=90,
    max_side=448,
    shard_megabytes=256.0,
  )
  rng = np.random.default_rng(0)
  seconds = {"store": [], "decode": []}
  for repeat in range(REPEATS):
    file = files[repeat % VIDEOS]
    timestamps = store.timestamps(file.name)
    indices = np.sort(rng.choice(len(timestamps), FRAMES_PER_CLIP, replace=False))
    sides = {
      "store": lambda file=file, indices=indices: store.read(file.name, indices),
      "decode": lambda file=file, times=timestamps[indices]: decode_clip(file, times),
    }
    frames = {}
    for side in sorted(sides, reverse=repeat // VIDEOS % 2 == 0):
      start = time.perf_counter()
      frames[side] = sides[side]()
      seconds[side].append(time.perf_counter() - start)
    check_same(frames["store"], frames["decode"])
  speed = {side: FRAMES_PER_CLIP / statistics.median(times) for side, times in seconds.items()}
  return {
    "store_frames_per_second": round(speed["store"], 1),
    "decode_frames_per_second": round(speed["decode"], 1),
    "ratio": round(speed["store"] / speed["decode"], 1),
  }


def check_same(stored: Frames, decoded: Frames) -> None:
  """Raises ValueError where frames differ by more than JPEG's few grey levels."""
  error = np.abs(stored.astype(np.int16) - decoded).mean(axis=(1, 2, 3))
  if error.max() > 2:
    raise ValueError(f"the two sides returned different frames: mean errors {error.round(1)}")


def main() -> None:
  """Runs the comparison and prints its line."""
  results = {}
  for distance in KEYFRAME_DISTANCES:
    with tempfile.TemporaryDirectory() as directory:
      results[f"keyframe every {distance}"] = measure(Path(directory), distance)
  print(json.dumps({"benchmark": "reading", **results, "goal": GOAL}))


if __name__ == "__main__":
  main()
