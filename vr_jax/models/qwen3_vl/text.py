"""The language model of Qwen3-VL: the layers of `common.decoder.Decoder`.

Source: Qwen3-VL, arXiv 2511.21631; Hugging Face transformers for what the paper leaves open.
"""

from collections.abc import Callable

from flax import nnx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from vr_jax.models import layout as layout_lib
from vr_jax.models.common import decoder, layers, rotary_scaling
from vr_jax.models.qwen3_vl import config as config_lib


class Qwen3TextLayers(nnx.Module):
  """Weights of all decoder layers, stacked along a leading layers axis."""

  def __init__(self, config: config_lib.Qwen3TextConfig, *, scale: float, rngs: nnx.Rngs):
    depth, embed, mlp = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_dim = config.head_dim

    def weight(axes, *shape):
      return layers.parameter(rngs, ("layers", *axes), (depth, *shape), scale=scale)

    def ones(axis, size):
      return layers.constant(("layers", axis), (depth, size), value=1.0)

    self.norm1 = ones("embed", embed)
    self.query = weight(("embed", "heads", None), embed, heads, head_dim)
    self.query_norm = ones(None, head_dim)
    self.key = weight(("embed", "kv_heads", None), embed, kv_heads, head_dim)
    self.key_norm = ones(None, head_dim)
    self.value = weight(("embed", "kv_heads", None), embed, kv_heads, head_dim)
    self.out = weight(("heads", None, "embed"), heads, head_dim, embed)
    self.norm2 = ones("embed", embed)
    self.gate = weight(("embed", "mlp"), embed, mlp)
    self.up = weight(("embed", "mlp"), embed, mlp)
    self.down = weight(("mlp", "embed"), mlp, embed)


class Qwen3TextModel(decoder.Decoder):
  """Token embedding, decoder layers, final norm and, unless tied, output matrix."""

  config: config_lib.Qwen3VLConfig

  def __init__(
    self, config: config_lib.Qwen3VLConfig, layout: layout_lib.Layout, *, rngs: nnx.Rngs
  ):
    super().__init__(config, layout)
    text, scale = config.text, config.initializer_range
    shape = (text.vocab_size, text.hidden_size)
    self.embedding = layers.parameter(rngs, ("vocab", "embed"), shape, scale=scale)
    self.layers = Qwen3TextLayers(text, scale=scale, rngs=rngs)
    self.norm = layers.constant(("embed",), (text.hidden_size,), value=1.0)
    if not config.tie_word_embeddings:
      self.head = layers.parameter(rngs, ("vocab", "embed"), shape, scale=scale)

  def media_angles(self, positions: Int[Array, "*batch axes"]) -> decoder.Angles:
    """Rotary angles of positions in time, height and width."""
    text = self.config.text
    chosen = positions[..., np.array(frequency_axes(text))]
    angles = chosen.astype(jnp.float32) * _frequencies(text)
    return rotary_scaling.cosines_and_sines(angles, text.rope_scaling)

  def text_angles(self, positions: Int[Array, "*batch"]) -> decoder.Angles:
    """Rotary angles of text, whose position is the same on all three axes."""
    angles = positions[..., None].astype(jnp.float32) * _frequencies(self.config.text)
    return rotary_scaling.cosines_and_sines(angles, self.config.text.rope_scaling)

  def project_qkv(
    self,
    x: Float[Array, "*batch embed"],
    weights: dict[str, Array],
    cos: Float[Array, "*batch half"],
    sin: Float[Array, "*batch half"],
  ) -> tuple[
    Float[Array, "*batch heads head_dim"],
    Float[Array, "*batch kv_heads head_dim"],
    Float[Array, "*batch kv_heads head_dim"],
  ]:
    """Computes normalised and rotated queries and keys, and values of one layer."""
    epsilon = self.config.text.rms_norm_eps
    normed = layers.rms_norm(x, weights["norm1"], epsilon=epsilon)
    query, key, value = (self.project(normed, weights, name) for name in ("query", "key", "value"))
    query = layers.rms_norm(query, weights["query_norm"], epsilon=epsilon)
    key = layers.rms_norm(key, weights["key_norm"], epsilon=epsilon)
    return layers.rotate(query, cos, sin), layers.rotate(key, cos, sin), value

  def finish_layer(
    self,
    x: Float[Array, "*batch embed"],
    mixed: Float[Array, "*batch heads head_dim"],
    weights: dict[str, Array],
    place: Callable[[Array], Array] = lambda x: x,
  ) -> Float[Array, "*batch embed"]:
    """Output projection and feed-forward block of a layer, with residuals."""
    x = place(x + self.project(mixed, weights, "out", contract=2))
    normed = layers.rms_norm(x, weights["norm2"], epsilon=self.config.text.rms_norm_eps)
    return x + layers.swiglu(normed, weights, merge=self.layout.merges)

  def final_norm(self, x: Float[Array, "*batch embed"]) -> Float[Array, "*batch embed"]:
    """Applies the final RMS norm."""
    return layers.rms_norm(x, self.norm[...], epsilon=self.config.text.rms_norm_eps)


def frequency_axes(config: config_lib.Qwen3TextConfig) -> list[int]:
  """The axis (time 0, height 1, width 2) of each rotary frequency, interleaved.

  Of each three frequencies one is of height and one of width, as many as `mrope_section` says; the
  others are of time.
  """
  return [
    i % 3 if i % 3 and i < 3 * config.mrope_section[i % 3] else 0
    for i in range(config.head_dim // 2)
  ]


def _frequencies(config: config_lib.Qwen3TextConfig) -> Float[Array, "half"]:
  return rotary_scaling.frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
