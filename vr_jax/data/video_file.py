"""Decodes a video file once, and keeps JPEG frames with their times: at a rate, or chosen ones."""

import bisect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
from fractions import Fraction
import io
import math
import os
from pathlib import Path
import shlex

import av
import av.container
import av.error
import av.sidedata.sidedata
import av.stream
import av.video.reformatter
from jaxtyping import Float, UInt8
import numpy as np
from PIL import Image

from vr_jax import frame_times
from vr_jax.data import file_structure, upright_images, video_clock
from vr_jax.errors import InputError

# Of a frame or picture, by default.
MAX_PIXELS = 100_000_000

# FFmpeg opens pictures (also as "png_pipe" and the like), plain text and lists of other files as
# video streams.
_OTHER_FORMATS = ("image2", "tty", "hls", "dash", "concat")

# Brands of HEIC and HEIF files, in which a phone's photo is many small pictures.
_HEIF_PICTURES = ("heic", "heix", "heim", "heis", "mif1")

# FFmpeg's AVFMT_TS_DISCONT: formats (MPEG-TS and the like) whose clock may start anew.
_RESTARTING_CLOCKS = 0x0200


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExtractedVideo:
  """The frames kept from one video, in order of time.

  timestamps: seconds since the first frame of the video.
  ends: when each frame left the screen, as the next frame came or the video ended; in seconds.
  height, width: of every frame, in pixels.
  duration: the end of the video's last frame, kept or not, in seconds; 0 for a still picture.
  original_height, original_width: as it is shown, before it was scaled down, in pixels; 0: unknown.
  """

  jpegs: tuple[bytes, ...]
  timestamps: Float[np.ndarray, "frames"]
  ends: Float[np.ndarray, "frames"]
  height: int
  width: int
  duration: float
  original_height: int = 0
  original_width: int = 0


def find(directory: Path) -> tuple[str, ...]:
  """Returns the files under `directory`, as sorted relative paths with forward slashes.

  Linked files and directories are followed, except into a directory that holds the link.

  Raises:
    InputError: the directory does not exist or has no file.
  """
  if not directory.is_dir():
    raise InputError(f"{directory}: there is no such directory of videos")
  files = []
  for folder, folders, names in os.walk(directory, followlinks=True):
    here = Path(folder).resolve()
    folders[:] = [each for each in folders if not here.is_relative_to((here / each).resolve())]
    paths = (Path(folder) / name for name in names)
    files += [path.relative_to(directory).as_posix() for path in paths if path.is_file()]
  if not files:
    raise InputError(f"{directory}: the directory holds no videos")
  return tuple(sorted(files))


