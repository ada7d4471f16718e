"""TinyLLaVA-Video as one module: its vision tower with the connector, and its decoder."""

from flax import nnx

from vr_jax.models import layout as layout_lib
from vr_jax.models.common import language_model
from vr_jax.models.tinyllava import config as config_lib
from vr_jax.models.tinyllava import text, vision


class TinyLlavaVideo(language_model.DecoderLanguageModel):
  """See `common.language_model.DecoderLanguageModel`."""

  def __init__(
    self,
    config: config_lib.TinyLlavaConfig,
    *,
    rngs: nnx.Rngs,
    layout: layout_lib.Layout = layout_lib.OneDevice(),  # noqa: B008 it is frozen
  ):
    tower = vision.SiglipTower(config, layout, rngs=rngs)
    super().__init__(config, layout, tower, text.PhiTextModel(config, layout, rngs=rngs))
