"""Qwen2.5-VL as one module: its vision tower and its decoder."""

from flax import nnx

from vr_jax.models import layout as layout_lib
from vr_jax.models.common import language_model
from vr_jax.models.qwen2_5_vl import config as config_lib
from vr_jax.models.qwen2_5_vl import text, vision


class Qwen2_5_VL(language_model.DecoderLanguageModel):  # noqa: N801
  """See `common.language_model.DecoderLanguageModel`."""

  def __init__(
    self,
    config: config_lib.Qwen2_5_VLConfig,
    *,
    rngs: nnx.Rngs,
    layout: layout_lib.Layout = layout_lib.OneDevice(),  # noqa: B008 it is frozen
  ):
    tower = vision.VisionTower(config, layout, rngs=rngs)
    super().__init__(config, layout, tower, text.TextModel(config, layout, rngs=rngs))
