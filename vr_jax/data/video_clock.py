"""Times of decoded frames: in order, from 0, also where a file's clock starts anew.

A frame's PTS is when it is shown, a packet's DTS when it is decoded.
"""

import dataclasses
import heapq
import math
from pathlib import Path

import av

from vr_jax.errors import InputError

# The most frames that H.264 and H.265 hold back to put them in order.
MAX_REORDERED = 16

# Seconds, as FFmpeg's command has them. Where a clock may start anew (MPEG-TS and the like), it did
# if times go back by more than _STEP_BACK or ahead by more than _LONGEST_GAP.
_STEP_BACK = 0.1
_LONGEST_GAP = 10.0

# Seconds (30 hours), as FFmpeg's command has it: no clock of any format jumps ahead by more.
_LONGEST_JUMP = 30 * 3600.0

# Frames after a jump of the DTS within which the PTS have to jump as well.
_FOLLOWS_WITHIN = 4 * MAX_REORDERED


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

  Frames come in the order in which they are shown. Where the format has DTS alone, they come with
  these, and the sorted DTS are their times. In a format whose clock may start anew (recordings that
  were joined) the later part follows the one before, as FFmpeg's command joins them.

  may_restart: whether the format is one of those.
  reorder_depth: how many frames are held back to sort their times; 0 if they are PTS.
  end: of the last frame given back, in seconds.
  """

  path: Path
  may_restart: bool
  reorder_depth: int
  end: float = 0.0
  _frames: list[tuple[av.VideoFrame, float, float]] = dataclasses.field(default_factory=list)
  _times: list[float] = dataclasses.field(default_factory=list)
  _origin: float | None = None
  _max_pts: float = -math.inf  # on the file's clock, since that last started
  _last_start: float = -math.inf  # seconds since the first frame
  _last_dts: float = -math.inf
  # For each jump of the DTS that the PTS have not followed yet: how many frames ago it was.
  _pending_jumps: list[int] = dataclasses.field(default_factory=list)

  def observe_dts(self, time: float) -> None:
    """Notes the DTS of the next packet, in seconds. Only where DTS jump can a clock start anew."""
    jumped = not self._last_dts - _STEP_BACK <= time <= self._last_dts + _LONGEST_GAP
    if jumped and self._last_dts > -math.inf:
      self._pending_jumps.append(0)
    self._last_dts = time

  def add(self, frame: av.VideoFrame, duration: float, pixel_aspect: float) -> list[TimedFrame]:
    """Takes the next frame; returns those whose times are known by now.

    duration: in seconds.
    pixel_aspect: width of the frame's pixels, in units of their height.

    Raises InputError if the frame has no PTS, or its PTS can't be right.
    """
    timed: list[TimedFrame] = []
    if frame.time is None:
      raise InputError(
        f"{self.path}: its frames have no times; give them a rate: "
        f"ffmpeg -r RATE -i {self.path.name} -c:v libx264 NEW.mp4"
      )
    # In formats with one clock, a file may have its frames in the order of decoding.
    tolerance = _STEP_BACK if self.may_restart else max(MAX_REORDERED * duration, _STEP_BACK)
    went_back = frame.time < self._max_pts - tolerance
    skipped = frame.time > self._max_pts + duration + _LONGEST_GAP
    self._pending_jumps = [age + 1 for age in self._pending_jumps if age < _FOLLOWS_WITHIN]
    if self.may_restart and self._max_pts > -math.inf and (went_back or skipped):
      if not self._pending_jumps:  # the DTS went on, so it is no new clock
        raise InputError(f"{self.path}: is damaged after {self.end:.2f} s")
      del self._pending_jumps[0]
      timed = self.flush()
      self._origin = frame.time - self.end
      self._max_pts = -math.inf
    elif went_back:
      raise InputError(
        f"{self.path}: its clock goes back from {self._max_pts:.2f} s to {frame.time:.2f} s; "
        f"write it anew: ffmpeg -i {self.path.name} -c:v libx264 NEW.mp4"
      )
    elif self._max_pts > -math.inf and frame.time - self._max_pts + duration > _LONGEST_JUMP:
      raise InputError(
        f"{self.path}: its clock jumps from {self._max_pts:.2f} s to {frame.time:.2f} s; "
        f"write it anew: ffmpeg -i {self.path.name} -c:v libx264 NEW.mp4"
      )
    self._max_pts = max(self._max_pts, frame.time)
    self._frames.append((frame, duration, pixel_aspect))
    heapq.heappush(self._times, frame.time)
    if len(self._frames) > self.reorder_depth:
      timed.append(self._pop())
    return timed

  def flush(self) -> list[TimedFrame]:
    """Returns the frames that are left."""
    return [self._pop() for _ in range(len(self._frames))]

  def _pop(self) -> TimedFrame:
    frame, duration, pixel_aspect = self._frames.pop(0)
    time = heapq.heappop(self._times)
    if self._origin is None:
      self._origin = time
    start = time - self._origin
    if start <= self._last_start:
      raise InputError(
        f"{self.path}: its times go back at {start:.2f} s (copied from a stream without times?); "
        "write it anew from its source: ffmpeg -r RATE -i SOURCE -c:v libx264 NEW.mp4"
      )
    self._last_start, self.end = start, start + duration
    return TimedFrame(frame=frame, start=start, end=self.end, pixel_aspect=pixel_aspect)
