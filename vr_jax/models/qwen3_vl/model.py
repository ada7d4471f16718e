"""Qwen3-VL as one module: its vision tower and its decoder."""

from flax import nnx
import jax.numpy as jnp
from jaxtyping import Array, Float

from vr_jax.models import layout as layout_lib
from vr_jax.models.common import language_model
from vr_jax.models.qwen3_vl import config as config_lib
from vr_jax.models.qwen3_vl import text, vision, vision_inputs


class Qwen3VL(language_model.DecoderLanguageModel):
  """See `common.language_model.DecoderLanguageModel`."""

  def __init__(
    self,
    config: config_lib.Qwen3VLConfig,
    *,
    rngs: nnx.Rngs,
    layout: layout_lib.Layout = layout_lib.OneDevice(),  # noqa: B008 it is frozen
  ):
    tower = vision.Qwen3VisionTower(config, layout, rngs=rngs)
    super().__init__(config, layout, tower, text.Qwen3TextModel(config, layout, rngs=rngs))

  def merge_features(self, media: vision_inputs.VisionFeatures) -> Float[Array, "rows media embed"]:
    """Returns what replaces the embeddings of media tokens."""
    return jnp.asarray(media.embedding)

  def layer_features(
    self, media: vision_inputs.VisionFeatures
  ) -> Float[Array, "rows media levels embed"]:
    """Returns DeepStack's features."""
    return jnp.asarray(media.levels)