def extract(
  path: Path,
  *,
  fps: float,
  quality: int,
  max_side: int,
  kept_pixels: int | None = None,
  max_pixels: int = MAX_PIXELS,
  most_frames: int | None = None,
  at: Sequence[float] | None = None,
  progress: Callable[[], None] = lambda: None,
) -> ExtractedVideo:
  """Decodes a whole video and keeps `fps` frames a second, or those at given times, as JPEG.

  For each tick k / fps the first frame at or after it is kept, once. So a video with fewer frames a
  second keeps each of its frames once. A frame that stays on the screen for longer than 1 / fps is
  kept, too. Frames are rotated as the file says, stretched in width
  where its pixels are not square, and scaled down if a side is longer than `max_side`. Frames of
  another shape than the first are fitted into its size, with black bars.

  quality: of JPEG, 1 to 95.
  max_side: in pixels.
  kept_pixels: a frame that has more is scaled down to about so many; None: no limit.
  max_pixels: of a frame as it is in the file.
  most_frames: that may be kept; None: any number.
  at: increasing times in seconds; the frames on the screen at these times are kept, each once, and
    no others, whatever `fps` is; of times behind the end none. None: as `fps` says.
  progress: is called after each frame, kept or not.

  Raises:
    InputError: the file cannot be read, is not a video, has no video stream or no frames, is
      damaged, ends before the time that its header declares, or has larger or more frames.
  """
  jpegs, timestamps, ends = [], [], []
  # One for the whole video: setting up a conversion costs more than converting a small frame.
  reformatter = av.video.reformatter.VideoReformatter()
  height = width = tick = passed = 0
  original = (0, 0)
  end = 0.0
  for timed in _until_next(decode(path, max_pixels)):
    progress()
    end = timed.end
    if at is not None:
      before, passed = passed, bisect.bisect_left(at, end - frame_times.TOLERANCE)
      if passed == before:
        continue
    elif timed.start + frame_times.TOLERANCE >= tick / fps:
      tick = math.floor((timed.start + frame_times.TOLERANCE) * fps) + 1
    elif timed.end - timed.start <= 1 / fps + frame_times.TOLERANCE:
      continue
    if len(jpegs) == most_frames:
      raise InputError(
        f"{path}: has more than {most_frames} frames at {fps:g} a second; ask for fewer a second, "
        "or cut the video"
      )
    side = upright_images.longest_side(upright_images.shown_size(timed), max_side, kept_pixels)
    image = upright_images.upright_image(timed, reformatter, side, size=(width, height))
    height, width = image.shape[:2]
    if not jpegs:
      original = upright_images.scaled(upright_images.shown_size(timed), 1.0)
    jpegs.append(encode(image, quality))
    timestamps.append(timed.start)
    ends.append(timed.end)
  if not jpegs and (at is None or not end):
    raise InputError(f"{path}: the video has no frames")
  return ExtractedVideo(
    jpegs=tuple(jpegs),
    timestamps=np.array(timestamps, np.float64),
    ends=np.array(ends, np.float64),
    height=height,
    width=width,
    duration=end,
    original_height=original[1],
    original_width=original[0],
  )


def read_length(path: Path, *, progress: Callable[[], None] = lambda: None) -> float:
  """The `duration` that `extract` will most likely find, in seconds, without decoding a frame.

  It is that of the times in the file, which need not be right. 0: they say nothing.
  """
  first, last, seconds = math.inf, -math.inf, 0.0
  try:
    with av.open(f"file:{path}") as container:
      stream = _video_stream(path, container)
      for packet in container.demux(stream):
        progress()
        if packet.pts is None or packet.time_base is None or packet.is_discard:
          continue
        time = float(packet.pts * packet.time_base)
        first = min(first, time)
        if time >= last:
          last, seconds = time, float((packet.duration or 0) * packet.time_base)
      if not seconds and stream.average_rate:
        seconds = float(1 / stream.average_rate)
  except (av.error.FFmpegError, InputError):
    return 0.0  # `extract` says what is wrong
  return max(0.0, last - first + seconds) if last >= first else 0.0


def _until_next(frames: Iterable[video_clock.TimedFrame]) -> Iterator[video_clock.TimedFrame]:
  """Makes each frame end where the next one starts, as it stays on the screen until then."""
  previous = None
  for timed in frames:
    if previous is not None:
      yield dataclasses.replace(previous, end=timed.start)
    previous = timed
  if previous is not None:
    yield previous


def decode(path: Path, max_pixels: int = MAX_PIXELS) -> Iterator[video_clock.TimedFrame]:
  """Yields all frames of a video file with their times. Raises InputError as `extract` does."""
  try:
    # Else FFmpeg takes "12:30.mp4" for an address, and "concat:a.mp4" for another file.
    with av.open(f"file:{path}") as container:
      stream = _video_stream(path, container)
      check_size(path, stream.width, stream.height, max_pixels)
      for timed in _decode_stream(path, container, stream):
        check_size(path, timed.frame.width, timed.frame.height, max_pixels)
        _check_turn(path, timed.frame)
        yield timed
  except (MemoryError, BlockingIOError):  # FFmpeg's, too: no memory, or none for a thread
    raise
  except av.error.FFmpegError as error:
    raise InputError(
      f"{path}: cannot be decoded ({error.strerror}); it is truncated, damaged or not a video"
    ) from error


def check_size(path: Path, width: int, height: int, max_pixels: int) -> None:
  """Raises InputError if a frame or picture is too large."""
  if width * height > max_pixels:
    raise InputError(
      f"{path}: its {width} x {height} pixels are more than {max_pixels / 1e6:g} million; "
      "make it smaller, or raise config.data.decode.megapixels"
    )


