"""Scores of masks: region similarity J, boundary accuracy F, IoU over images, ReVOS's robustness.

Masks are boolean [frames, height, width]. J and F are those of DAVIS to the last digit; other sets
(MeViS, Ref-YouTube-VOS, ReVOS, ReasonVOS) use the same two. docs/evaluation.md says where the
released programs and these functions differ.

Source: Perazzi et al., CVPR 2016, and Pont-Tuset et al., arXiv 1704.00675 (J, F); Caelles et al.,
arXiv 1905.00737 (matching); Lai et al., arXiv 2308.00692 (gIoU, cIoU); Yan et al., arXiv 2407.11325
(robustness).
"""

from collections.abc import Sequence
import dataclasses
import functools
import math

from jaxtyping import Bool, Float, Int, UInt8
import numpy as np
from scipy import optimize

from vr_jax.errors import InputError

# Sizes that differ are an error to the user, so they are not checked as types.
Masks = Bool[np.ndarray, "_frames _height _width"]
BOUNDARY_SHARE = 0.008  # of the picture's diagonal: how far off a boundary may be
MOST_PROPOSALS = 20  # that DAVIS's unsupervised task accepts for a video


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskScore:
  """Region similarity and boundary accuracy, in [0, 1]; of one object, or a mean."""

  j: float
  f: float

  @property
  def j_and_f(self) -> float:
    """The mean of both."""
    return (self.j + self.f) / 2


def j_and_f(prediction: Masks, truth: Masks, void: Masks | None = None) -> MaskScore:
  """The means over frames of `region_similarity` and `boundary_f`.

  Raises:
    InputError: the masks are of another size or number, or there are none.
  """
  return MaskScore(
    j=float(region_similarity(prediction, truth, void).mean()),
    f=float(boundary_f(prediction, truth, void).mean()),
  )


def region_similarity(
  prediction: Masks, truth: Masks, void: Masks | None = None
) -> Float[np.ndarray, "frames"]:
  """J of each frame: intersection over union; 1 where both masks are empty.

  void: pixels that count for neither mask.
  """
  _check(prediction, truth, void)
  scores = np.empty(len(truth))
  for frame in range(len(truth)):
    mine, right = _without_void(prediction, truth, void, frame)
    union = np.count_nonzero(mine | right)
    scores[frame] = np.count_nonzero(mine & right) / union if union else 1.0
  return scores


def boundary_f(
  prediction: Masks,
  truth: Masks,
  void: Masks | None = None,
  *,
  tolerance: float = BOUNDARY_SHARE,
) -> Float[np.ndarray, "frames"]:
  """F of each frame: harmonic mean of precision and recall of the boundary's pixels.

  A pixel of a boundary is right if the other boundary has one in a disk around it. F is 1 if both
  masks have no boundary, and 0 if one of them alone has none. A mask of the whole picture has none.

  void: pixels that count for neither mask.
  tolerance: radius of the disk, as a fraction of the diagonal (rounded up), or in pixels from 1 on.
  """
  _check(prediction, truth, void)
  radius = boundary_radius(truth.shape[1], truth.shape[2], tolerance)
  scores = np.empty(len(truth))
  for frame in range(len(truth)):
    mine, right = _without_void(prediction, truth, void, frame)
    scores[frame] = _frame_f(mine, right, radius)
  return scores


def boundary_radius(height: int, width: int, tolerance: float = BOUNDARY_SHARE) -> float:
  """Radius in pixels of the disk in which boundaries match."""
  return tolerance if tolerance >= 1 else math.ceil(tolerance * math.hypot(height, width))


def _check(prediction: Masks, truth: Masks, void: Masks | None) -> None:
  if prediction.shape != truth.shape or (void is not None and void.shape != truth.shape):
    shapes = [masks.shape for masks in (prediction, truth, void) if masks is not None]
    raise InputError(
      f"masks: prediction and truth have to be alike [frames, height, width], not {shapes}"
    )
  if not truth.size:
    raise InputError("masks: there are no frames to score")


def _without_void(
  prediction: Masks, truth: Masks, void: Masks | None, frame: int
) -> tuple[Bool[np.ndarray, "height width"], Bool[np.ndarray, "height width"]]:
  if void is None:
    return prediction[frame], truth[frame]
  counts = ~void[frame]
  return prediction[frame] & counts, truth[frame] & counts


