"""The report's pictures of objects that an episode looked for: boxes and masks over the frames."""

import base64
from collections.abc import Mapping, Sequence
import dataclasses
import io
from typing import Any

import numpy as np
from PIL import Image

from vr_jax import errors, run_length
from vr_jax.eval import report_json

_MASK = (240, 80, 40, 140)  # red, green, blue, opacity
_SIDE = 256  # pixels of a mask's longer side in the report, at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportGrounding:
  """Where an episode found an object, and where it is.

  frame: index of the key frame in the clip; None if the episode chose none.
  box, true_box: (left, top, right, bottom) in pixels of the video, in the key frame; None if there
    is none.
  problem: why there is no box; "" if there is one.
  height, width: of the video, in pixels.
  masks: run-length masks of the tracked object, by index in the clip; {} without a tracker.
  """

  frame: int | None
  box: tuple[float, ...] | None
  true_box: tuple[float, ...] | None
  problem: str
  height: int
  width: int
  masks: dict[int, run_length.RunLength | None]

  @property
  def frames(self) -> list[int]:
    """Indices in the clip of the frames that the picture needs."""
    return [index for index in (self.frame, *self.masks) if index is not None]


def read(record: report_json.Record, frames: int) -> ReportGrounding:
  """Reads what an episode found. frames: of the clip.

  Raises:
    InputError: a field is missing or has a wrong type, or names a frame that the clip lacks.
  """
  frame = record.integer("frame") if record.has("frame") else None
  height, width = record.integer("height"), record.integer("width")
  boxes = {name: record.numbers(name) for name in ("box", "true_box") if record.has(name)}
  if any(len(box) != 4 for box in boxes.values()):
    raise errors.InputError(f"{record.where}: a box should be [left, top, right, bottom]")
  named = record.record("masks").values if record.has("masks") else {}
  for name, mask in named.items():
    if not name.isdecimal():
      raise errors.InputError(f"{record.where}: masks: {name!r} should be the index of a frame")
    run_length.check(mask, height, width, f"{record.where}: masks: {name}")
  masks = {int(name): mask for name, mask in named.items()}
  found = ReportGrounding(
    frame=frame,
    box=boxes.get("box"),
    true_box=boxes.get("true_box"),
    problem=record.text("problem"),
    height=height,
    width=width,
    masks=masks,
  )
  if odd := [index for index in found.frames if index not in range(frames)]:
    raise errors.InputError(f"{record.where}: frame {odd[0]} is not in a clip of {frames}")
  return found


def picture(
  found: ReportGrounding, frames: Mapping[int, str], times: Sequence[float]
) -> dict[str, Any]:
  """What the template shows: the key frame with its boxes, and the masks of all frames.

  frames: JPEG files of the clip in base64, by index.
  times: of the clip's frames, in seconds.
  """
  key = None
  if found.frame is not None:
    key = {
      "jpeg": frames[found.frame],
      "name": f"key frame {found.frame}, {times[found.frame]:g} s",
      "mask": _png(found, found.frame),
      "boxes": [
        {
          "kind": kind,
          "x": box[0],
          "y": box[1],
          "width": box[2] - box[0],
          "height": box[3] - box[1],
        }
        for kind, box in (("truth", found.true_box), ("found", found.box))
        if box is not None
      ],
    }
  return {
    "height": found.height,
    "width": found.width,
    "problem": found.problem,
    "visible": found.true_box is not None,
    "key": key,
    "frames": [
      {"jpeg": frames[index], "mask": _png(found, index), "name": f"{times[index]:g} s"}
      for index in sorted(found.masks)
    ],
  }


def _png(found: ReportGrounding, index: int) -> str | None:
  """The mask of a frame as a translucent PNG in base64; None if it has none."""
  mask = found.masks.get(index)
  if mask is None:
    return None
  pixels = run_length.decode(mask, found.height, found.width)
  image = np.zeros((*pixels.shape, 4), np.uint8)
  image[pixels] = _MASK
  small = Image.fromarray(image)
  small.thumbnail((_SIDE, _SIDE), Image.Resampling.NEAREST)
  stream = io.BytesIO()
  small.save(stream, "PNG")
  return base64.b64encode(stream.getvalue()).decode()