def _check_turn(path: Path, frame: av.VideoFrame) -> None:
  """Raises InputError if a frame is to be shown neither upright nor turned by a quarter turn."""
  a, b, c, d = upright_images.matrix(frame)
  straight, crossed = abs(a) + abs(d), abs(b) + abs(c)
  if min(straight, crossed) > 0.02 * max(straight, crossed):
    degrees = math.degrees(math.atan2(b, a))
    raise InputError(
      f"{path}: is to be shown aslant (turned by {degrees:.0f} degrees); "
      f"write it anew: ffmpeg -i {shlex.quote(path.name)} -c:v libx264 NEW.mp4"
    )


def _video_stream(path: Path, container: av.container.InputContainer) -> av.VideoStream:
  """Returns the default stream, else the largest picture, as FFmpeg's command chooses.

  Of equal ones it is that of more frames, else the first. A cover picture is none of them.
  """
  format_name = container.format.name
  if format_name in _OTHER_FORMATS or format_name.endswith("_pipe"):
    raise InputError(f"{path}: is not a video (FFmpeg reads it as {format_name})")
  if container.metadata.get("major_brand", "").strip() in _HEIF_PICTURES:
    raise InputError(f"{path}: is a HEIF picture, of which FFmpeg reads tiles; make it a JPEG")
  flags = av.stream.Disposition
  streams = [
    stream
    for stream in container.streams.video
    if not stream.disposition & (flags.attached_pic | flags.dependent)
  ]
  if not streams:
    raise InputError(f"{path}: has no video stream (audio only?)")
  stream = max(
    streams,
    key=lambda each: (
      bool(each.disposition & flags.default),
      (each.width or 0) * (each.height or 0) if each.codec_context else -1,
      each.frames,
    ),
  )
  if stream.codec_context is None:  # in spite of PyAV's types
    raise InputError(
      f"{path}: cannot be decoded (no known codec); it is truncated, damaged or not a video"
    )
  # PyAV hides the error of a frame that another thread decodes ahead, and loses those behind it.
  stream.codec_context.thread_count = 1
  return stream


