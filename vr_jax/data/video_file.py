"""One video file cut to frames: decoded once, a JPEG at every tick of a set rate, with the time it was shown."""

from collections.abc import Iterator
import dataclasses
import io
import math
from pathlib import Path

import av
from jaxtyping import Float, UInt8
import numpy as np
from PIL import Image

from vr_jax.errors import InputError

# A tick at 1 s takes the frame at 0.99999 s: containers round times to a clock of their own.
TIME_TOLERANCE = 1e-4

# FFmpeg opens pictures (also "png_pipe" and its like) and plain text as video streams.
_PICTURE_FORMATS = ("image2", "tty")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CutVideo:
  """The frames kept of one video, in the order of their times.

  `timestamps` are seconds since the first frame of the video; `duration` is the end of its last frame, kept or not, and 0 of
  a still; every frame has `height` x `width` pixels.
  """

  jpegs: tuple[bytes, ...]
  timestamps: Float[np.ndarray, "frames"]
  height: int
  width: int
  duration: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class _TimedFrame:
  frame: av.VideoFrame
  start: float  # seconds since the first frame
  end: float


def find(directory: Path) -> tuple[str, ...]:
  """Files under `directory`, as sorted paths relative to it, with forward slashes.

  Raises:
    InputError: there is no such directory, or it holds no file.
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
  """Decodes a video from start to end and keeps `fps` frames a second as JPEG.

  For each tick k / fps the first frame at or after it is kept, once: a video slower than `fps` keeps every frame of
  its own and none twice. Frames are turned upright where the file says so, and scaled down (never up) until no side
  is longer than `max_side` pixels. `quality` is that of JPEG, 1 to 95.

  Raises:
    InputError: the file cannot be read, is no video, has no video stream or no frames, is damaged, or ends before
      the time that its header declares.
  """
  jpegs, timestamps = [], []
  # One for the video: setting up a conversion costs more than converting a small frame.
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
  """All frames of a video file with their times; raises InputError as `cut` says."""
  try:
    with av.open(str(path)) as container:
      yield from _decode_stream(path, container, _video_stream(path, container))
  except av.FFmpegError as error:
    raise InputError(
      f"{path}: cannot be decoded ({error.strerror}); it is truncated, damaged or no video"
    ) from error


def _video_stream(path: Path, container: av.container.InputContainer) -> av.VideoStream:
  format_name = container.format.name
  if format_name in _PICTURE_FORMATS or format_name.endswith("_pipe"):
    raise InputError(f"{path}: is no video (FFmpeg reads it as {format_name})")
  # The cover picture of a song is a video stream, too.
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
  # Headers are honest to a few frames; a file cut off between two packets shows in nothing but its length.
  if first is not None and declared is not None and declared - end > max(3 * seconds, 0.25):
    raise InputError(f"{path}: is truncated: it ends at {end:.2f} s of {declared:.2f} s")


def _frame_seconds(frame: av.VideoFrame, stream: av.VideoStream) -> float:
  if frame.duration and frame.time_base:
    return float(frame.duration * frame.time_base)
  return float(1 / stream.average_rate) if stream.average_rate else 0.0


def _declared_seconds(
  container: av.container.InputContainer, stream: av.VideoStream
) -> float | None:
  if stream.duration is not None:
    return float(stream.duration * stream.time_base)
  # The length of the container is that of its longest stream: it says something of ours only where it is alone.
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
  """The frame as RGB, upright; of `size` (width, height) if that is not 0, else within `max_side`."""
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
  """An RGB image as JPEG of a quality of 1 to 95."""
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, "JPEG", quality=quality)
  return buffer.getvalue()
