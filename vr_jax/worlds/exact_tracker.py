"""The tracker that makes no mistake, for simulated videos: it knows the masks of all objects."""

from jaxtyping import Bool, Float
import numpy as np

from vr_jax.worlds import render

LEAST_IOU = 0.1  # of the box with that of an object; below, the box is of no object


def track(
  masks: Bool[np.ndarray, "objects frames height width"],
  frame: int,
  box: Float[np.ndarray, "4"],
  *,
  least_iou: float = LEAST_IOU,
) -> Bool[np.ndarray, "frames height width"]:
  """Returns the masks of the object whose true box in a frame has the best IoU with a box.

  No pixel is set if the best is below `least_iou`: the box is of no object, or of one that is not
  visible in this frame. Of two objects that are equally good, the first is taken.

  masks: of every object, as `render.render` gives them.
  box: (left, top, right, bottom) in pixels of the video, right and bottom exclusive.
  """
  if not len(masks):
    return np.zeros(masks.shape[1:], bool)
  boxes = render.compute_boxes(masks[:, frame : frame + 1])[:, 0].astype(np.float64)
  given = np.asarray(box, np.float64)
  low, high = np.maximum(boxes[:, :2], given[:2]), np.minimum(boxes[:, 2:], given[2:])
  shared = np.prod(np.maximum(high - low, 0), axis=1)
  area = np.prod(np.maximum(given[2:] - given[:2], 0))
  either = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) + area - shared
  iou = np.where(either > 0, shared / np.maximum(either, 1e-9), 0)
  best = int(iou.argmax())
  return masks[best] if iou[best] >= least_iou else np.zeros(masks.shape[1:], bool)
