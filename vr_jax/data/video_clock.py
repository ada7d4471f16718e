"""Times of decoded frames: in order, from 0, also where a file's clock starts anew."""

from collections.abc import Iterator
import dataclasses
import heapq
import math
from pathlib import Path

import av

from vr_jax.errors import InputError

# The most frames that codecs hold back to put them in order (H.264 and H.265).
REORDERED = 16

# Seconds; a larger step back of a format with new clocks is a new clock, as for FFmpeg's command.
_STEP_BACK = 0.1

# Seconds; a longer gap between frames of such a format is a new clock, as for FFmpeg's command.
_LONGEST_GAP = 10.0

# Seconds (30 hours); no frame of any format is on the screen for longer, as for FFmpeg's command.
_LONGEST_FRAME = 30 * 3600.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class TimedFrame:
  """A decoded frame.

  start, end: seconds since the first frame.
  pixel_aspect: width of a pixel, in units of its height.
  """

  frame: av.VideoFrame
  start: float
  end: float
  pixel_aspect: float


@dataclasses.dataclass(kw_only=True)
class VideoClock:
  """Gives decoded frames their times in seconds since the first frame.

  Frames come in the order in which they are shown. Where the format has times of decoding alone,
  these are put in order. In a format whose clock may start anew (recordings that were joined) the
  later part follows the one before, as FFmpeg's command joins them.

  restarts: whether the format is one of those.
  held: frames that are held back until their times are in order.
  end: of the last frame yielded, in seconds.
  """

  path: Path
  restarts: bool
  held: int
  end: float = 0.0
  _frames: list[tuple[av.VideoFrame, float, float]] = dataclasses.field(default_factory=list)
  _times: list[float] = dataclasses.field(default_factory=list)
  _origin: float | None = None
  _newest: float = -math.inf
  _last: float = -math.inf
  _decoded: float = -math.inf  # the last time of decoding
  _jumps: int = 0  # of times of decoding, which the frames have yet to follow

  def note_decoding(self, time: float) -> None:
    """Notes the time at which the next packet is to be decoded, in seconds.

    Only where these times jump can a clock have started anew.
    """
    jumped = not self._decoded - _STEP_BACK <= time <= self._decoded + _LONGEST_GAP
    self._jumps += jumped and self._decoded > -math.inf
    self._decoded = time

  def add(self, frame: av.VideoFrame, seconds: float, pixel_aspect: float) -> Iterator[TimedFrame]:
    """Takes the next frame; yields those whose times are known by now.

    seconds: the frame's duration.
    pixel_aspect: width of its pixels, in units of their height.
    """
    if frame.time is None:
      raise InputError(
        f"{self.path}: its frames have no times; give them a rate: "
        f"ffmpeg -r RATE -i {self.path.name} -c:v libx264 NEW.mp4"
      )
    # FFmpeg's tolerance; in other formats a file may have its frames in the order of decoding.
    tolerance = _STEP_BACK if self.restarts else max(REORDERED * seconds, _STEP_BACK)
    restarted = frame.time < self._newest - tolerance
    skipped = frame.time > self._newest + seconds + _LONGEST_GAP
    if self.restarts and self._newest > -math.inf and (restarted or skipped):
      if not self._jumps:  # frames in a wrong order, as behind a gap
        raise InputError(f"{self.path}: is damaged after {self.end:.2f} s")
      self._jumps -= 1
      yield from self.flush()
      self._origin = frame.time - self.end
      self._newest = -math.inf
    elif restarted:
      raise InputError(
        f"{self.path}: its clock goes back from {self._newest:.2f} s to {frame.time:.2f} s; "
        f"write it anew: ffmpeg -i {self.path.name} -c:v libx264 NEW.mp4"
      )
    elif self._newest > -math.inf and frame.time - self._newest + seconds > _LONGEST_FRAME:
      raise InputError(
        f"{self.path}: its clock jumps from {self._newest:.2f} s to {frame.time:.2f} s; "
        f"write it anew: ffmpeg -i {self.path.name} -c:v libx264 NEW.mp4"
      )
    self._newest = max(self._newest, frame.time)
    self._frames.append((frame, seconds, pixel_aspect))
    heapq.heappush(self._times, frame.time)
    if len(self._frames) > self.held:
      yield self._pop()

  def flush(self) -> Iterator[TimedFrame]:
    """Yields the frames that are left."""
    while self._frames:
      yield self._pop()

  def _pop(self) -> TimedFrame:
    frame, seconds, pixel_aspect = self._frames.pop(0)
    time = heapq.heappop(self._times)
    if self._origin is None:
      self._origin = time
    start = time - self._origin
    if start <= self._last:
      raise InputError(
        f"{self.path}: its times go back at {start:.2f} s (copied from a stream without times?); "
        "write it anew from its source: ffmpeg -r RATE -i SOURCE -c:v libx264 NEW.mp4"
      )
    self._last, self.end = start, start + seconds
    return TimedFrame(frame=frame, start=start, end=self.end, pixel_aspect=pixel_aspect)
