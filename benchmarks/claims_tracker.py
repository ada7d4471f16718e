"""What a small SAM2 makes of found boxes: it is trained on simulated videos first, for minutes.

    python -m benchmarks.claims_tracker --run=WORKDIR [--sam2=WEIGHTS]

prints what the key frame is worth in the videos of a run: scores of boxes in the frame in which the
object is largest, and in one that shows it and is drawn at random. Boxes are the true ones, and the
same off by some pixels, as replies are; trackers are the exact one and SAM2.

    python -m benchmarks.claims_tracker --rescore=RUNS/revseg --sam2=WEIGHTS

scores the replies of all recorded runs again, with other weights, and writes the results.
"""

import argparse
from collections.abc import Sequence
import json
from pathlib import Path
import subprocess
import sys

import numpy as np

from vr_jax import atomic
from vr_jax.data import batches, examples, frame_store
from vr_jax.envs import grounding
from vr_jax.eval import tracking
from vr_jax.rewards import boxes
from vr_jax.train import paths
from vr_jax.train import workdir as workdir_lib

SIDE = 128  # pixels of its input
OFF = (0, 2, 4, 8)  # pixels to the right and down that boxes are off


def weights(workdir: Path) -> Path:
  """The weights of a SAM2 in a directory of claims; trains it if it is not there yet."""
  path = workdir / "sam2"
  if not path.exists():
    command = ["-m", "vr_jax.train.train_tracker", f"--out={path}"]
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


def rescore(workdir: Path, sam2: Path, results: Path) -> None:
  """Scores the replies of recorded runs again, with other weights of SAM2.

  workdir: of the claims, with a directory for each seed.
  results: a JSON file a run, which get the new score.
  """
  for path in sorted(results.glob("*.json")):
    result = json.loads(path.read_text())
    run = workdir / f"seed{result['seed']}" / f"{result['arm']}-eval"
    result["metrics"]["j_and_f@sam2"] = score(run, sam2)
    with atomic.file(path) as partial:
      partial.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{path}: {result['metrics']['j_and_f@sam2']:.3f}", flush=True)


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
  parser.add_argument("--run", type=Path, help="prints what a key frame of this run is worth")
  parser.add_argument("--rescore", type=Path, help="scores all runs of these claims again")
  parser.add_argument("--results", type=Path, default=Path("docs/claims/revseg"))
  parser.add_argument("--sam2", type=Path)
  options = parser.parse_args(argv)
  if options.rescore and options.sam2:
    rescore(options.rescore, options.sam2, options.results)
    return 0
  if not options.run:
    parser.error("needs --run, or --rescore and --sam2")
  clips, shards = _clips(options.run), _shards(options.run)
  truths = [grounding.boxes_at(clip.example, clip.timestamps) for clip in clips]
  areas = [np.asarray(boxes.area(truth)) for truth in truths]
  worth = np.concatenate([boxes.frame_values(each[None], each[None] >= 0) for each in areas])
  print(
    f"{len(clips)} queries; the object is visible in {np.mean(np.stack(areas) > 0):.3f} of frames"
  )
  print(f"soft temporal reward: best frame {worth.max(1).mean():.3f}, random {worth.mean():.3f}")
  rng = np.random.default_rng(0)
  best = [int(each.argmax()) for each in areas]
  drawn = [int(rng.choice(np.flatnonzero(each))) for each in areas]
  trackers = {
    name: tracking.Tracker(str(name), shards) for name in (tracking.EXACT, options.sam2) if name
  }
  print("| box off by | frame | IoU | IoU above 0.5 |" + "".join(f" J&F, {n} |" for n in trackers))
  print("|---" * (4 + len(trackers)) + "|")
  for off in OFF:
    for title, frames in (("best", best), ("random", drawn)):
      true = np.stack([truth[frame] for truth, frame in zip(truths, frames, strict=True)])
      tracks = [clip.example.object_track for clip in clips]
      sizes = np.array([(track.width, track.height) for track in tracks if track])
      moved = np.clip(true + off, 0, np.tile(sizes, 2) - [1, 1, 0, 0])
      iou = np.asarray(boxes.box_iou(true, moved))
      found = [
        (clip, grounding.Grounding(key_frame=frame, box=(left, top, right, bottom)))
        for clip, frame, (left, top, right, bottom) in zip(
          clips, frames, moved.tolist(), strict=True
        )
      ]
      scores = "".join(f" {_mean(tracker, found):.3f} |" for tracker in trackers.values())
      print(
        f"| {off} | {title} | {iou.mean():.3f} | {np.mean(iou > 0.5):.3f} |{scores}", flush=True
      )
  return 0


if __name__ == "__main__":
  sys.exit(main())
