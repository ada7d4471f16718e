"""Which stored frames of a span the model sees: a number of them, or a rate with bounds.

Source: smart_nframes and the index choice of qwen-vl-utils 0.0.14. Two things differ, both on purpose. A span is
half-open, so that what is shown up to 8 s does not hold the frame at 8 s, which a masked future may begin with. And a
span with fewer frames than asked for is an error here, where the original goes on with what there is.
"""

import dataclasses
import math

from jaxtyping import Float, Int
import numpy as np

from vr_jax import records
from vr_jax.data import video_file
from vr_jax.errors import InputError

TEMPORAL_PATCH = 2  # Frames that the vision tower takes as one.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uniform:
  """`frames` frames evenly over the span, rounded to a multiple of two."""

  frames: int

  def __post_init__(self):
    if round(self.frames / TEMPORAL_PATCH) < 1:
      raise InputError(
        f"frame sampling: {self.frames} frames; at least {TEMPORAL_PATCH} are needed"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rate:
  """`fps` frames a second, evenly over the span: at least `min_frames`, at most `max_frames`."""

  fps: float
  min_frames: int = 4
  max_frames: int = 768

  def __post_init__(self):
    if not self.fps > 0:
      raise InputError(f"frame sampling: {self.fps} frames a second; a rate above 0 is needed")
    if not 0 < self.min_frames <= self.max_frames or self.max_frames < TEMPORAL_PATCH:
      raise InputError(
        f"frame sampling: min_frames {self.min_frames} and max_frames {self.max_frames} "
        f"must be ordered, and the latter at least {TEMPORAL_PATCH}"
      )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pool:
  """All frames of the span, or `frames` of them, evenly: what turns choose from. A short span is a small pool."""

  frames: int

  def __post_init__(self):
    if self.frames < 1:
      raise InputError(f"frame sampling: a pool of {self.frames} frames; at least one is needed")


Rule = Uniform | Rate | Pool

LEAST = Uniform(frames=TEMPORAL_PATCH)  # What every clip has, whatever the rule.


def check_rate(rule: Rule, stored: float) -> None:
  """Raises InputError where the rule wants more frames a second than the `stored` ones."""
  if isinstance(rule, Rate) and rule.fps > stored:
    raise InputError(
      f"frame sampling: {rule.fps:g} frames a second are more than the {stored:g} stored; "
      "sample slower, or ingest at a higher fps"
    )


def choose(
  timestamps: Float[np.ndarray, "stored"], span: records.Span, rule: Rule, *, where: str
) -> Int[np.ndarray, "frames"]:
  """Indices into the stored frames of a video, increasing; an even number of them but of a pool, or the one of a still.

  Args:
    timestamps: of all stored frames of the video, seconds, increasing.
    span: frames from its start up to, not at, its end may be chosen. That of a still starts and ends at once.
    rule: how many.
    where: names the example in errors.

  Raises:
    InputError: the span holds fewer frames than the rule asks for.
  """
  if len(timestamps) == 1 and span.start == span.end:
    return np.zeros(1, np.int64)
  first, stop = np.searchsorted(timestamps + video_file.TIME_TOLERANCE, [span.start, span.end])
  available = int(stop - first)
  wanted = _minimum(rule)
  if available < wanted:
    raise InputError(
      f"{where}: {span.start:g} to {span.end:g} s of the video holds {available} stored frames, "
      f"fewer than the {wanted} asked for; ask for fewer, ingest at a higher fps or drop it"
    )
  if isinstance(rule, Pool):
    return np.linspace(first, stop - 1, min(rule.frames, available)).round().astype(np.int64)
  count = wanted if isinstance(rule, Uniform) else _rate_count(timestamps[first:stop], rule)
  return _linspace_rounded(int(first), int(stop) - 1, count)


def _minimum(rule: Rule) -> int:
  if isinstance(rule, Pool):
    return 1
  if isinstance(rule, Uniform):
    return round(rule.frames / TEMPORAL_PATCH) * TEMPORAL_PATCH
  return min(_multiple_up(rule.min_frames), _multiple_down(rule.max_frames))


def _rate_count(timestamps: Float[np.ndarray, "span"], rule: Rate) -> int:
  total = len(timestamps)
  seconds = total * float(timestamps[-1] - timestamps[0]) / (total - 1)
  # 7.9999 s at one frame a second, the trace of a rounded clock, is 8 frames, not 6.
  asked = seconds * rule.fps + video_file.TIME_TOLERANCE
  bounded = min(max(asked, _multiple_up(rule.min_frames)), _multiple_down(rule.max_frames), total)
  return _multiple_down(bounded)


def _multiple_up(number: float) -> int:
  return math.ceil(number / TEMPORAL_PATCH) * TEMPORAL_PATCH


def _multiple_down(number: float) -> int:
  return math.floor(number / TEMPORAL_PATCH) * TEMPORAL_PATCH


def _linspace_rounded(first: int, last: int, count: int) -> Int[np.ndarray, "frames"]:
  """`torch.linspace(first, last, count).round()`, to the bit: halves fall where its float32 puts them.

  PyTorch steps from both ends towards the middle in float32; a linspace in float64 would round other frames.
  """
  step = np.float32(last - first) / np.float32(count - 1)
  forward = np.arange(count, dtype=np.float32)
  values = np.where(
    forward < count // 2,
    np.float32(first) + step * forward,
    np.float32(last) - step * (np.float32(count - 1) - forward),
  )
  return np.round(values).astype(np.int64)
