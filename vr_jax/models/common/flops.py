"""FLOPs of a model's matrix products; a multiply-add is two.

Attention counts only pairs of a query and a key that the mask allows. Norms, rotary embeddings and
softmax are left out.
"""

import dataclasses
from typing import Protocol, runtime_checkable


@runtime_checkable
class DecoderSizes(Protocol):
  """Sizes of a decoder, by the names of its checkpoint's config."""

  @property
  def num_hidden_layers(self) -> int:
    """Layers."""
    ...

  @property
  def hidden_size(self) -> int:
    """Features of a token."""
    ...

  @property
  def intermediate_size(self) -> int:
    """Features within the MLP."""
    ...

  @property
  def num_attention_heads(self) -> int:
    """Heads of queries."""
    ...

  @property
  def num_key_value_heads(self) -> int:
    """Heads of keys and values."""
    ...

  @property
  def head_dim(self) -> int:
    """Features of a head."""
    ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextSizes:
  """Sizes of a language model.

  layer_weights: number of weights in one layer.
  kv_width: features of a token's keys and values in one layer.
  queries_per_key: heads of queries that share one of keys.
  """

  layers: int
  layer_weights: int
  kv_width: int
  queries_per_key: int

  @classmethod
  def of_config(cls, text: DecoderSizes, *, mlp_matrices: int) -> "TextSizes":
    """Of a decoder with these sizes. mlp_matrices: 3 of a gated MLP, 2 of a plain one."""
    heads = 2 * text.num_attention_heads + 2 * text.num_key_value_heads
    width = heads * text.head_dim + mlp_matrices * text.intermediate_size
    return cls(
      layers=text.num_hidden_layers,
      layer_weights=text.hidden_size * width,
      kv_width=2 * text.num_key_value_heads * text.head_dim,
      queries_per_key=text.num_attention_heads // text.num_key_value_heads,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forward:
  """FLOPs of one prompt and its replies."""

  vision: float
  prefix: float  # the text layers over the prompt
  replies: float  # the text layers over the replies
  head: float  # logits of every reply token

  @property
  def text(self) -> float:
    """FLOPs of everything but the vision tower."""
    return self.prefix + self.replies + self.head

  @property
  def total(self) -> float:
    """FLOPs of the whole model."""
    return self.vision + self.text


def training(
  work: Forward, *, vision_frozen: bool, base_frozen: bool = False, rematerialised: bool = False
) -> float:
  """FLOPs of a training step: forward, and backward of what is trained.

  base_frozen: only adapters are trained, so that the backward pass computes no gradients of the
    weights. The adapters' own FLOPs are not counted.
  rematerialised: everything with a backward pass is computed a second time before it.
  """
  factor = 1 + (1 if base_frozen else 2) + rematerialised
  vision = work.vision * (1 if vision_frozen else factor)
  return vision + work.text * factor
