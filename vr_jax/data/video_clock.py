"""Times of decoded frames: in order, from 0, also where a file's clock starts anew.

A frame's PTS is when it is shown, a packet's DTS when it is decoded.
"""

import dataclasses
import math
from pathlib import Path
import shlex

import av

from vr_jax.errors import InputError

# The most frames that H.264 and H.265 hold back to put them in order.
_MAX_REORDERED = 16

# Seconds, as FFmpeg's command has them. Where a clock may start anew (MPEG-TS and the like), it did
# if times go back by more than _STEP_BACK or ahead by more than _LONGEST_GAP.
_STEP_BACK = 0.1
_LONGEST_GAP = 10.0

# Seconds (30 hours), as FFmpeg's command has it: no clock of any format jumps ahead by more.
_LONGEST_JUMP = 30 * 3600.0

# Frames after a jump of the DTS within which the PTS have to jump as well.
_FOLLOWS_WITHIN = 4 * _MAX_REORDERED


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

  Frames come in the order in which they are shown. In a format whose clock may start anew
  (recordings that were joined) the later part follows the one before, as FFmpeg's command joins
  them.

  may_restart: whether the format is one of those.
  end: of the last frame given back, in seconds.
  """

  path: Path
  may_restart: bool
  end: float = 0.0
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

  def add(
    self, frame: av.VideoFrame, time: float | None, duration: float, pixel_aspect: float
  ) -> TimedFrame:
    """Takes the next frame and returns it with its time.

    time: when the frame is shown, on the file's clock in seconds; None if the file doesn't say.
    duration: in seconds.
    pixel_aspect: width of the frame's pixels, in units of their height.

    Raises InputError if the frame has no time, or its time can't be right.
    """
    if time is None:
      raise InputError(
        f"{self.path}: its frames have no times; give them a rate: "
        f"ffmpeg -r RATE -i {shlex.quote(self.path.name)} -c:v libx264 NEW.mp4"
      )
    # In formats with one clock, a file may have its frames in the order of decoding.
    tolerance = _STEP_BACK if self.may_restart else max(_MAX_REORDERED * duration, _STEP_BACK)
    went_back = time < self._max_pts - tolerance
    skipped = time > self._max_pts + duration + _LONGEST_GAP
    self._pending_jumps = [age + 1 for age in self._pending_jumps if age < _FOLLOWS_WITHIN]
    if self.may_restart and self._max_pts > -math.inf and (went_back or skipped):
      if not self._pending_jumps:  # the DTS went on, so it is no new clock
        raise InputError(f"{self.path}: is damaged after {self.end:.2f} s")
      del self._pending_jumps[0]
      self._origin = time - self.end
      self._max_pts = -math.inf
    elif went_back:
      raise InputError(
        f"{self.path}: its clock goes back from {self._max_pts:.2f} s to {time:.2f} s; "
        f"write it anew: ffmpeg -i {shlex.quote(self.path.name)} -c:v libx264 NEW.mp4"
      )
    elif self._max_pts > -math.inf and time - self._max_pts + duration > _LONGEST_JUMP:
      raise InputError(
        f"{self.path}: its clock jumps from {self._max_pts:.2f} s to {time:.2f} s; "
        f"write it anew: ffmpeg -i {shlex.quote(self.path.name)} -c:v libx264 NEW.mp4"
      )
    self._max_pts = max(self._max_pts, time)
    if self._origin is None:
      self._origin = time
    start = time - self._origin
    if start <= self._last_start:
      raise InputError(
        f"{self.path}: its times go back after {self._last_start:.2f} s (copied from a stream "
        "without times?); write it anew from its source: "
        "ffmpeg -r RATE -i SOURCE -c:v libx264 NEW.mp4"
      )
    self._last_start, self.end = start, start + duration
    return TimedFrame(frame=frame, start=start, end=self.end, pixel_aspect=pixel_aspect)
