"""What a small SAM2 makes of found boxes: it is trained on simulated videos first, for minutes.

    python -m benchmarks.claims_tracker --run=WORKDIR [--sam2=WEIGHTS]

prints what the key frame is worth in the videos of a run: J and F of the true box in the frame in
which it is largest, and in one that is drawn at random, with the exact tracker and with SAM2.
"""

import argparse
from collections.abc import Sequence
import json
from pathlib import Path
import subprocess
import sys

import numpy as np

from vr_jax.data import batches, examples, frame_store
from vr_jax.envs import grounding
from vr_jax.eval import tracking
from vr_jax.rewards import boxes
from vr_jax.train import paths
from vr_jax.train import workdir as workdir_lib

STEPS = 400  # of the training of SAM2
SIDE = 128  # pixels of its input


def weights(workdir: Path) -> Path:
  """The weights of a SAM2 in a directory of claims; trains it if it is not there yet."""
  path = workdir / "sam2"
  if not path.exists():
    command = ["-m", "vr_jax.train.train_tracker", f"--out={path}", f"--steps={STEPS}"]
    subprocess.run([sys.executable, *command, f"--side={SIDE}"], check=True)
  return path


def score(workdir: Path, sam2: Path) -> float:
  """The mean J&F of the replies of the evaluation of a run, as SAM2 follows them."""
  clips = {clip.example.id: clip for clip in _clips(workdir)}
  found = []
  for line in (workdir / "eval" / "before_rl.jsonl").read_text().splitlines():
    reply = json.loads(line)
    record = reply["grounding"]
    box = None if record["box"] is None else tuple(record["box"])
    each = grounding.Grounding(key_frame=record["frame"], box=box, problem=record["problem"])
    found.append((clips[reply["id"]], each))
  return _mean(tracking.Tracker(str(sam2), _shards(workdir)), found)


def _shards(workdir: Path) -> Path:
  return paths.shards_directory(workdir_lib.config_of(workdir), workdir)


def _clips(workdir: Path) -> list[batches.Clip]:
  """The held-out clips of a run."""
  config, shards = workdir_lib.config_of(workdir), _shards(workdir)
  store, rule = frame_store.FrameStore(shards / "frames"), paths.sampling_rule(config.data)
  source = examples.ExampleSource(shards, "test")
  asked = [source[index] for index in range(len(source))][: config.eval.examples or None]
  return [batches.select_clip(example, store, rule) for example in asked]


def _mean(
  tracker: tracking.Tracker, found: Sequence[tuple[batches.Clip, grounding.Grounding]]
) -> float:
  return float(np.mean([each.metrics["j_and_f"] for each in tracker.follow(found)]))


def main(argv: Sequence[str] | None = None) -> int:
  """Prints what a key frame is worth."""
  parser = argparse.ArgumentParser(prog="python -m benchmarks.claims_tracker", description=__doc__)
  parser.add_argument("--run", type=Path, required=True)
  parser.add_argument("--sam2", type=Path)
  options = parser.parse_args(argv)
  rng = np.random.default_rng(0)
  clips, best, drawn, values = _clips(options.run), [], [], []
  for clip in clips:
    truth = grounding.boxes_at(clip.example, clip.timestamps)
    areas = np.asarray(boxes.area(truth))
    visible = np.flatnonzero(areas)
    chosen = int(rng.choice(visible))
    values.append(np.asarray(boxes.frame_values(areas[None], np.ones((1, len(areas)), bool)))[0])
    for frame, found in ((int(areas.argmax()), best), (chosen, drawn)):
      left, top, right, bottom = truth[frame].tolist()
      box = (left, top, right, bottom)
      found.append((clip, grounding.Grounding(key_frame=frame, box=box)))
  worth = np.stack(values)
  print(f"videos' queries: {len(clips)}; frames of each: {worth.shape[1]}")
  print(f"soft temporal reward: best frame {worth.max(1).mean():.3f}, random {worth.mean():.3f}")
  print(f"frames worth more than half of the best: {(worth > 0.5).mean():.3f}")
  for name in filter(None, (tracking.EXACT, options.sam2 and str(options.sam2))):
    tracker = tracking.Tracker(name, _shards(options.run))
    print(
      f"J&F of the true box, {name}: best frame {_mean(tracker, best):.3f}, "
      f"random {_mean(tracker, drawn):.3f}",
      flush=True,
    )
  return 0


if __name__ == "__main__":
  sys.exit(main())
