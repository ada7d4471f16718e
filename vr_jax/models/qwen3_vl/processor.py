"""The processor of Qwen3-VL: its frame sizes, media tokens, times in the text, and positions."""

from collections.abc import Sequence
import math
from typing import Any

from jaxtyping import Float, Int, UInt8
import numpy as np
import tokenizers

from vr_jax import errors, records
from vr_jax.models.common import chatml, image_patches, processor, prompts
from vr_jax.models.qwen3_vl import config as config_lib
from vr_jax.models.qwen3_vl import pixels, positions, vision_inputs

MEDIA_TOKENS = (
  "<|vision_start|>",
  "<|vision_end|>",
  "<|vision_pad|>",
  "<|image_pad|>",
  "<|video_pad|>",
)


class Qwen3VLProcessor(processor.VideoProcessor):
  """See `common.processor.VideoProcessor`.

  Each temporal patch of a video is a block of its own, behind its time: "<12.5 seconds>". So is an
  image that is a frame of a video.
  """

  config: config_lib.Qwen3VLConfig
  end_of_turn = "<|im_end|>"
  pad_name = "<|endoftext|>"
  stops = ("<|im_end|>", "<|endoftext|>")
  never_sampled = MEDIA_TOKENS
  box_units = "thousandths"

  def __init__(
    self,
    config: config_lib.Qwen3VLConfig,
    tokenizer: tokenizers.Tokenizer,
    min_pixels: int,
    max_pixels: int,
    *,
    min_video_pixels: int,
    max_video_pixels: int,
    **options: Any,
  ):
    """Initialises the processor.

    min_pixels, max_pixels: limits of one image.
    min_video_pixels, max_video_pixels: limits of a whole video, frames x height x width.
    options: see `VideoProcessor`.

    Raises InputError as `VideoProcessor` does, and if the limits hold no frame.
    """
    super().__init__(config, tokenizer, min_pixels, max_pixels, **options)
    self.min_video_pixels = min_video_pixels
    self.max_video_pixels = max_video_pixels
    least = config.vision.temporal_patch_size * config.vision.pixel_factor**2
    if not max(min_video_pixels, least) <= max_video_pixels:
      raise errors.InputError(
        f"max_video_pixels: is {max_video_pixels}, but must be at least min_video_pixels "
        f"{min_video_pixels} and one media token, {least} pixels"
      )

  @property
  def preprocessing(self) -> dict[str, Any]:
    """Settings that the vision inputs of a clip depend on. JSON-able."""
    video = {"min_video_pixels": self.min_video_pixels, "max_video_pixels": self.max_video_pixels}
    return {**super().preprocessing, **video}

  def special_tokens(self) -> dict[str, int]:
    """Special tokens of media and their ids in the config."""
    return {
      "<|image_pad|>": self.config.image_token_id,
      "<|video_pad|>": self.config.video_token_id,
      "<|vision_start|>": self.config.vision_start_token_id,
      "<|vision_end|>": self.config.vision_end_token_id,
    }

  def make_template(self, tokenizer: tokenizers.Tokenizer) -> chatml.ChatTemplate:
    """Makes the chat template of the released models."""
    return chatml.ChatTemplate(tokenizer)

  def kinds(self, tokens: Int[np.ndarray, "prefix"]) -> Int[np.ndarray, "prefix"]:
    """Kinds of tokens, by the placeholder tokens of images and videos."""
    kind = np.full(tokens.shape, records.Kind.TEXT, np.int32)
    kind[tokens == self.config.image_token_id] = records.Kind.IMAGE
    kind[tokens == self.config.video_token_id] = records.Kind.VIDEO
    return kind

  def image_grid(self, size: tuple[int, int], seconds: float | None, name: str) -> prompts.Grid:
    """The grid of an image; its text tells its time, if it is a frame of a video."""
    times = () if seconds is None else (_checked(seconds, name),)
    limits = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
    try:
      resized = image_patches.smart_resize(*size, factor=self.config.vision.pixel_factor, **limits)
    except errors.InputError as error:
      raise errors.InputError(f"{name}: {error}") from error
    return self._grid(records.Kind.IMAGE, 1, resized, times)

  def video_grid(
    self, shape: tuple[int, int, int], timestamps: Float[np.ndarray, "times"], name: str
  ) -> prompts.Grid:
    """The grid of a video; the text tells the time of each temporal patch, the mean of its ends."""
    config = self.config.vision
    span = config.temporal_patch_size
    limits = {"min_pixels": self.min_video_pixels, "max_pixels": self.max_video_pixels}
    try:
      resized = pixels.video_resize(*shape, span=span, factor=config.pixel_factor, **limits)
    except errors.InputError as error:
      raise errors.InputError(f"{name}: {error}") from error
    ends = [_checked(float(time), name) for time in timestamps]
    ends += ends[-1:] * (-len(ends) % span)
    times = tuple((ends[i] + ends[i + span - 1]) / 2 for i in range(0, len(ends), span))
    return self._grid(records.Kind.VIDEO, len(times), resized, times)

  def _grid(
    self, kind: records.Kind, frames: int, size: tuple[int, int], times: tuple[float, ...]
  ) -> prompts.Grid:
    patch = self.config.vision.patch_size
    height, width = size[0] // patch, size[1] // patch
    return prompts.Grid(kind=kind, frames=frames, height=height, width=width, times=times)

  def media_runs(self, grid: prompts.Grid) -> tuple[prompts.MediaRun, ...]:
    """One run for each temporal patch, behind its time."""
    tokens = self.config.vision_shapes.media_tokens(grid.patches)
    if not grid.times:
      return (prompts.MediaRun(tokens=tokens),) * grid.frames
    return tuple(
      prompts.MediaRun(tokens=tokens, text=f"<{time:.1f} seconds>") for time in grid.times
    )

  def frame_size(self, grid: prompts.Grid) -> tuple[int, int]:
    """Height and width (pixels) of a grid."""
    patch = self.config.vision.patch_size
    return grid.height * patch, grid.width * patch

  @property
  def patch_shape(self) -> tuple[int, ...]:
    """Shape of a flattened patch."""
    return (self.config.vision.patch_dim,)

  def patchify(
    self, frames: UInt8[np.ndarray, "images height width 3"]
  ) -> UInt8[np.ndarray, "frames patches patch_dim"]:
    """Cuts resized frames into patches, in merge order."""
    return pixels.patchify(frames, self.config.vision)

  def frame_inputs(
    self, patches: UInt8[np.ndarray, "frames patches patch_dim"], grid: prompts.Grid
  ) -> list[vision_inputs.Qwen3VisionInputs]:
    """Adds the places of patches; all frames of a grid share them."""
    config = self.config.vision
    rows = image_patches.patch_rows(grid.height, grid.width, merge=config.spatial_merge_size)
    table_rows, weights = positions.table_places(rows, grid.height, grid.width, config)
    places = {"rows": rows, "table_rows": table_rows, "table_weights": weights}
    segment = np.zeros(len(rows), np.int32)
    return [
      vision_inputs.Qwen3VisionInputs(patches=one, segment=segment, **places) for one in patches
    ]

  def positions(
    self, kind: Int[np.ndarray, "prefix"], grids: Sequence[prompts.Grid]
  ) -> tuple[Int[np.ndarray, "prefix 3"], int]:
    """Multimodal rotary positions (time, height, width)."""
    places, next_position = positions.rope_index(kind, grids, self.config.vision)
    return np.ascontiguousarray(places.T), next_position


def _checked(seconds: float, name: str) -> float:
  if not math.isfinite(seconds):
    raise errors.InputError(f"{name}: a frame's time is {seconds}, but must be a number of seconds")
  return seconds
