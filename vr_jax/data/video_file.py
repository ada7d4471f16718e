"""Decodes a video file once, and keeps JPEG frames at a fixed rate with their times."""

from collections.abc import Iterator
import dataclasses
import io
import math
from pathlib import Path

import av
import av.container
import av.error
import av.stream
import av.video.reformatter
from jaxtyping import Float, UInt8
import numpy as np
from PIL import Image

from vr_jax.errors import InputError

# In seconds. Containers round times to their own clock, so a tick at 1 s may take the frame at
# 0.99999 s.
TIME_TOLERANCE = 1e-4

# FFmpeg opens pictures (also as "png_pipe" and the like) and plain text as video streams.
_PICTURE_FORMATS = ("image2", "tty")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CutVideo:
  """The frames kept from one video, in order of time.

  timestamps: seconds since the first frame of the video.
  height, width: of every frame, in pixels.
  duration: the end of the video's last frame, kept or not, in seconds; 0 for a still picture.
  """

  jpegs: tuple[bytes, ...]
  timestamps: Float[np.ndarray, "frames"]
  height: int
  width: int
  duration: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class _TimedFrame:
  """A decoded frame. start, end: seconds since the first frame."""

  frame: av.VideoFrame
  start: float
  end: float


def find(directory: Path) -> tuple[str, ...]:
  """Returns the files under `directory`, as sorted relative paths with forward slashes.

  Raises:
    InputError: the directory does not exist or has no file.
  """
  if not directory.is_dir():
    raise InputError(f"{directory}: there is no such directory of videos")
  files = sorted(
    path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()
  )
  if not files:
    raise InputError(f"{directory}: the directory holds no videos")
  return tuple(files)


def cut(path: Path, *, fps: float, quality: int, max_side: int) -> CutVideo:
  """Decodes a whole video and keeps `fps` frames a second as JPEG.

  For each tick k / fps the first frame at or after it is kept, once. So a video with fewer frames a
  second keeps each of its frames once. Frames are rotated as the file says, and scaled down if a
  side is longer than `max_side`.

  quality: of JPEG, 1 to 95.
  max_side: in pixels.

  Raises:
    InputError: the file cannot be read, is not a video, has no video stream or no frames, is
      damaged, or ends before the time that its header declares.
  """
  jpegs, timestamps = [], []
  # One for the whole video: setting up a conversion costs more than converting a small frame.
  reformatter = av.video.reformatter.VideoReformatter()
  height = width = tick = 0
  end = 0.0
  for timed in decode(path):
    end = timed.end
    if timed.start + TIME_TOLERANCE < tick / fps:
      continue
    tick = math.floor((timed.start + TIME_TOLERANCE) * fps) + 1
    image = _upright_image(timed.frame, reformatter, max_side, size=(width, height))
    height, width = image.shape[:2]
    jpegs.append(encode(image, quality))
    timestamps.append(timed.start)
  if not jpegs:
    raise InputError(f"{path}: the video has no frames")
  return CutVideo(
    jpegs=tuple(jpegs),
    timestamps=np.array(timestamps, np.float64),
    height=height,
    width=width,
    duration=end,
  )


def decode(path: Path) -> Iterator[_TimedFrame]:
  """Yields all frames of a video file with their times. Raises InputError as `cut` does."""
  try:
    with av.open(str(path)) as container:
      yield from _decode_stream(path, container, _video_stream(path, container))
  except av.error.FFmpegError as error:
    raise InputError(
      f"{path}: cannot be decoded ({error.strerror}); it is truncated, damaged or not a video"
    ) from error


def _video_stream(path: Path, container: av.container.InputContainer) -> av.VideoStream:
  format_name = container.format.name
  if format_name in _PICTURE_FORMATS or format_name.endswith("_pipe"):
    raise InputError(f"{path}: is not a video (FFmpeg reads it as {format_name})")
  # The cover picture of a song is a video stream too.
  cover = av.stream.Disposition.attached_pic
  streams = [stream for stream in container.streams.video if not stream.disposition & cover]
  if not streams:
    raise InputError(f"{path}: has no video stream (audio only?)")
  streams[0].thread_type = "AUTO"
  return streams[0]


def _decode_stream(
  path: Path, container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[_TimedFrame]:
  first = None
  start = end = seconds = 0.0
  for packet in container.demux(stream):
    frames = packet.decode()
    if packet.is_corrupt or any(frame.is_corrupt for frame in frames):
      raise InputError(f"{path}: is damaged after {end:.2f} s")
    for frame in frames:
      if frame.time is None:
        raise InputError(f"{path}: the frame after {end:.2f} s has no time; remux the file as .mp4")
      first = frame.time if first is None else first
      start = frame.time - first
      seconds = _frame_seconds(frame, stream)
      end = start + seconds
      yield _TimedFrame(frame=frame, start=start, end=end)
  declared = _declared_seconds(container, stream)
  # Headers are right to within a few frames. A file that was cut off between two packets can only
  # be recognized by its length.
  if first is not None and declared is not None and declared - end > max(3 * seconds, 0.25):
    raise InputError(f"{path}: is truncated: it ends at {end:.2f} s of {declared:.2f} s")


def _frame_seconds(frame: av.VideoFrame, stream: av.VideoStream) -> float:
  if frame.duration and frame.time_base:
    return float(frame.duration * frame.time_base)
  return float(1 / stream.average_rate) if stream.average_rate else 0.0


def _declared_seconds(
  container: av.container.InputContainer, stream: av.VideoStream
) -> float | None:
  if stream.duration is not None and stream.time_base is not None:
    return float(stream.duration * stream.time_base)
  # The container's length is that of its longest stream, so it counts only if there is one stream.
  if container.duration is not None and len(container.streams) == 1:
    return container.duration / av.time_base
  return None


def _upright_image(
  frame: av.VideoFrame,
  reformatter: av.video.reformatter.VideoReformatter,
  max_side: int,
  *,
  size: tuple[int, int],
) -> UInt8[np.ndarray, "height width 3"]:
  """Converts a frame to upright RGB.

  size: (width, height) in pixels; (0, 0) scales to `max_side` instead.
  """
  quarter_turns = round(frame.rotation / 90) % 4
  width, height = size
  if not width:
    scale = min(1.0, max_side / max(frame.width, frame.height))
    width, height = max(1, round(frame.width * scale)), max(1, round(frame.height * scale))
  elif quarter_turns % 2:
    width, height = height, width
  rgb = reformatter.reformat(frame, width, height, format="rgb24", interpolation="AREA")
  return np.ascontiguousarray(np.rot90(rgb.to_ndarray(), quarter_turns))


def encode(image: UInt8[np.ndarray, "height width 3"], quality: int) -> bytes:
  """Encodes an RGB image as JPEG. quality: 1 to 95."""
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, "JPEG", quality=quality)
  return buffer.getvalue()
