"""What a user gives the tracker: frames, and boxes, points or masks of objects on some of them."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int, UInt8
import numpy as np

from vr_jax import errors

# Labels of points: outside and inside of the object, corners of a box, no point at all, padding.
OUTSIDE, INSIDE, TOP_LEFT, BOTTOM_RIGHT, NO_POINT, PADDING = 0, 1, 2, 3, -1, -10


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoxPrompt:
  """An object's box on a frame.

  object: any number; prompts with the same one are of the same object.
  frame: index of the frame, from 0.
  box: x0, y0, x1, y1 in pixels of the original video.
  """

  object: int
  frame: int
  box: tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class PointPrompt:
  """Points inside and outside of an object on a frame.

  points: x, y in pixels of the original video.
  inside: one flag a point.
  """

  object: int
  frame: int
  points: tuple[tuple[float, float], ...]
  inside: tuple[bool, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MaskPrompt:
  """An object's mask on a frame, which is taken as it is. mask: bool, of the size of the video."""

  object: int
  frame: int
  mask: np.ndarray


Prompt = BoxPrompt | PointPrompt | MaskPrompt


@runtime_checkable
class Frames(Protocol):
  """Frames of a video: a NumPy array, a memory map, or an object that reads them when asked."""

  @property
  def shape(self) -> tuple[int, ...]:
    """(frames, height, width, 3)."""
    ...

  def __getitem__(self, index: slice, /) -> UInt8[np.ndarray, "frames height width 3"]:
    """Some consecutive frames, as uint8 RGB."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class LazyFrames:
  """Frames that `read(start, stop)` brings into memory, so that a long video is never there whole.

  They are read forwards, then backwards, some at a time.
  """

  shape: tuple[int, int, int, int]
  read: Callable[[int, int], UInt8[np.ndarray, "frames height width 3"]]

  def __getitem__(self, index: slice) -> UInt8[np.ndarray, "frames height width 3"]:
    """Reads consecutive frames."""
    start, stop, step = index.indices(self.shape[0])
    if step != 1:
      raise ValueError("frames are read one after the other")
    return self.read(start, stop)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ObjectInput:
  """All prompts of one object on one frame.

  points: x, y in pixels of the model's square input, with labels; a box is two points.
  mask: in pixels of the video, or None. With a mask there are no points.
  """

  object: int
  frame: int
  points: Float[np.ndarray, "points 2"]
  labels: Int[np.ndarray, "points"]
  mask: Bool[np.ndarray, "height width"] | None


def check_frames(frames: Frames) -> None:
  """Raises InputError if these are no RGB frames."""
  shape = tuple(frames.shape)
  if len(shape) != 4 or shape[3] != 3 or 0 in shape:
    raise errors.InputError(
      f"frames: shape {shape}; expected [frames, height, width, 3], not empty"
    )
  if isinstance(frames, np.ndarray) and frames.dtype != np.uint8:
    raise errors.InputError(f"frames: dtype {frames.dtype}; expected uint8")


def gather(prompts: Sequence[Prompt], shape: tuple[int, ...], side: int) -> list[ObjectInput]:
  """Collects the prompts of each object and frame, checked, in order of frames and objects.

  shape: of the frames. side: pixels of the model's square input.

  Raises:
    InputError: no prompt; a frame, box, point or mask that the video does not have; a mask beside
      another prompt of the same object and frame.
  """
  if not prompts:
    raise errors.InputError("prompts: none; the tracker needs a box, points or a mask")
  grouped: dict[tuple[int, int], list[Prompt]] = {}
  for prompt in prompts:
    _check(prompt, shape)
    grouped.setdefault((prompt.frame, prompt.object), []).append(prompt)
  return [_merge(grouped[key], shape, side) for key in sorted(grouped)]


def _name(prompt: Prompt) -> str:
  return f"prompt of object {prompt.object} on frame {prompt.frame}"


def _check(prompt: Prompt, shape: tuple[int, ...]) -> None:
  frames, height, width = shape[:3]
  name = _name(prompt)
  if not 0 <= prompt.frame < frames:
    raise errors.InputError(f"{name}: the video's frames are 0 to {frames - 1}")
  if isinstance(prompt, MaskPrompt):
    if prompt.mask.shape != (height, width):
      raise errors.InputError(
        f"{name}: mask is {prompt.mask.shape}, but the frames are {(height, width)}"
      )
    if prompt.mask.dtype != bool:
      raise errors.InputError(f"{name}: mask is {prompt.mask.dtype}, expected bool")
    return
  numbers = prompt.box if isinstance(prompt, BoxPrompt) else sum(prompt.points, ())
  if not np.isfinite(np.asarray(numbers, np.float64)).all():
    raise errors.InputError(f"{name}: a coordinate is not finite")
  if isinstance(prompt, BoxPrompt):
    x0, y0, x1, y1 = prompt.box
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
      raise errors.InputError(
        f"{name}: box {prompt.box} is not x0 < x1, y0 < y1 within the frame of {width} x {height}"
      )
    return
  if not prompt.points or len(prompt.points) != len(prompt.inside):
    raise errors.InputError(f"{name}: {len(prompt.points)} points, {len(prompt.inside)} flags")
  for x, y in prompt.points:
    if not (0 <= x <= width and 0 <= y <= height):
      raise errors.InputError(f"{name}: point ({x}, {y}) is outside of {width} x {height}")


def _merge(group: Sequence[Prompt], shape: tuple[int, ...], side: int) -> ObjectInput:
  """The input of one object on one frame: the box's corners first, as in training."""
  first, scale = group[0], np.array([side / shape[2], side / shape[1]])
  masks = [prompt for prompt in group if isinstance(prompt, MaskPrompt)]
  boxes = [prompt for prompt in group if isinstance(prompt, BoxPrompt)]
  if masks and len(group) > 1:
    raise errors.InputError(f"{_name(first)}: a mask is the only prompt of an object on a frame")
  if len(boxes) > 1:
    raise errors.InputError(f"{_name(first)}: {len(boxes)} boxes; give one")
  points, labels = [], []
  for prompt in boxes:
    points += [prompt.box[:2], prompt.box[2:]]
    labels += [TOP_LEFT, BOTTOM_RIGHT]
  for prompt in group:
    if isinstance(prompt, PointPrompt):
      points += prompt.points
      labels += [INSIDE if inside else OUTSIDE for inside in prompt.inside]
  return ObjectInput(
    object=first.object,
    frame=first.frame,
    points=(np.asarray(points, np.float64).reshape(-1, 2) * scale).astype(np.float32),
    labels=np.asarray(labels, np.int32),
    mask=masks[0].mask if masks else None,
  )
