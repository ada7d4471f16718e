"""Renders scenes: frames, masks and boxes of the visible objects, and H.264 files."""

from collections.abc import Iterable, Iterator
import dataclasses
import functools
import itertools
import math
import pathlib

import av
from jaxtyping import Bool, Float, Int8, UInt8
import numpy as np

from vr_jax import errors
from vr_jax.worlds import displays, sprites
from vr_jax.worlds import scene as scene_lib

_BACKGROUND = (120, 116, 105)  # about the mean of natural images, where normalised pixels are 0
_GRID = (130, 126, 115)
_GRADE = 15  # levels that red and blue of graded ground lie above or below at an edge
_TRAY = (146, 130, 104)
_TRAY_RIM = (139, 108, 72)
_COVER = (128, 136, 148)
_COVER_STRIPE = (108, 116, 129)
_COVER_SIDE = 0.9  # as a fraction of a zone's side
_BOX_SIDE = 0.94  # likewise
_LAMP = (255, 250, 220)
_GLARE = 0.7  # how much of the lamp's colour is mixed into a cover

RGB = {
  "red": (222, 45, 38),
  "green": (40, 160, 70),
  "blue": (40, 95, 210),
  "yellow": (245, 205, 40),
  "purple": (130, 55, 165),
  "orange": (245, 130, 25),
  "pink": (245, 140, 185),
  "cyan": (50, 195, 205),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
  """The picture at one instant, and the visible pixels of each object."""

  image: UInt8[np.ndarray, "height width 3"]
  masks: Bool[np.ndarray, "objects height width"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rendering:
  """A whole video.

  boxes: (left, top, right, bottom) in pixels, right and bottom exclusive; zeros if not visible.
  """

  frames: UInt8[np.ndarray, "frames height width 3"]
  masks: Bool[np.ndarray, "objects frames height width"]
  boxes: Float[np.ndarray, "objects frames 4"]


def render(scene: scene_lib.Scene) -> Rendering:
  """Renders every frame of a scene, with the visible pixels of each object."""
  frames = list(iterate_frames(scene))
  masks = np.stack([frame.masks for frame in frames], axis=1)
  return Rendering(
    frames=np.stack([frame.image for frame in frames]), masks=masks, boxes=compute_boxes(masks)
  )


def iterate_frames(scene: scene_lib.Scene) -> Iterator[Frame]:
  """Renders frames one after the other, frame k at k / fps seconds.

  Frames that look the same share one array: don't write into them.
  """
  draw = functools.lru_cache(maxsize=32)(functools.partial(_draw, scene))
  for index in range(scene.frames):
    yield draw(tuple(scene_lib.pose(scene, thing, index / scene.fps) for thing in scene.objects))


def compute_boxes(
  masks: Bool[np.ndarray, "objects frames height width"],
) -> Float[np.ndarray, "objects frames 4"]:
  """Computes the smallest box around each mask.

  Returns (left, top, right, bottom) in pixels; zeros for an empty mask.
  """
  height, width = masks.shape[2:]
  rows, columns = np.any(masks, axis=3), np.any(masks, axis=2)
  boxes = np.stack(
    [
      columns.argmax(axis=2),
      rows.argmax(axis=2),
      width - columns[:, :, ::-1].argmax(axis=2),
      height - rows[:, :, ::-1].argmax(axis=2),
    ],
    axis=2,
  )
  return np.where(np.any(rows, axis=2)[:, :, None], boxes, 0).astype(np.float32)


def write_video(
  path: pathlib.Path | str,
  frames: Iterable[UInt8[np.ndarray, "height width 3"]],
  fps: int,
  *,
  crf: int = 18,
) -> None:
  """Writes an H.264 mp4 file (yuv420p).

  The same frames give the same bytes: the encoder runs in one thread. If writing fails, a partial
  file remains for the caller to remove.

  Raises errors.InputError if there are no frames, or if height or width is odd.
  """
  frames = iter(frames)
  first = next(frames, None)
  if first is None or first.shape[0] % 2 or first.shape[1] % 2:
    raise errors.InputError(f"{path}: a video needs frames of even height and width")
  with av.open(str(path), "w", format="mp4") as container:
    stream = container.add_stream("libx264", rate=fps)
    stream.height, stream.width = first.shape[:2]
    stream.pix_fmt = "yuv420p"
    stream.thread_count = 1
    # Macroblock-tree rate control reads uninitialised memory: sometimes the same frames would give
    # other bytes.
    stream.options = {"crf": str(crf), "preset": "veryfast", "x264-params": "mbtree=0"}
    for image in itertools.chain([first], frames):
      container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
    container.mux(stream.encode())


def _draw(scene: scene_lib.Scene, poses: tuple[scene_lib.Pose, ...]) -> Frame:
  """Paints the objects from back to front, and records which object is on top at each pixel."""
  image = _backdrop(scene).copy()
  owner = np.full(image.shape[:2], -1, np.int8)
  side = scene_lib.zone_side(scene)
  for thing, pose in zip(scene.objects, poses, strict=True):
    if thing.displayed:
      centre = scene_lib.zone_centre(scene, thing.place)
      displays.draw(image, centre, side, label=pose.label, charge=pose.charge)
    if pose.lit:
      half = _BOX_SIDE * side / 2
      top, bottom, left, right = (
        round(place + turn * half) for place in (pose.y, pose.x) for turn in (-1, 1)
      )
      image[top:bottom, left:right] = _LAMP
  for index, (thing, pose) in enumerate(zip(scene.objects, poses, strict=True)):
    diameter = round(4 * pose.diameter) / 4  # to a quarter of a pixel, so that sprites are shared
    sprite = sprites.shape_sprite(thing.shape, diameter, pose.x % 1, pose.y % 1)
    centre = math.floor(pose.x), math.floor(pose.y)
    _paste(image, owner, index, sprite, RGB[pose.colour], centre)
  for pose in poses:
    if pose.covered > 0:
      _cover(image, owner, pose, _COVER_SIDE * side)
  masks = owner[None] == np.arange(len(poses), dtype=np.int8)[:, None, None]
  return Frame(image=np.clip(image + 0.5, 0, 255).astype(np.uint8), masks=masks)


@functools.lru_cache(maxsize=16)
def _backdrop(scene: scene_lib.Scene) -> Float[np.ndarray, "height width 3"]:
  """Draws the empty canvas: faint lines between zones, and the box as a tray seen from above."""
  image = np.empty((scene.height, scene.width, 3), np.float32)
  image[:] = _BACKGROUND
  if scene.graded:
    image[..., 0] += _GRADE * np.linspace(-1, 1, scene.width)
    image[..., 2] += _GRADE * np.linspace(-1, 1, scene.height)[:, None]
  for row in range(1, scene.rows):
    image[round(row * scene.height / scene.rows)] = _GRID
  for column in range(1, scene.columns):
    image[:, round(column * scene.width / scene.columns)] = _GRID
  if scene.box is not None:
    x, y = scene_lib.zone_centre(scene, scene.box)
    side = _BOX_SIDE * scene_lib.zone_side(scene)
    rim = max(2, round(0.05 * side))
    left, top = round(x - side / 2), round(y - side / 2)
    right, bottom = round(x + side / 2), round(y + side / 2)
    image[top:bottom, left:right] = _TRAY_RIM
    image[top + rim : bottom - rim, left + rim : right - rim] = _TRAY
  return image


def _paste(
  image: Float[np.ndarray, "height width 3"],
  owner: Int8[np.ndarray, "height width"],
  index: int,
  sprite: sprites.Sprite,
  colour: tuple[int, int, int],
  centre: tuple[int, int],
) -> None:
  """Blends a sprite and its shadow into the image.

  The object becomes the owner of the pixels that it covers by half or more.
  """
  reach = sprite.alpha.shape[0] // 2
  x, y = centre[0] - reach, centre[1] - reach
  rows = slice(max(y, 0), min(y + 2 * reach, image.shape[0]))
  columns = slice(max(x, 0), min(x + 2 * reach, image.shape[1]))
  if rows.start >= rows.stop or columns.start >= columns.stop:
    return  # beyond the picture's edge
  part = (slice(rows.start - y, rows.stop - y), slice(columns.start - x, columns.stop - x))
  area = image[rows, columns]
  area *= 1 - sprite.shadow[part][..., None]
  paint = sprite.light[part][..., None] * np.array(colour, np.float32)
  area += sprite.alpha[part][..., None] * (paint - area)
  owner[rows, columns][sprite.alpha[part] >= 0.5] = index


def _cover(
  image: Float[np.ndarray, "height width 3"],
  owner: Int8[np.ndarray, "height width"],
  pose: scene_lib.Pose,
  side: float,
) -> None:
  """Draws the cover that hides an object, raised from the bottom by `pose.covered`."""
  left, right = round(pose.x - side / 2), round(pose.x + side / 2)
  bottom = round(pose.y + side / 2)
  top = bottom - round(pose.covered * side)
  rows, columns = slice(max(top, 0), bottom), slice(max(left, 0), right)
  owner[rows, columns] = -1
  area = image[rows, columns]
  height, width = area.shape[:2]
  diagonal = np.arange(height)[:, None] + np.arange(width)[None, :]
  stripe = diagonal % max(4, round(side / 4)) < max(2, round(side / 8))
  striped, plain = np.array(_COVER_STRIPE, np.float32), np.array(_COVER, np.float32)
  area[:] = np.where(stripe[..., None], striped, plain)
  if pose.lit:
    area += _GLARE * (np.array(_LAMP, np.float32) - area)
