"""Trains a SAM2 from scratch on simulated videos, for minutes: a real tracker for simulated worlds.

    python -m vr_jax.train.train_tracker --out=DIR [--picture_steps=1200] [--steps=800] \\
      [--seed=0] [--side=128]

First it learns to segment single pictures, as SAM2 itself did: memories of masks that are not
learnt yet teach tracking nothing. Then clips of 8 frames of a scene follow. Each object that shows
on a clip's first frame is prompted there with its box or a point inside. `--out` becomes a
directory that `sam2.load` reads.
"""

import argparse
from collections.abc import Callable, Sequence
import dataclasses
import pathlib
import sys
import time

from jaxtyping import Bool, UInt8
import numpy as np
import optax

from vr_jax import errors
from vr_jax.models import sam2
from vr_jax.models.sam2 import config as config_lib
from vr_jax.models.sam2 import losses, parameters, prompts, tracker
from vr_jax.worlds import config as world_lib
from vr_jax.worlds import render, write

FRAMES, VIDEOS = 8, 2  # of a clip, of a batch
PICTURES = 16  # of a batch
OBJECTS = 2  # of a video or picture
SHORTEST, LONGEST = 1, 4  # frames of the scene between two of the clip
JITTER = 0.05  # of a box's side: how far its corners are off
LEAST = 12  # pixels of an object that can be prompted

World = Callable[[int], tuple[UInt8[np.ndarray, "frames height width 3"], np.ndarray]]


def tracking_world(side: int) -> world_lib.WorldConfig:
  """Scenes whose objects move, hide and look alike, in pictures of `side` pixels."""
  return world_lib.WorldConfig(
    height=side,
    width=side,
    behaviours=world_lib.TRACK_BEHAVIOURS,
    objects_min=2,
    objects_max=3,
    shown=10.0,
    families=world_lib.TRACK_FAMILIES,
  )


def simulated(world: world_lib.WorldConfig, seed: int) -> World:
  """Frames and masks [objects, frames, height, width] of scene number i of a world."""

  def make(index: int):
    scene, _ = write.sample_video(world, seed=seed, index=index, questions=1)
    rendering = render.render(scene)
    return rendering.frames, rendering.masks

  return make


def sample_clips(
  videos: Sequence[tuple[np.ndarray, np.ndarray]],
  side: int,
  rng: np.random.Generator,
  *,
  clips: int = VIDEOS,
  length: int = FRAMES,
) -> losses.PromptedClip:
  """Draws a batch of clips from videos: start, stride, direction, objects and prompts.

  length: frames of a clip.
  """
  pixels, masks, points, labels = [], [], [], []
  while len(pixels) < clips:
    frames, truth = videos[int(rng.integers(len(videos)))]
    stride = int(rng.integers(SHORTEST, LONGEST + 1))
    if len(frames) < (length - 1) * stride + 1:
      continue
    start = int(rng.integers(len(frames) - (length - 1) * stride))
    index = start + stride * np.arange(length)
    index = index[::-1] if rng.integers(2) else index
    shows = np.flatnonzero(truth[:, index[0]].sum(axis=(1, 2)) >= LEAST)
    if not len(shows):
      continue
    pixels.append(np.asarray(tracker.resize_frames(np.ascontiguousarray(frames[index]), side)))
    for number in rng.choice(shows, OBJECTS, replace=len(shows) < OBJECTS):
      own = resize_masks(truth[number, index], side)
      place, kind = _prompt(truth[number, index[0]], side, rng)
      masks.append(own)
      points.append(place)
      labels.append(kind)
  return losses.PromptedClip(
    pixels=np.stack(pixels),  # pyright: ignore[reportArgumentType] goes to the device with the step
    points=np.stack(points),  # pyright: ignore[reportArgumentType]
    labels=np.stack(labels),  # pyright: ignore[reportArgumentType]
    masks=np.stack(masks),  # pyright: ignore[reportArgumentType]
  )


def resize_masks(
  masks: Bool[np.ndarray, "frames height width"], side: int
) -> Bool[np.ndarray, "frames side side"]:
  """Masks on a square grid: the pixel at the middle of each new one."""
  rows = (np.arange(side) + 0.5) * masks.shape[1] / side
  columns = (np.arange(side) + 0.5) * masks.shape[2] / side
  return masks[:, rows.astype(int)][:, :, columns.astype(int)]


