"""Counts FLOPs of TinyLLaVA-Video's matrix products from its sizes (see `common.flops`)."""

from vr_jax.models.common import flops
from vr_jax.models.tinyllava import config as config_lib
from vr_jax.models.tinyllava import resampler


def forward(
  config: config_lib.TinyLlavaConfig,
  *,
  frames: int,
  patches: int,
  prefix: int,
  group: int,
  time: int,
) -> flops.Forward:
  """Counts FLOPs of one prompt and its replies; sampling token by token takes the same number.

  frames: videos of the prompt, of `patches` patches each.
  prefix: tokens of the prompt.
  group, time: number of replies, and their tokens.
  """
  own = prefix * time + time * (time + 1) // 2
  return flops.Forward(
    vision=frames * (_tower(config.vision, patches) + _resampler(config, patches)),
    prefix=_layers(config, prefix, prefix * (prefix + 1) // 2),
    replies=group * _layers(config, time, own),
    head=group * time * 2.0 * config.hidden_size * config.vocab_size,
  )


def _layers(config: config_lib.TinyLlavaConfig, tokens: int, pairs: int) -> float:
  """FLOPs of all decoder layers over `tokens`. pairs: queries times keys that the mask allows."""
  sizes = config.text_sizes
  return sizes.layers * (2.0 * tokens * sizes.layer_weights + 4.0 * pairs * config.hidden_size)


def _tower(vision: config_lib.SiglipConfig, patches: int) -> float:
  embed = vision.hidden_size
  weights = 4 * embed**2 + 2 * embed * vision.intermediate_size
  products = vision.depth * patches * weights + patches * vision.patch_dim * embed
  return 2.0 * products + 4.0 * vision.depth * patches * vision.patches * embed


def _resampler(config: config_lib.TinyLlavaConfig, patches: int) -> float:
  sizes, embed = config.resampler, config.hidden_size
  tokens = patches // config.vision.patches * config.vision.tokens
  inner, queries = sizes.heads * sizes.head_dim, sizes.queries
  keys = tokens + queries
  weights = queries * (2 * inner + 2 * resampler.WIDENING * embed) + keys * 2 * inner
  pairs = queries * keys // sizes.groups
  each = 2.0 * embed * weights + 4.0 * pairs * inner
  return 2.0 * tokens * config.vision.hidden_size * embed + sizes.layers * each
