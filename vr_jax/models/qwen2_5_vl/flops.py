"""Counts FLOPs of Qwen2.5-VL's matrix products from its sizes (see `common.flops`)."""

from vr_jax.models.common import flops
from vr_jax.models.qwen2_5_vl import config as config_lib


def forward(
  config: config_lib.Qwen2_5_VLConfig,
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
    prefix=_layers(text, prefix, prefix * (prefix + 1) // 2),
    replies=group * _layers(text, time, own),
    head=group * time * 2.0 * text.hidden_size * text.vocab_size,
  )


def _layers(text: config_lib.TextConfig, tokens: int, pairs: int) -> float:
  """FLOPs of all decoder layers over `tokens`. pairs: queries times keys that the mask allows."""
  embed, head_dim = text.hidden_size, text.head_dim
  heads, kv_heads = text.num_attention_heads, text.num_key_value_heads
  weights = embed * head_dim * (2 * heads + 2 * kv_heads) + 3 * embed * text.intermediate_size
  return text.num_hidden_layers * (2.0 * tokens * weights + 4.0 * pairs * heads * head_dim)


def _vision(vision: config_lib.VisionConfig, frames: int, patches: int) -> float:
  embed, square = vision.hidden_size, vision.hidden_size * vision.merge_unit
  count = frames * patches
  full = len([index for index in vision.fullatt_block_indexes if index < vision.depth])
  window = min(patches, vision.window_patches)
  pairs = count * (full * patches + (vision.depth - full) * window)
  weights = 4 * embed**2 + 3 * embed * vision.intermediate_size
  merger = count // vision.merge_unit * (square**2 + square * vision.out_hidden_size)
  products = vision.depth * count * weights + count * vision.patch_dim * embed + merger
  return 2.0 * products + 4.0 * pairs * embed
