"""The language model of Qwen2.5-VL: the layers of `common.decoder.Decoder`.

Source: Qwen2.5-VL, arXiv 2502.13923; Hugging Face transformers for what the paper leaves open.
"""

from collections.abc import Callable

from flax import nnx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vr_jax.models import layout as layout_lib
from vr_jax.models.common import decoder, layers, rotary_scaling
from vr_jax.models.qwen2_5_vl import config as config_lib


class TextLayers(nnx.Module):
  """Weights of all decoder layers, stacked along a leading layers axis."""

  def __init__(self, config: config_lib.TextConfig, *, scale: float, rngs: nnx.Rngs):
    depth, embed, mlp = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_dim = config.head_dim

    def weight(axes, *shape):
      return layers.parameter(rngs, ("layers", *axes), (depth, *shape), scale=scale)

    def constant(axes, *shape, value=0.0):
      return layers.constant(("layers", *axes), (depth, *shape), value=value)

    self.norm1 = constant(("embed",), embed, value=1.0)
    self.query = weight(("embed", "heads", None), embed, heads, head_dim)
    self.query_bias = constant(("heads", None), heads, head_dim)
    self.key = weight(("embed", "kv_heads", None), embed, kv_heads, head_dim)
    self.key_bias = constant(("kv_heads", None), kv_heads, head_dim)
    self.value = weight(("embed", "kv_heads", None), embed, kv_heads, head_dim)
    self.value_bias = constant(("kv_heads", None), kv_heads, head_dim)
    self.out = weight(("heads", None, "embed"), heads, head_dim, embed)
    self.norm2 = constant(("embed",), embed, value=1.0)
    self.gate = weight(("embed", "mlp"), embed, mlp)
    self.up = weight(("embed", "mlp"), embed, mlp)
    self.down = weight(("mlp", "embed"), mlp, embed)


class TextModel(decoder.Decoder):
  """Token embedding, decoder layers, final norm and, unless tied, output matrix."""

  config: config_lib.Qwen2_5_VLConfig

  def __init__(
    self, config: config_lib.Qwen2_5_VLConfig, layout: layout_lib.Layout, *, rngs: nnx.Rngs
  ):
    super().__init__(config, layout)
    text, scale = config.text, config.initializer_range
    shape = (text.vocab_size, text.hidden_size)
    self.embedding = layers.parameter(rngs, ("vocab", "embed"), shape, scale=scale)
    self.layers = TextLayers(text, scale=scale, rngs=rngs)
    self.norm = layers.constant(("embed",), (text.hidden_size,), value=1.0)
    if not config.tie_word_embeddings:
      self.head = layers.parameter(rngs, ("vocab", "embed"), shape, scale=scale)

  def media_angles(self, positions: Int[Array, "*batch axes"]) -> decoder.Angles:
    """Rotary angles of positions in time, height and width."""
    return rotary_angles(jnp.moveaxis(positions, -1, 0), self.config.text)

  def text_angles(self, positions: Int[Array, "*batch"]) -> decoder.Angles:
    """Rotary angles of text, whose position is the same on all three axes."""
    return text_angles(positions, self.config.text)

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
    """Computes rotated queries, rotated keys, and values of one layer."""
    normed = layers.rms_norm(x, weights["norm1"], epsilon=self.config.text.rms_norm_eps)
    query = self.project(normed, weights, "query")
    key = self.project(normed, weights, "key")
    value = self.project(normed, weights, "value")
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


def rotary_angles(
  positions: Int[Array, "3 *batch"], config: config_lib.TextConfig
) -> tuple[Float[Array, "*batch half"], Float[Array, "*batch half"]]:
  """Cosines and sines of the multimodal rotary embedding.

  `mrope_section` assigns each frequency to time, height or width.
  """
  axis = [i % 3 for i, count in enumerate(config.mrope_section) for _ in range(count)]
  angles = positions[..., None].astype(jnp.float32) * _frequencies(config)
  angles = jnp.stack([angles[a, ..., i] for i, a in enumerate(axis)], axis=-1)
  return rotary_scaling.cosines_and_sines(angles, config.rope_scaling)


def text_angles(
  positions: Int[Array, "*batch"], config: config_lib.TextConfig
) -> tuple[Float[Array, "*batch half"], Float[Array, "*batch half"]]:
  """Like `rotary_angles` for text, whose position is the same on all three axes."""
  angles = positions[..., None].astype(jnp.float32) * _frequencies(config)
  return rotary_scaling.cosines_and_sines(angles, config.rope_scaling)


def _frequencies(config: config_lib.TextConfig) -> Float[Array, "half"]:
  return rotary_scaling.frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
