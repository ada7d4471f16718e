"""J and F of `vr_jax.eval.segmentation` against DAVIS's formula written out, side by side.

    python -m benchmarks.segmentation_metrics              # 1,000 frames of 480 x 854
    python -m benchmarks.segmentation_metrics --frames=20  # a short form

The reference computes as DAVIS's program does: whole pictures, boundaries by shifted copies,
OpenCV's dilation by a disk. It is written from the formula (Perazzi et al., 2016), since that
program is in no package. OpenCV runs on one thread, and NumPy has one here.

Masks are blobs that move and change their shape; the prediction is the truth of a few frames later
with holes, so that both boundaries are long and rarely meet. Three sizes of object: 2 %, 10 % and
40 % of the picture. Sides run in turn. Prints one JSON line: milliseconds a frame of each side, and
how many times faster ours is (medians over rounds); the goal is at least 1/3.
"""

import json
import math

from absl import app, flags
import cv2
from jaxtyping import Bool, Float, UInt8
import numpy as np

from benchmarks import measure
from vr_jax.eval import segmentation

_FRAMES = flags.DEFINE_integer("frames", 1000, "Number of frames.", lower_bound=3)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Number of rounds.", lower_bound=1)

HEIGHT, WIDTH = 480, 854
SIZES = (0.02, 0.1, 0.4)  # of the object, as a fraction of the picture
GOAL = 1 / 3  # times as fast as the reference, at least


def reference_j(
  prediction: Bool[np.ndarray, "height width"],
  truth: Bool[np.ndarray, "height width"],
  void: Bool[np.ndarray, "height width"] | None = None,
) -> float:
  """Region similarity of one frame, from the formula."""
  counts = np.ones_like(truth) if void is None else np.logical_not(void)
  shared = np.sum(prediction & truth & counts)
  either = np.sum((prediction | truth) & counts)
  return 1.0 if either == 0 else float(shared / either)


def reference_boundary(mask: Bool[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width"]:
  """Pixels of a mask's boundary, from the formula."""
  east, south, diagonal = np.zeros_like(mask), np.zeros_like(mask), np.zeros_like(mask)
  east[:, :-1] = mask[:, 1:]
  south[:-1, :] = mask[1:, :]
  diagonal[:-1, :-1] = mask[1:, 1:]
  boundary = (mask ^ east) | (mask ^ south) | (mask ^ diagonal)
  boundary[-1, :] = mask[-1, :] ^ east[-1, :]
  boundary[:, -1] = mask[:, -1] ^ south[:, -1]
  boundary[-1, -1] = 0
  return boundary.astype(np.uint8)


def disk(radius: int) -> UInt8[np.ndarray, "side side"]:
  """A disk of a radius in pixels."""
  axis = np.arange(-radius, radius + 1)
  return (axis[:, None] ** 2 + axis[None] ** 2 <= radius**2).astype(np.uint8)


def reference_f(
  prediction: Bool[np.ndarray, "height width"],
  truth: Bool[np.ndarray, "height width"],
  void: Bool[np.ndarray, "height width"] | None = None,
) -> float:
  """Boundary accuracy of one frame, from the formula."""
  counts = np.ones_like(truth) if void is None else np.logical_not(void)
  radius = math.ceil(0.008 * np.linalg.norm(truth.shape))
  mine = reference_boundary(prediction & counts)
  right = reference_boundary(truth & counts)
  element = disk(radius)
  found, wanted = np.sum(mine), np.sum(right)
  precision, recall = 1.0, 1.0
  if found == 0 and wanted > 0:
    recall = 0.0
  elif found > 0 and wanted == 0:
    precision = 0.0
  elif found > 0 and wanted > 0:
    precision = np.sum(mine & cv2.dilate(right, element)) / found
    recall = np.sum(right & cv2.dilate(mine, element)) / wanted
  return 0.0 if precision + recall == 0 else float(2 * precision * recall / (precision + recall))


def blobs(
  frames: int, height: int, width: int, share: float, seed: int
) -> Bool[np.ndarray, "frames height width"]:
  """Smooth blobs that move. share: of the picture, about."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:height, :width].astype(np.float32)
  radius = math.sqrt(share * height * width / math.pi)
  wave, turn = rng.uniform(0, 2 * math.pi, 2)
  masks = np.empty((frames, height, width), bool)
  for frame in range(frames):
    angle = turn + 0.02 * frame
    centre = height / 2 + height / 6 * math.sin(angle), width / 2 + width / 4 * math.cos(angle)
    down, across = y - centre[0], x - centre[1]
    bent = 1 + 0.25 * np.sin(5 * np.arctan2(down, across) + wave + 0.1 * frame)
    masks[frame] = down**2 + across**2 < (radius * bent) ** 2
  return masks


def with_holes(masks: Bool[np.ndarray, "frames height width"], seed: int) -> None:
  """Cuts holes of some pixels into masks, in place."""
  rng = np.random.default_rng(seed)
  for mask in masks:
    for _ in range(20):
      top, left = rng.integers(0, mask.shape[0]), rng.integers(0, mask.shape[1])
      mask[top : top + 6, left : left + 9] = False


def reference(
  prediction: Bool[np.ndarray, "frames height width"],
  truth: Bool[np.ndarray, "frames height width"],
) -> Float[np.ndarray, "metrics frames"]:
  """J and F of every frame, from the formula."""
  pairs = list(zip(prediction, truth, strict=True))
  return np.array([[metric(*pair) for pair in pairs] for metric in (reference_j, reference_f)])


def ours(
  prediction: Bool[np.ndarray, "frames height width"],
  truth: Bool[np.ndarray, "frames height width"],
) -> Float[np.ndarray, "metrics frames"]:
  """J and F of every frame, by this project."""
  return np.array(
    [
      segmentation.region_similarity(prediction, truth),
      segmentation.boundary_f(prediction, truth),
    ]
  )


def compare(frames: int, rounds: int) -> dict[str, dict[str, float]]:
  """Compares the results of both sides, and times them, for each size of object.

  Raises AssertionError if a result differs.
  """
  cv2.setNumThreads(1)
  found = {}
  for share in SIZES:
    moving = blobs(frames + 2, HEIGHT, WIDTH, share, seed=0)
    truth, prediction = moving[:frames], moving[2:].copy()
    with_holes(prediction, seed=1)
    np.testing.assert_array_equal(ours(prediction, truth), reference(prediction, truth))
    sides = {
      "reference": lambda p=prediction, t=truth: reference(p, t),
      "ours": lambda p=prediction, t=truth: ours(p, t),
    }
    seconds = measure.in_turn(sides, repeats=rounds)
    found[f"{share:g} of the picture"] = {
      **{
        f"{name}_milliseconds": round(1000 * each / frames, 3)
        for name, each in measure.medians(seconds).items()
      },
      "times_faster": measure.ratio(seconds, "reference", "ours"),
    }
  return found


def main(_) -> None:
  """Prints the JSON line."""
  found = compare(_FRAMES.value, _ROUNDS.value)
  print(json.dumps({"frames": _FRAMES.value, **found, "goal": GOAL}))


if __name__ == "__main__":
  app.run(main)