def _frame_f(
  prediction: Bool[np.ndarray, "height width"],
  truth: Bool[np.ndarray, "height width"],
  radius: float,
) -> float:
  margin = math.floor(radius)
  rows, columns = _crop(prediction | truth)
  mine = np.pad(_boundary(prediction[rows, columns]), margin)
  right = np.pad(_boundary(truth[rows, columns]), margin)
  found, wanted = np.count_nonzero(mine), np.count_nonzero(right)
  if not found or not wanted:
    return float(found == wanted)
  precision = _count_near(mine, right, radius) / found
  recall = _count_near(right, mine, radius) / wanted
  return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _crop(mask: Bool[np.ndarray, "height width"]) -> tuple[slice, slice]:
  """Rows and columns that hold the mask and, within the picture, one pixel around it."""
  spans = []
  for axis, size in ((1, mask.shape[0]), (0, mask.shape[1])):
    held = np.flatnonzero(mask.any(axis=axis))
    spans.append(slice(max(held[0] - 1, 0), min(held[-1] + 2, size)) if len(held) else slice(0, 0))
  return spans[0], spans[1]


def _boundary(mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
  """Pixels that differ from the one to the right, below, or diagonally below on the right.

  Beyond the picture's edge, everything goes on as it is at the edge.
  """
  found = np.zeros_like(mask)
  across = mask[:, :-1] ^ mask[:, 1:]
  down = mask[:-1] ^ mask[1:]
  found[:, :-1] |= across
  found[:-1] |= down
  found[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
  return found


def _count_near(
  pixels: Bool[np.ndarray, "height width"],
  others: Bool[np.ndarray, "height width"],
  radius: float,
) -> int:
  """How many of the pixels have one of the others in the disk around them.

  Both have an empty margin of the radius. The sums along each row tell whether a piece of a row,
  such as a row of the disk, holds anything; the disk's other pixels need no look. That is the
  dilation of the others by the disk, at these pixels alone.
  """
  height, width = others.shape
  sums = np.zeros((height, width + 1), np.int32)
  np.cumsum(others, axis=1, out=sums[:, 1:])
  flat = sums.ravel()
  y, x = np.nonzero(pixels)
  place = y * (width + 1) + x
  for down, reach in _disk_rows(radius):
    if not len(place):
      break
    start = place + down * (width + 1)
    near = flat[start + reach + 1] > flat[start - reach]
    place = place[~near]
  return len(y) - len(place)


@functools.lru_cache(maxsize=8)
def _disk_rows(radius: float) -> tuple[tuple[int, int], ...]:
  """The rows of a disk from the middle outwards: how far down, and how far it reaches sideways."""
  most = math.floor(radius)
  rows = sorted(range(-most, most + 1), key=abs)
  return tuple((row, math.floor(math.sqrt(radius**2 - row**2))) for row in rows)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameStatistics:
  """What DAVIS reports of an object's scores over the frames.

  recall: fraction of frames with a score above one half.
  decay: mean of the first quarter of the frames less that of the last.
  """

  mean: float
  recall: float
  decay: float


def statistics(scores: Float[np.ndarray, "frames"]) -> FrameStatistics:
  """Mean, recall and decay of the scores of each frame. Scores that are NaN count as none."""
  # The quarters share their borders, as in DAVIS's program.
  borders = np.round(np.linspace(1, len(scores), 5) + 1e-10).astype(int) - 1
  first, last = scores[borders[0] : borders[1] + 1], scores[borders[3] : borders[4] + 1]
  return FrameStatistics(
    mean=float(np.nanmean(scores)),
    recall=float(np.mean(scores > 0.5)),
    decay=float(np.nanmean(first) - np.nanmean(last)),
  )


def unsupervised_scores(
  predictions: Bool[np.ndarray, "proposals frames height width"],
  truths: Bool[np.ndarray, "objects frames height width"],
  void: Masks | None = None,
) -> list[MaskScore]:
  """Scores of a video's objects where nobody says which proposal is meant for which object.

  Objects and proposals are matched one to one so that the sum of J&F is largest. An object without
  a proposal is compared with empty masks. DAVIS's unsupervised task; Ref-DAVIS17 uses it, too.

  Raises:
    InputError: there are more than MOST_PROPOSALS proposals, or the masks are not alike.
  """
  if len(predictions) > MOST_PROPOSALS:
    raise InputError(f"masks: {len(predictions)} proposals; DAVIS takes {MOST_PROPOSALS} at most")
  missing = max(0, len(truths) - len(predictions))
  padded = [*predictions, *[np.zeros_like(truths[0])] * missing]
  scores = [[j_and_f(proposal, truth, void) for truth in truths] for proposal in padded]
  table = np.array([[score.j_and_f for score in row] for row in scores])
  rows, columns = optimize.linear_sum_assignment(-table)
  order = sorted(zip(columns.tolist(), rows.tolist(), strict=True))
  return [scores[row][column] for column, row in order]


def merge_objects(
  scores: Float[np.ndarray, "objects frames height width"], background: float = 0.1
) -> UInt8[np.ndarray, "frames height width"]:
  """Labels of pixels, 0 for none and k + 1 for object k, where masks of several objects overlap.

  scores: of each object at each pixel; below one half counts as 0. The largest wins, and of equal
    ones that of the first object, so masks of 0 and 1 may be given.
  background: the score of no object.

  Source: github.com/wjn922/ReferFormer, inference_davis.py.
  """
  kept = np.where(scores < 0.5, 0, scores)
  floor = np.full((1, *scores.shape[1:]), background)
  return np.argmax(np.concatenate([floor, kept]), axis=0).astype(np.uint8)


def iou_over_images(
  predictions: Sequence[Bool[np.ndarray, "..."]], truths: Sequence[Bool[np.ndarray, "..."]]
) -> tuple[float, float]:
  """gIoU and cIoU: the mean of each image's IoU, and all intersections over all unions.

  An image in which both masks are empty has IoU 1.
  """
  shared = [int(np.count_nonzero(p & t)) for p, t in zip(predictions, truths, strict=True)]
  either = [int(np.count_nonzero(p | t)) for p, t in zip(predictions, truths, strict=True)]
  if not shared:
    raise InputError("masks: there are no images to score")
  each = [inside / union if union else 1.0 for inside, union in zip(shared, either, strict=True)]
  return float(np.mean(each)), sum(shared) / sum(either) if sum(either) else 1.0


def robustness(prediction: Masks, truth: Masks, foreground: Masks) -> Float[np.ndarray, "frames"]:
  """R of each frame: 1 less the wrongly marked pixels over those of all objects; 0 at least.

  foreground: the pixels of any object of the video.
  """
  wrong = (prediction & ~truth).sum(axis=(1, 2))
  return np.maximum(1 - wrong / (foreground.sum(axis=(1, 2)) + 1e-6), 0)


def visa_compatible(
  prediction: Masks,
  instances: UInt8[np.ndarray, "frames height width"],
  foreground: Masks,
  *,
  pixel_value: int = 255,
) -> tuple[Float[np.ndarray, "frames"], Float[np.ndarray, "frames"]]:
  """R and A of each frame as VISA's program computes them, from the values of its pictures' pixels.

  A wrong pixel counts `pixel_value` times, and where instances overlap the arithmetic of bytes
  wraps around. So numbers that were published depend on what a program writes into its PNGs.

  instances: how many of the instances that are asked for a pixel belongs to.
  pixel_value: of a marked pixel, 1 to 255. VISA writes 255.
  """
  drawn = prediction * np.uint8(pixel_value)
  wrong = ((np.uint8(1) - instances) * drawn).sum(axis=(1, 2))
  r = np.maximum(1 - wrong / (foreground.sum(axis=(1, 2)) + 1e-6), 0)
  return r, (instances == drawn).mean(axis=(1, 2))


def revos_percent(per_frame: Float[np.ndarray, "frames"]) -> float:
  """An expression's score in percent, rounded to two decimals as ReVOS does before it averages."""
  return round(100 * float(per_frame.mean()), 2)


def group_means(
  scores: Sequence[float], groups: Int[np.ndarray, "scores"] | Sequence[int]
) -> dict[int, float]:
  """The mean score of each group, by its number."""
  values, groups = np.array(scores, np.float64), np.asarray(groups)
  return {int(group): float(values[groups == group].mean()) for group in np.unique(groups)}
