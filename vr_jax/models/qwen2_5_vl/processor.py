"""The processor of Qwen2.5-VL: its frame sizes, media tokens and positions."""

from collections.abc import Sequence

from jaxtyping import Float, Int, UInt8
import numpy as np
import tokenizers

from vr_jax import errors, records
from vr_jax.models.common import chatml, image_patches, processor, prompts
from vr_jax.models.qwen2_5_vl import config as config_lib
from vr_jax.models.qwen2_5_vl import pixels, positions, vision_inputs, windows

MEDIA_TOKENS = (
  "<|vision_start|>",
  "<|vision_end|>",
  "<|vision_pad|>",
  "<|image_pad|>",
  "<|video_pad|>",
)


class Qwen2_5_VLProcessor(processor.VideoProcessor):  # noqa: N801
  """See `common.processor.VideoProcessor`."""

  config: config_lib.Qwen2_5_VLConfig
  end_of_turn = "<|im_end|>"
  pad_name = "<|endoftext|>"
  stops = ("<|im_end|>", "<|endoftext|>")
  never_sampled = MEDIA_TOKENS
  box_units = "pixels"

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
    """The grid of an image; its time is not told."""
    del seconds
    return self._grid(records.Kind.IMAGE, size, 1, 1.0, name)

  def video_grid(
    self, shape: tuple[int, int, int], timestamps: Float[np.ndarray, "times"], name: str
  ) -> prompts.Grid:
    """The grid of a video; positions use the mean distance of its frames."""
    span = self.config.vision.temporal_patch_size
    seconds = positions.mean_distance(timestamps) * span
    return self._grid(records.Kind.VIDEO, shape[1:], -(-shape[0] // span), seconds, name)

  def _grid(
    self, kind: records.Kind, size: tuple[int, int], frames: int, seconds: float, name: str
  ) -> prompts.Grid:
    config = self.config.vision
    limits = {"min_pixels": self.min_pixels, "max_pixels": self.max_pixels}
    try:
      height, width = image_patches.smart_resize(*size, factor=config.pixel_factor, **limits)
    except errors.InputError as error:
      raise errors.InputError(f"{name}: {error}") from error
    return prompts.Grid(
      kind=kind,
      frames=frames,
      height=height // config.patch_size,
      width=width // config.patch_size,
      seconds=seconds,
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
  ) -> list[vision_inputs.VisionInputs]:
    """Adds rows, columns and windows to patches; all frames of a grid share them."""
    config = self.config.vision
    rows = image_patches.patch_rows(grid.height, grid.width, merge=config.spatial_merge_size)
    window = windows.patch_windows(rows, config)
    places = {"window": window, "slot": windows.window_slots(window, config)}
    return [vision_inputs.VisionInputs(patches=one, rows=rows, **places) for one in patches]

  def positions(
    self, kind: Int[np.ndarray, "prefix"], grids: Sequence[prompts.Grid]
  ) -> tuple[Int[np.ndarray, "prefix 3"], int]:
    """Multimodal rotary positions (time, height, width)."""
    places, next_position = positions.rope_index(kind, grids, self.config.vision)
    return np.ascontiguousarray(places.T), next_position
