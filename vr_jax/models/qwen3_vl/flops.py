"""Counts FLOPs of Qwen3-VL's matrix products from its sizes (see `common.flops`)."""

from vr_jax.models.common import flops
from vr_jax.models.qwen3_vl import config as config_lib


def forward(
  config: config_lib.Qwen3VLConfig,
  *,
  frames: int,
  patches: int,
  prefix: int,
  group: int,
  time: int,
) -> flops.Forward:
  """Counts FLOPs of one prompt and its replies; sampling token by token takes the same number.

  frames: temporal patches of the prompt, of `patches` patches each.
  prefix: tokens of the prompt.
  group, time: number of replies, and their tokens.
  """
  text = config.text
  own = prefix * time + time * (time + 1) // 2
  return flops.Forward(
    vision=_vision(config.vision, frames, patches),
    prefix=_layers(config, prefix, prefix * (prefix + 1) // 2),
    replies=group * _layers(config, time, own),
    head=group * time * 2.0 * text.hidden_size * text.vocab_size,
  )


def _layers(config: config_lib.Qwen3VLConfig, tokens: int, pairs: int) -> float:
  """FLOPs of all decoder layers over `tokens`. pairs: queries times keys that the mask allows."""
  sizes, text = config.text_sizes, config.text
  width = text.num_attention_heads * text.head_dim
  return sizes.layers * (2.0 * tokens * sizes.layer_weights + 4.0 * pairs * width)


def _vision(vision: config_lib.Qwen3VisionConfig, frames: int, patches: int) -> float:
  embed, square = vision.hidden_size, vision.hidden_size * vision.merge_unit
  count = frames * patches
  pairs = vision.depth * count * patches
  weights = 4 * embed**2 + 2 * embed * vision.intermediate_size
  merger = count // vision.merge_unit * (square**2 + square * vision.out_hidden_size)
  products = vision.depth * count * weights + count * vision.patch_dim * embed
  return 2.0 * (products + (1 + vision.levels) * merger) + 4.0 * pairs * embed
