"""Follows found objects through a video with SAM2, and writes their masks.

See `vr_jax/segment.py` for the files.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import fractions
import json
from pathlib import Path
from typing import Any

import av
from jaxtyping import Bool, Float, UInt8
import numpy as np
from PIL import Image
import simplejpeg

from vr_jax import frame_times, run_length
from vr_jax.data import guarded_reader, image_folder, video_file
from vr_jax.eval import box_tracking, found_object
from vr_jax.models import sam2

# Red, green and blue of the objects' masks, in order; they repeat.
_COLOURS = ((230, 60, 60), (60, 140, 240), (70, 190, 90), (240, 180, 40), (170, 90, 220))
_OPACITY = 0.5  # of a mask over its frame
_CLOCK = 90_000  # ticks a second of an overlay's times
_BOX_LINE = 2  # pixels
# Of the frames that SAM2 reads; at 95 the difference to the video's own frames can't be seen.
_QUALITY = 95
_EVERY_FRAME = 1e6  # frames a second, more than any video has
_ANY_SIDE = 2**31  # pixels

# Run-length masks of each object, by frame; None for a mask without a pixel.
Masks = Sequence[Sequence[run_length.RunLength | None]]


def read_video(
  path: Path,
  limits: guarded_reader.DecodeLimits,
  folder: image_folder.FolderFrames | None = None,
) -> video_file.ExtractedVideo:
  """Reads all frames of a video at their full size. folder: of a path that is one of pictures.

  Raises InputError if it is bad, or breaks a limit.
  """
  settings: dict[str, Any] = {"fps": _EVERY_FRAME, "quality": _QUALITY, "max_side": _ANY_SIDE}
  return guarded_reader.extract(path, limits=limits, folder=folder, **settings)


def frame_at(times: Float[np.ndarray, "frames"], time: float) -> int:
  """The index of the frame that has this time, in seconds.

  times: of all frames.

  Raises ValueError if no frame has it: the key frame's box would be put on another one.
  """
  index = int(frame_times.find(times, np.array([time]))[0])
  if index < 0:
    raise ValueError(f"no frame at {time:g} s")
  return index


def track(
  segmenter: sam2.Segmenter,
  video: video_file.ExtractedVideo,
  found: Sequence[found_object.FoundObject],
  *,
  size: tuple[int, int] | None = None,
  fresh_reverse: bool = False,
  on_progress: Callable[[int, int], None] | None = None,
) -> Masks:
  """Follows each object from its key frame to both ends of the video; all at the same time.

  Objects without a box get empty masks.

  size: height and width of the masks; None: those of the video.
  """
  count = len(video.jpegs)
  prompts = {
    number: sam2.BoxPrompt(object=0, frame=each.frame, box=each.box)
    for number, each in enumerate(found)
    if each.frame is not None and each.box is not None
  }
  followed = {}
  if prompts:
    frames = sam2.LazyFrames(
      shape=(count, video.height, video.width, 3),
      read=lambda start, stop: np.stack([_decode(jpeg) for jpeg in video.jpegs[start:stop]]),
    )
    masks = box_tracking.follow(
      segmenter,
      [frames] * len(prompts),
      [*prompts.values()],
      sizes=None if size is None else [size] * len(prompts),
      fresh_reverse=fresh_reverse,
      on_progress=on_progress,
    )
    followed = dict(zip(prompts, masks, strict=True))
  return [
    [followed[number][frame] if number in followed else None for frame in range(count)]
    for number in range(len(found))
  ]


def write(
  directory: Path,
  name: str,
  video: video_file.ExtractedVideo,
  found: Sequence[found_object.FoundObject],
  masks: Masks,
) -> None:
  """Writes masks.json, the PNG files and overlay.mp4 into an existing, empty directory.

  name: of the video, for masks.json.
  """
  digits = max(5, len(str(len(video.jpegs) - 1)))
  for number, of_object in enumerate(masks):
    folder = directory / f"{number:03d}"
    folder.mkdir()
    for frame, mask in enumerate(of_object):
      pixels = run_length.decode(mask, video.height, video.width)
      Image.fromarray(pixels.astype(np.uint8) * 255).save(folder / f"{frame:0{digits}d}.png")
  (directory / "masks.json").write_text(json.dumps(_record(name, video, found, masks)) + "\n")
  _write_video(directory / "overlay.mp4", video, _overlays(video, found, masks))


def _record(
  name: str,
  video: video_file.ExtractedVideo,
  found: Sequence[found_object.FoundObject],
  masks: Masks,
) -> dict[str, Any]:
  return {
    "video": name,
    "height": video.height,
    "width": video.width,
    "timestamps": [round(float(time), 6) for time in video.timestamps],
    "objects": [
      {**dataclasses.asdict(each), "masks": of_object}
      for each, of_object in zip(found, masks, strict=True)
    ],
  }


def _overlays(
  video: video_file.ExtractedVideo, found: Sequence[found_object.FoundObject], masks: Masks
) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
  """The frames with the masks over them, and the boxes in their key frames."""
  for index, jpeg in enumerate(video.jpegs):
    image = _decode(jpeg).copy()
    for number, (each, of_object) in enumerate(zip(found, masks, strict=True)):
      colour = np.array(_COLOURS[number % len(_COLOURS)])
      pixels = run_length.decode(of_object[index], video.height, video.width)
      image[pixels] = (1 - _OPACITY) * image[pixels] + _OPACITY * colour
      if each.frame == index and each.box is not None:
        image[_outline(each.box, image.shape[:2])] = colour
    yield image


def _outline(
  box: tuple[float, float, float, float], size: tuple[int, int]
) -> Bool[np.ndarray, "height width"]:
  """The pixels along the sides of a box, inside of it."""
  left, top, right, bottom = (round(side) for side in box)
  inside = np.zeros(size, bool)
  inside[top : max(bottom, top + 1), left : max(right, left + 1)] = True
  inner = (slice(top + _BOX_LINE, bottom - _BOX_LINE), slice(left + _BOX_LINE, right - _BOX_LINE))
  inside[inner] = False
  return inside


def _write_video(
  path: Path,
  video: video_file.ExtractedVideo,
  frames: Iterator[UInt8[np.ndarray, "height width 3"]],
) -> None:
  """Writes frames at the times of the video's. Odd sides lose a row or column of pixels."""
  height, width = (max(2, side - side % 2) for side in (video.height, video.width))
  with av.open(str(path), "w", format="mp4") as container:
    stream = container.add_stream("libx264", rate=30)
    stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
    stream.codec_context.time_base = fractions.Fraction(1, _CLOCK)
    for time, image in zip(video.timestamps, frames, strict=True):
      frame = av.VideoFrame.from_ndarray(
        np.ascontiguousarray(image[:height, :width]), format="rgb24"
      )
      frame.pts, frame.time_base = round(float(time) * _CLOCK), fractions.Fraction(1, _CLOCK)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


def _decode(jpeg: bytes) -> UInt8[np.ndarray, "height width 3"]:
  return simplejpeg.decode_jpeg(jpeg, colorspace="RGB")
