"""The public face of the tracker: a model with its weights, and masks of objects over a video."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import pathlib

from jaxtyping import Array, Bool, DTypeLike, Float, Int
import numpy as np

from vr_jax.models.sam2 import config as config_lib
from vr_jax.models.sam2 import prompts as prompts_lib

Progress = Callable[[int, int], None]  # frames done, frames to do


@dataclasses.dataclass(frozen=True, eq=False)
class Segmenter:
  """A SAM2 model. params: arrays by the names of transformers' Sam2VideoModel (parameters.py)."""

  config: config_lib.Sam2Config
  params: dict[str, Array]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class TrackedMasks:
  """Masks of all objects on all frames.

  objects: their numbers in the prompts, ascending; the order of the first axis.
  masks: at the size of the video.
  object_scores: logits that the object is visible; 0 or less where its mask is empty.
  """

  objects: tuple[int, ...]
  masks: Bool[np.ndarray, "objects frames height width"]
  object_scores: Float[np.ndarray, "objects frames"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MaskChunk:
  """Masks of some frames. frames: their indices in the video, descending in the backward pass."""

  objects: tuple[int, ...]
  frames: Int[np.ndarray, "frames"]
  masks: Bool[np.ndarray, "objects frames height width"]
  object_scores: Float[np.ndarray, "objects frames"]


def load(path: str | pathlib.Path, dtype: DTypeLike = "float32") -> Segmenter:
  """Reads a directory or a .safetensors file with transformers' or Facebook's names.

  Raises InputError on absent, foreign, damaged or pickled weights; it says where to get them.
  """
  raise NotImplementedError


def track(
  segmenter: Segmenter,
  frames: prompts_lib.Frames,
  prompts: Sequence[prompts_lib.Prompt],
  *,
  fresh_reverse: bool = False,
  on_progress: Progress | None = None,
  chunk: int = 8,
) -> TrackedMasks:
  """Tracks the prompted objects through a video.

  Forwards from the earliest prompted frame to the end, then backwards from it to the start. The
  backward pass attends to the forward pass's frames just after its start, as the reference does.

  frames: uint8 RGB, [frames, height, width, 3]: an array, or `LazyFrames`.
  fresh_reverse: the backward pass knows the prompted frames alone.
  on_progress: called with the number of frames done and to do.
  chunk: frames that are on the device at once.

  Raises InputError on frames or prompts that are wrong.
  """
  raise NotImplementedError


def track_chunks(
  segmenter: Segmenter,
  frames: prompts_lib.Frames,
  prompts: Sequence[prompts_lib.Prompt],
  *,
  fresh_reverse: bool = False,
  on_progress: Progress | None = None,
  chunk: int = 8,
) -> Iterator[MaskChunk]:
  """Like `track`, some frames at a time, so that memory does not grow with the video.

  A frame that comes twice (the first one of several objects, some of which are prompted later) is
  right the second time.
  """
  raise NotImplementedError


def track_videos(
  segmenter: Segmenter,
  videos: Sequence[prompts_lib.Frames],
  prompts: Sequence[Sequence[prompts_lib.Prompt]],
  *,
  fresh_reverse: bool = False,
  on_progress: Progress | None = None,
  chunk: int = 8,
) -> list[TrackedMasks]:
  """Like `track` for several videos at once, of any lengths and sizes, each with its prompts."""
  raise NotImplementedError
