"""The processor of TinyLLaVA-Video: one size for all images, and one run of tokens for a video."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Float, Int, UInt8
import numpy as np
import tokenizers

from vr_jax import errors, records
from vr_jax.models.common import image_patches, processor, prompts
from vr_jax.models.tinyllava import config as config_lib
from vr_jax.models.tinyllava import template, vision_inputs

CANNOT_SHUFFLE = (
  "the queries of TinyLLaVA-Video's resampler mix the frames of a video, so that features have no "
  "order to be changed"
)


class TinyLlavaProcessor(processor.VideoProcessor):
  """See `common.processor.VideoProcessor`.

  All images have the size of the vision tower, whatever their shape. A video is one frame of the
  tower's input, with its images below each other, and becomes as many media tokens as the resampler
  has queries, however many images it has. An image is a video of one.
  """

  config: config_lib.TinyLlavaConfig
  end_of_turn = pad_name = template.END
  stops = (template.END,)
  never_sampled = ()  # media have a row of the embedding that no token has
  box_units = "thousandths"
  reply_start = template.REPLY_START

  def __init__(
    self,
    config: config_lib.TinyLlavaConfig,
    tokenizer: tokenizers.Tokenizer,
    **options: Any,
  ):
    """Initialises the processor. options: see `VideoProcessor`.

    Raises InputError as `VideoProcessor` does, and if no row of the embedding is left for media.
    """
    pixels = config.vision.image_size**2
    super().__init__(config, tokenizer, pixels, pixels, **options)
    if tokenizer.get_vocab_size() >= config.vocab_size:
      raise errors.InputError(
        f"tokenizer: has {tokenizer.get_vocab_size()} tokens, and the model {config.vocab_size} "
        "rows, of which one must be left for media; take both from one model"
      )

  @property
  def media_tokens(self) -> tuple[int, ...]:
    """The id where features stand, which is never sampled."""
    return (self.config.image_token_id,)

  def special_tokens(self) -> dict[str, int]:
    """The end of a reply, and its id in the config."""
    return {template.END: self.config.end_token_id}

  def make_template(self, tokenizer: tokenizers.Tokenizer) -> template.PhiTemplate:
    """Makes the chat template of the released models."""
    return template.PhiTemplate(tokenizer, self.config.image_token_id)

  def kinds(self, tokens: Int[np.ndarray, "prefix"]) -> Int[np.ndarray, "prefix"]:
    """Kinds of tokens; images are videos, too."""
    is_media = tokens == self.config.image_token_id
    return np.where(is_media, records.Kind.VIDEO, records.Kind.TEXT).astype(np.int32)

  def image_grid(self, size: tuple[int, int], seconds: float | None, name: str) -> prompts.Grid:
    """The grid of an image, that of a video of one frame. Its time is not told."""
    del size, seconds, name
    return self._grid(1)

  def video_grid(
    self, shape: tuple[int, int, int], timestamps: Float[np.ndarray, "times"], name: str
  ) -> prompts.Grid:
    """The grid of a video: the patches of its images, below each other. Times are not told."""
    del timestamps, name
    return self._grid(shape[0])

  def _grid(self, images: int) -> prompts.Grid:
    side = self.config.vision.side
    return prompts.Grid(kind=records.Kind.VIDEO, frames=1, height=images * side, width=side)

  def frame_size(self, grid: prompts.Grid) -> tuple[int, int]:
    """Height and width (pixels) of every image."""
    del grid
    return self.config.vision.image_size, self.config.vision.image_size

  @property
  def patch_shape(self) -> tuple[int, ...]:
    """Shape of a flattened patch."""
    return (self.config.vision.patch_dim,)

  def patchify(
    self, frames: UInt8[np.ndarray, "images height width 3"]
  ) -> UInt8[np.ndarray, "1 patches patch_dim"]:
    """Cuts resized images into patches; pixels beyond the last whole patch are lost."""
    vision = self.config.vision
    kept = vision.side * vision.patch_size
    cut = frames[:, :kept, :kept]
    patches = image_patches.patchify(cut, span=1, merge=1, size=vision.patch_size)
    return patches.reshape(1, -1, vision.patch_dim)

  def frame_inputs(
    self, patches: UInt8[np.ndarray, "1 patches patch_dim"], grid: prompts.Grid
  ) -> list[vision_inputs.VideoPatches]:
    """The patches of a video."""
    segment = np.zeros(grid.patches, np.int32)
    return [vision_inputs.VideoPatches(patches=one, segment=segment) for one in patches]

  def positions(
    self, kind: Int[np.ndarray, "prefix"], grids: Sequence[prompts.Grid]
  ) -> tuple[Int[np.ndarray, "prefix 1"], int]:
    """Tokens are counted, media tokens too."""
    del grids
    return np.arange(len(kind), dtype=np.int32)[:, None], len(kind)

  def shuffle_frames(
    self,
    media_index: Int[np.ndarray, "prompts prefix"],
    encoded: Sequence[prompts.EncodedPrompt],
    rng: np.random.Generator,
  ) -> Int[np.ndarray, "prompts prefix"]:
    """Raises InputError: no media token is of one frame alone."""
    raise errors.InputError(CANNOT_SHUFFLE)
