"""Chooses which stored frames of a span the model sees: a number of frames, or a rate with bounds.

Source: smart_nframes and the choice of indices in qwen-vl-utils 0.0.14. Three differences are
intended:

- A span is half-open: a span shown up to 8 s excludes the frame at 8 s, where the masked future
  may begin.
- The frame that is on the screen when a span starts belongs to it, if it is stored.
- A span with fewer frames than asked for shows those it has, and if it has only one, that one. The
  original fails below two.
"""

import dataclasses
import math

from jaxtyping import Float, Int
import numpy as np

from vr_jax import frame_times, records
from vr_jax.errors import InputError

TEMPORAL_PATCH = 2  # frames that the vision tower merges into one


@dataclasses.dataclass(frozen=True, kw_only=True)
class UniformRule:
  """`frames` frames, rounded to an even number, spread evenly over the span.

  required: a span with fewer stored frames is an error; one with fewer than `frames` shows fewer.
  """

  frames: int
  required: int = 1

  def __post_init__(self):
    if round(self.frames / TEMPORAL_PATCH) < 1:
      raise InputError(
        f"frame sampling: {self.frames} frames; at least {TEMPORAL_PATCH} are needed"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RateRule:
  """`fps` frames a second, spread evenly over the span, within `min_frames` and `max_frames`.

  required: a span with fewer stored frames is an error; one with fewer than `min_frames` shows
    fewer.
  """

  fps: float
  min_frames: int = 4
  max_frames: int = 768
  required: int = 1

  def __post_init__(self):
    if not self.fps > 0:
      raise InputError(f"frame sampling: {self.fps} frames a second; a rate above 0 is needed")
    if not 0 < self.min_frames <= self.max_frames or self.max_frames < TEMPORAL_PATCH:
      raise InputError(
        f"frame sampling: min_frames {self.min_frames} and max_frames {self.max_frames} "
        f"must be ordered, and the latter at least {TEMPORAL_PATCH}"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PoolRule:
  """The frames that turns choose from: at most `frames`, spread evenly over the span.

  A short span gives a smaller pool.

  required: a span with fewer stored frames is an error.
  """

  frames: int
  required: int = 1

  def __post_init__(self):
    if self.frames < 1:
      raise InputError(f"frame sampling: a pool of {self.frames} frames; at least one is needed")


Rule = UniformRule | RateRule | PoolRule

LEAST = UniformRule(frames=TEMPORAL_PATCH)  # the fewest frames to ask for


def check_rate(rule: Rule, stored: float) -> None:
  """Raises InputError if the rule samples more frames a second than are stored."""
  if isinstance(rule, RateRule) and rule.fps > stored:
    raise InputError(
      f"frame sampling: {rule.fps:g} frames a second are more than the {stored:g} stored; "
      "sample slower, or ingest at a higher fps"
    )


def choose(
  timestamps: Float[np.ndarray, "stored"],
  ends: Float[np.ndarray, "stored"],
  span: records.Span,
  rule: Rule,
  *,
  where: str,
) -> Int[np.ndarray, "frames"]:
  """Chooses stored frames of a video.

  Args:
    timestamps: of all stored frames of the video, in seconds, increasing.
    ends: when each frame left the screen, in seconds.
    span: frames at or after its start and before its end may be chosen, and the one that is on the
      screen at its start. The span of a still picture starts and ends at the same time.
    rule: how many frames.
    where: names the example in errors.

  Returns:
    Increasing indices. Their number is even, except for a pool, or 1 if the span has one frame.

  Raises:
    InputError: the span has no frame, or fewer than the rule requires.
  """
  first, stop = shown_range(timestamps, ends, span)
  if _is_still(timestamps, span):
    return np.array([first])
  available = stop - first
  if available < rule.required:
    raise InputError(f"{where}: {_shortage(available, ends, span, rule)}")
  if isinstance(rule, PoolRule):
    count = min(rule.frames, available)
    return np.linspace(first, stop - 1, count).round().astype(np.int64)
  if available == 1:
    return np.array([first])
  if isinstance(rule, UniformRule):
    count = min(usual_frames(rule), _round_down(available))
  else:
    count = _rate_count(timestamps[first:stop], rule)
  return _linspace_rounded(first, stop - 1, count)


def shown_range(
  timestamps: Float[np.ndarray, "stored"], ends: Float[np.ndarray, "stored"], span: records.Span
) -> tuple[int, int]:
  """The first frame of a span, and the one after the last: those that `choose` chooses from."""
  if _is_still(timestamps, span):
    return 0, 1
  tolerance = frame_times.TOLERANCE
  first, stop = np.searchsorted(timestamps + tolerance, [span.start, span.end]).tolist()
  if first and ends[first - 1] > span.start + tolerance:
    first -= 1  # still on the screen
  return first, stop


def _is_still(timestamps: Float[np.ndarray, "stored"], span: records.Span) -> bool:
  """Whether this is a picture, whose span starts and ends at the same time."""
  return len(timestamps) == 1 and span.start == span.end


def shown_times(
  timestamps: Float[np.ndarray, "stored"], indices: Int[np.ndarray, "frames"], span: records.Span
) -> Float[np.ndarray, "frames"]:
  """The times of the chosen frames, in seconds; never before the span's start."""
  times = timestamps[indices]
  return np.where(times + frame_times.TOLERANCE < span.start, span.start, times)


def usual_frames(rule: Rule) -> int:
  """The fewest frames that a rule takes of a span that is long enough for it."""
  if isinstance(rule, PoolRule):
    return 1
  if isinstance(rule, UniformRule):
    return round(rule.frames / TEMPORAL_PATCH) * TEMPORAL_PATCH
  return min(_round_up(rule.min_frames), _round_down(rule.max_frames))


def _shortage(
  available: int, ends: Float[np.ndarray, "stored"], span: records.Span, rule: Rule
) -> str:
  """Says that a span has too few frames, and what can be done about it."""
  seconds = f"{span.start:g} to {span.end:g} s"
  if available:
    return (
      f"{seconds} of the video holds {available} stored frames, fewer than the {rule.required} of "
      "config.data.required_frames; lower that, or drop the question"
    )
  if span.start + frame_times.TOLERANCE >= ends[-1]:
    return (
      f"{seconds} shows nothing: the video's last frame ends at {ends[-1]:g} s; correct 'shown'"
    )
  return (
    f"of {seconds} no frame is stored; store more of them a second (config.data.fps), or drop the "
    "question"
  )


def _rate_count(timestamps: Float[np.ndarray, "span"], rule: RateRule) -> int:
  total = len(timestamps)
  seconds = total * float(timestamps[-1] - timestamps[0]) / (total - 1)
  # Times may be rounded: 7.9999 s at one frame a second must give 8 frames, not 6.
  frames = seconds * rule.fps + frame_times.TOLERANCE
  bounded = min(max(frames, _round_up(rule.min_frames)), _round_down(rule.max_frames), total)
  return _round_down(bounded)


def _round_up(number: float) -> int:
  """Rounds up to a multiple of TEMPORAL_PATCH."""
  return math.ceil(number / TEMPORAL_PATCH) * TEMPORAL_PATCH


def _round_down(number: float) -> int:
  """Rounds down to a multiple of TEMPORAL_PATCH."""
  return math.floor(number / TEMPORAL_PATCH) * TEMPORAL_PATCH


def _linspace_rounded(first: int, last: int, count: int) -> Int[np.ndarray, "frames"]:
  """Equals `torch.linspace(first, last, count).round()` bit for bit.

  PyTorch steps from both ends towards the middle in float32. A float64 linspace would round some
  halves differently.
  """
  step = np.float32(last - first) / np.float32(count - 1)
  forward = np.arange(count, dtype=np.float32)
  values = np.where(
    forward < count // 2,
    np.float32(first) + step * forward,
    np.float32(last) - step * (np.float32(count - 1) - forward),
  )
  return np.round(values).astype(np.int64)