def _decode_stream(
  path: Path, container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[video_clock.TimedFrame]:
  may_restart = container.format.flags & _RESTARTING_CLOCKS != 0
  is_avi = container.format.name == "avi"
  clock = video_clock.VideoClock(path=path, may_restart=may_restart)
  ends: dict[int, float] = {}  # of every stream, on the container's clock
  first = time = None  # of the first packet, and of the last frame
  seconds, missing, is_key = 0.0, 0, list[bool]()
  declared = stream.codec_context.sample_aspect_ratio
  # Sound and subtitles are read, not decoded: their ends tell a cut file from a short picture.
  for packet in container.demux():
    if packet.pts is not None and packet.time_base is not None:
      end = float((packet.pts + (packet.duration or 0)) * packet.time_base)
      ends[packet.stream.index] = max(end, ends.get(packet.stream.index, 0.0))
    if packet.stream.index != stream.index:
      continue
    if packet.dts is not None and packet.time_base is not None:
      clock.observe_dts(float(packet.dts * packet.time_base))
      first = float(packet.dts * packet.time_base) if first is None else first
    is_key.append(packet.is_keyframe)
    frames = [frame for frame in packet.decode() if isinstance(frame, av.VideoFrame)]
    missing += (packet.size > 0) - len(frames)
    if packet.is_corrupt or any(frame.is_corrupt for frame in frames):
      raise InputError(f"{path}: is damaged after {clock.end:.2f} s")
    for frame in frames:
      seconds, previous = _frame_seconds(frame, stream), seconds
      time = _avi_time(frame, time, previous) if is_avi else frame.time
      yield clock.add(frame, time, seconds, _pixel_aspect(stream, declared))
  if not file_structure.is_whole(path, container.format.name):
    raise InputError(
      f"{path}: is damaged or truncated: a part of the file ends where no other begins"
    )
  if is_avi and missing > 3:
    raise InputError(f"{path}: is damaged: {missing} of its frames can't be decoded")
  if is_avi and any(is_key) and not is_key[0]:  # some programs mark none
    raise InputError(f"{path}: is damaged: the first of its frames needs others that are lost")
  if is_avi and time is not None:
    places_end = time + seconds - (first or 0.0)
    _check_avi_length(path, stream, video_end=clock.end, places_end=places_end, slack=seconds)
  elif not may_restart and clock.end:
    _check_complete(path, container, stream, ends, video_end=clock.end, slack=seconds)


def _frame_seconds(frame: av.VideoFrame, stream: av.VideoStream) -> float:
  if frame.duration and frame.time_base:
    return float(frame.duration * frame.time_base)
  rate = stream.average_rate or stream.guessed_rate
  return float(1 / rate) if rate else 0.0


def _avi_time(frame: av.VideoFrame, previous: float | None, seconds: float) -> float:
  """When an AVI's frame is shown, as FFmpeg's command has it.

  AVI has no PTS, only a place for each frame in the order of decoding. So a frame's time is that of
  the packet at which the decoder gave it back; the last ones come without a packet.

  previous, seconds: when the frame before was shown, and for how long.
  """
  if frame.dts is not None and frame.time_base is not None:
    return float(frame.dts * frame.time_base)
  return 0.0 if previous is None else previous + seconds


def _pixel_aspect(stream: av.VideoStream, declared: Fraction | None) -> float:
  """Width of a pixel, in units of its height: the container's, or else that of the last frame.

  declared: what the codec said before the first frame.
  """
  aspect, newest = stream.sample_aspect_ratio, stream.codec_context.sample_aspect_ratio
  if aspect == declared and newest:
    aspect = newest  # the container has none of its own, and recordings change theirs
  return float(aspect) if aspect else 1.0


def _check_complete(
  path: Path,
  container: av.container.InputContainer,
  stream: av.VideoStream,
  ends: Mapping[int, float],
  *,
  video_end: float,
  slack: float,
) -> None:
  """Raises InputError if the file ends before the times that its header declares.

  Headers are right to within a few frames. A file that was cut off between two packets can only be
  recognized by its length: that of the video stream, or else that of the longest stream.

  ends: of each stream that has packets, in seconds of the container's clock.
  slack: seconds of a frame.
  """
  if stream.duration is not None and stream.time_base is not None:
    declared, reached = float(stream.duration * stream.time_base), video_end
  elif container.duration is not None:
    declared, reached = container.duration / av.time_base, max(ends.values(), default=0.0)
    # Matroska counts its duration from 0, also where the first frame comes later.
    if "matroska" not in container.format.name:
      reached -= (container.start_time or 0) / av.time_base
  else:
    return
  _check_end(path, declared, reached, slack)


def _check_avi_length(
  path: Path, stream: av.VideoStream, *, video_end: float, places_end: float, slack: float
) -> None:
  """Raises InputError if an AVI ends before or after its header says.

  video_end: seconds since the first frame.
  places_end: seconds since the first place that holds a frame. A recorder may have left places
    empty, and B-frames come some places late.
  slack: seconds of a frame.
  """
  if stream.duration is None or stream.time_base is None:
    return
  # FFmpeg shortens an AVI's duration to what its file can hold; the header's count stays.
  declared = float(stream.frames * stream.time_base)
  _check_end(path, declared, places_end, slack)
  if video_end - declared > max(3 * slack, 0.25):
    raise InputError(
      f"{path}: is damaged: it has {video_end:.2f} s, its header says {declared:.2f} s"
    )


def _check_end(path: Path, declared: float, reached: float, slack: float) -> None:
  if declared - reached > max(3 * slack, 0.25):
    raise InputError(f"{path}: is truncated: it ends at {reached:.2f} s of {declared:.2f} s")


def encode(image: UInt8[np.ndarray, "height width 3"], quality: int) -> bytes:
  """Encodes an RGB image as JPEG. quality: 1 to 95."""
  buffer = io.BytesIO()
  Image.fromarray(image).save(buffer, "JPEG", quality=quality)
  return buffer.getvalue()
