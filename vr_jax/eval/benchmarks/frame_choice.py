"""Which frames of a video each benchmark's program shows.

Programs differ even where they say "32 frames": with both ends or only the inside, rounded or cut.

Frames are chosen by time: a rule for indices is applied to a video of 30 frames a second. For each
of these times the frame that is on the screen is shown. Where several times have the same frame, it
is shown once.
"""

import dataclasses
from typing import Literal

from jaxtyping import Float, Int
import numpy as np

from vr_jax import frame_times, records
from vr_jax.errors import InputError

# ends: evenly from the first to the last, fractions cut (lmms-eval).
# rounded: the same, rounded; as this project samples.
# middles: the middles of equal segments (MVBench, MLVU).
# inside: i N / (n + 1) for i from 1 to n (VLMEvalKit).
# starts: i floor(N / n) from 0, at most one a second (LongVideoBench).
Placement = Literal["ends", "rounded", "middles", "inside", "starts"]


FPS = 30.0  # of the video that rules for indices are applied to
_INTO_FRAME = 0.25  # of a frame, after its start: files round times, to milliseconds for example


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameChoice:
  """How many frames of a video are shown, and which.

  count: number of frames; with fps, the most of them.
  fps: frames a second, of which `least` to `count` are shown, an even number; None: always `count`.
  """

  count: int
  fps: float | None = None
  least: int = 4
  placement: Placement = "ends"

  def __post_init__(self):
    if self.count < 1 or (self.fps is not None and not self.fps > 0):
      raise InputError(f"frame choice: {self.count} frames at {self.fps} a second; both above 0")


def choose(
  choice: FrameChoice, frames: int, fps: float, clip: records.Span | None = None
) -> Int[np.ndarray, "chosen"]:
  """Indices of the frames that are shown, increasing; one may come twice where frames are few.

  frames, fps: of the video. clip: the part to choose from; None: all.

  Raises InputError if there is no frame, or the clip has none.
  """
  first, last = (0, frames - 1)
  if clip is not None:
    first, last = max(0, round(clip.start * fps)), min(round(clip.end * fps), frames - 1)
  if last < first or fps <= 0:
    place = "the video" if clip is None else f"{clip.start:g} to {clip.end:g} s"
    raise InputError(f"frame choice: no frame in {place} of {frames} at {fps:g} a second")
  count = _count(choice, last - first + 1, fps)
  span = np.arange(count)
  if choice.placement == "ends":
    chosen = np.linspace(first, last, count)
  elif choice.placement == "rounded":
    chosen = np.linspace(first, last, count).round()
  elif choice.placement == "middles":
    segment = (last - first) / count
    chosen = first + segment / 2 + np.round(segment * span)
  elif choice.placement == "inside":
    chosen = first + (last - first + 1) / (count + 1) * (span + 1)
  else:
    chosen = first + (last - first + 1) // count * span
  return np.clip(chosen.astype(int), first, last)


def choose_times(
  choice: FrameChoice, duration: float, shown: records.Span
) -> Float[np.ndarray, "times"]:
  """Increasing times in seconds: the frames that are on the screen then are those to show.

  duration: of the video. shown: the part of it to choose from; what comes at its end is not shown.

  Raises InputError if that part has no frame.
  """
  frames = max(1, round(duration * FPS))
  # The video's last frame begins before its end.
  end = min(shown.end, (frames - 1) / FPS)
  clip = records.Span(start=shown.start, end=max(end, shown.start))
  times = (choose(choice, frames, FPS, clip) + _INTO_FRAME) / FPS
  last = max(shown.start, shown.end - 2 * frame_times.TOLERANCE)
  return np.unique(np.clip(times, shown.start, last))


def shown_part(clip: records.Span | None, duration: float, *, where: str) -> records.Span:
  """The part of a video that is shown: a clip of it, or all (None).

  Raises InputError if the clip begins behind the video's end. where: names the video in it.
  """
  if clip is None:
    return records.Span(start=0.0, end=duration)
  if clip.start >= duration:
    raise InputError(f"{where}: ends at {duration:g} s, its clip begins at {clip.start:g} s")
  return records.Span(start=clip.start, end=min(clip.end, duration))


def _count(choice: FrameChoice, frames: int, fps: float) -> int:
  if choice.placement == "starts":
    return max(1, min(choice.count, int(frames / fps)))
  if choice.fps is None:
    return choice.count
  wanted = min(max(frames / fps * choice.fps, choice.least), choice.count, frames)
  return max(1, int(wanted) // 2 * 2)