def _prompt(
  mask: Bool[np.ndarray, "height width"], side: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """A box whose corners are a little off, or a point of the object; points in model pixels."""
  rows, columns = np.nonzero(mask)
  scale = np.array([side / mask.shape[1], side / mask.shape[0]])
  if rng.integers(3):
    corners = np.array(
      [[columns.min(), rows.min()], [columns.max() + 1, rows.max() + 1]], np.float64
    )
    size = corners[1] - corners[0]
    corners += rng.uniform(-JITTER, JITTER, (2, 2)) * size
    kinds = [prompts.TOP_LEFT, prompts.BOTTOM_RIGHT]
    return (np.clip(corners * scale, 0, side)).astype(np.float32), np.array(kinds, np.int32)
  chosen = rng.integers(len(rows))
  point = np.array([[columns[chosen] + 0.5, rows[chosen] + 0.5], [0, 0]]) * scale
  return point.astype(np.float32), np.array([prompts.INSIDE, prompts.PADDING], np.int32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Progress:
  """Where training stands.

  iou: of the last batch: of single pictures, or of the frames behind the prompted ones.
  seconds: since the start.
  """

  step: int
  loss: float
  iou: float
  seconds: float


def train(
  config: config_lib.Sam2Config,
  world: World,
  *,
  picture_steps: int,
  steps: int,
  scenes: int,
  learning_rate: float,
  seed: int,
  on_progress: Callable[[Progress], None] | None = None,
  report_every: int = 50,
) -> sam2.Segmenter:
  """Trains for `picture_steps` updates with single pictures, then for `steps` with clips.

  scenes: how many different ones are rendered, before training.

  Raises Diverged if the loss is not finite when it is reported.
  """
  rng = np.random.default_rng(seed)
  videos = [world(index) for index in range(scenes)]
  total_steps = picture_steps + steps
  schedule = optax.warmup_cosine_decay_schedule(
    0.0, learning_rate, max(total_steps // 20, 1), max(total_steps, 2), learning_rate / 20
  )
  optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))
  params = parameters.initialise(config, seed)
  # One buffer each: the update gives the old ones back.
  params = {name: value.copy() for name, value in params.items()}
  state = optimizer.init(params)
  begun = time.monotonic()
  for step in range(1, total_steps + 1):
    clips, length = (PICTURES, 1) if step <= picture_steps else (VIDEOS, FRAMES)
    clip = sample_clips(videos, config.image_size, rng, clips=clips, length=length)
    params, state, found, overlap = losses.train_step(
      params, state, clip, config=config, optimizer=optimizer
    )
    if step % report_every == 0 or step == total_steps:
      total = float(found.total)
      if not np.isfinite(total):
        raise errors.Diverged(f"the tracker's loss is {total} at step {step}")
      if on_progress is not None:
        seconds = time.monotonic() - begun
        on_progress(Progress(step=step, loss=total, iou=float(overlap), seconds=seconds))
  return sam2.Segmenter(config, params)


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line."""
  parser = argparse.ArgumentParser(prog="python -m vr_jax.train.train_tracker", description=__doc__)
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--picture_steps", type=int, default=1200)
  parser.add_argument("--steps", type=int, default=800)
  parser.add_argument("--scenes", type=int, default=200)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--side", type=int, default=128)
  parser.add_argument("--learning_rate", type=float, default=1e-3)
  options = parser.parse_args(argv)
  try:
    if options.out.exists():
      raise errors.InputError(f"--out={options.out}: is there already")
    if min(options.steps, options.scenes) < 1 or options.picture_steps < 0:
      raise errors.InputError("--steps and --scenes must be at least 1, --picture_steps at least 0")
    segmenter = train(
      config_lib.smallest(options.side),
      simulated(tracking_world(options.side), options.seed),
      picture_steps=options.picture_steps,
      steps=options.steps,
      scenes=options.scenes,
      learning_rate=options.learning_rate,
      seed=options.seed,
      on_progress=_say,
    )
    sam2.save(segmenter, options.out)
  except errors.InputError as error:
    print(f"train_tracker: {error}", file=sys.stderr)
    return 2
  return 0


def _say(progress: Progress) -> None:
  print(
    f"step {progress.step}: loss {progress.loss:.3f}, IoU {progress.iou:.3f}, "
    f"{progress.seconds:.0f} s",
    flush=True,
  )


if __name__ == "__main__":
  sys.exit(main())
