"""FLOPs of the model's matrix products, counted from its sizes; a multiply-add is two.

Of attention, only pairs of a query and a key that may see each other are counted. Norms, rotary and softmax are left out.
"""

import dataclasses

from vr_jax.models.qwen2_5_vl import config as config_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forward:
  """FLOPs of one prompt and its replies."""

  vision: float
  prefix: float  # the text layers over the prompt
  replies: float  # the text layers over the replies
  head: float  # logits of every reply token

  @property
  def text(self) -> float:
    """All but the vision tower."""
    return self.prefix + self.replies + self.head

  @property
  def total(self) -> float:
    """All of it."""
    return self.vision + self.text


def forward(
  config: config_lib.Config, *, frames: int, patches: int, prefix: int, group: int, time: int
) -> Forward:
  """Reading one prompt (`frames` temporal patches of `patches` patches, `prefix` tokens) and `group` replies of `time` tokens.

  Sampling these replies token by token takes the same.
  """
  text = config.text
  own = prefix * time + time * (time + 1) // 2
  return Forward(
    vision=_vision(config.vision, frames, patches),
    prefix=_layers(text, prefix, prefix * (prefix + 1) // 2),
    replies=group * _layers(text, time, own),
    head=group * time * 2.0 * text.hidden_size * text.vocab_size,
  )


def training(
  work: Forward, *, vision_frozen: bool, base_frozen: bool = False, rematerialised: bool = False
) -> float:
  """A step on that work: forward, and backward where something is trained.

  base_frozen: adapters alone are trained, so that the backward pass forms no gradient of the weights (adapters
  themselves are not counted). rematerialised: what has a backward pass is computed a second time before it.
  """
  factor = 1 + (1 if base_frozen else 2) + rematerialised
  vision = work.vision * (1 if vision_frozen else factor)
  return vision + work.text * factor


def _layers(text: config_lib.TextConfig, tokens: int, pairs: int) -> float:
  """All decoder layers over `tokens`, of which `pairs` of query and key see each other."""
  embed, head_dim = text.hidden_size, text.head_dim
  heads, kv_heads = text.num_attention_heads, text.num_key_value_heads
  weights = embed * head_dim * (2 * heads + 2 * kv_heads) + 3 * embed * text.intermediate_size
  return text.num_hidden_layers * (2.0 * tokens * weights + 4.0 * pairs * heads * head_dim)


def _vision(vision: config_lib.VisionConfig, frames: int, patches: int) -> float:
  embed, square = vision.hidden_size, vision.hidden_size * vision.merge_unit
  count = frames * patches
  full = len([index for index in vision.fullatt_block_indexes if index < vision.depth])
  window = min(patches, (vision.window_tokens * vision.spatial_merge_size) ** 2)
  pairs = count * (full * patches + (vision.depth - full) * window)
  weights = 4 * embed**2 + 3 * embed * vision.intermediate_size
  merger = count // vision.merge_unit * (square**2 + square * vision.out_hidden_size)
  products = vision.depth * count * weights + count * vision.patch_dim * embed + merger
  return 2.0 * products + 4.0 * pairs * embed
