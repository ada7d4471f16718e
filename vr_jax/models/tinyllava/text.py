"""The language model of TinyLLaVA-Video, Phi-2: the layers of `common.decoder.Decoder`.

Attention and feed-forward block of a layer read the same norm, and are added to its input together.
Only the first features of a head are rotated. All projections have biases, also the output matrix.

Source: Phi-2 (Microsoft, 2023); Hugging Face transformers for the arithmetic.
"""

from collections.abc import Callable

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vr_jax.models import layout as layout_lib
from vr_jax.models.common import decoder, layers, rotary_scaling
from vr_jax.models.tinyllava import config as config_lib


class PhiLayers(nnx.Module):
  """Weights of all decoder layers, stacked along a leading layers axis."""

  def __init__(self, config: config_lib.PhiConfig, *, scale: float, rngs: nnx.Rngs):
    depth, embed, mlp = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    head_dim = config.head_dim

    def weight(axes, *shape):
      return layers.parameter(rngs, ("layers", *axes), (depth, *shape), scale=scale)

    def constant(axes, *shape, value=0.0):
      return layers.constant(("layers", *axes), (depth, *shape), value=value)

    self.norm = constant(("embed",), embed, value=1.0)
    self.norm_bias = constant(("embed",), embed)
    self.query = weight(("embed", "heads", None), embed, heads, head_dim)
    self.query_bias = constant(("heads", None), heads, head_dim)
    self.key = weight(("embed", "kv_heads", None), embed, kv_heads, head_dim)
    self.key_bias = constant(("kv_heads", None), kv_heads, head_dim)
    self.value = weight(("embed", "kv_heads", None), embed, kv_heads, head_dim)
    self.value_bias = constant(("kv_heads", None), kv_heads, head_dim)
    self.out = weight(("heads", None, "embed"), heads, head_dim, embed)
    self.out_bias = constant(("embed",), embed)
    self.up = weight(("embed", "mlp"), embed, mlp)
    self.up_bias = constant(("mlp",), mlp)
    self.down = weight(("mlp", "embed"), mlp, embed)
    self.down_bias = constant(("embed",), embed)


class PhiTextModel(decoder.Decoder):
  """Token embedding, decoder layers, final norm, output matrix and its bias."""

  config: config_lib.TinyLlavaConfig

  def __init__(
    self, config: config_lib.TinyLlavaConfig, layout: layout_lib.Layout, *, rngs: nnx.Rngs
  ):
    super().__init__(config, layout)
    text, scale = config.text, config.initializer_range
    shape = (text.vocab_size, text.hidden_size)
    self.embedding = layers.parameter(rngs, ("vocab", "embed"), shape, scale=scale)
    self.layers = PhiLayers(text, scale=scale, rngs=rngs)
    self.norm = layers.constant(("embed",), (text.hidden_size,), value=1.0)
    self.norm_bias = layers.constant(("embed",), (text.hidden_size,), value=0.0)
    # A copy, as if tied: a network that starts from nothing then learns sooner to repeat words.
    self.head = nnx.Param(jnp.array(self.embedding[...], copy=True), axes=("vocab", "embed"))
    self.head_bias = layers.constant(("vocab",), (text.vocab_size,), value=0.0)

  def lm_head_bias(self) -> Float[Array, "vocab"]:
    """What is added to logits."""
    return self.head_bias[...]

  def media_angles(self, positions: Int[Array, "*batch 1"]) -> decoder.Angles:
    """Rotary angles; media tokens are counted as text is."""
    return self.text_angles(positions[..., 0])

  def text_angles(self, positions: Int[Array, "*batch"]) -> decoder.Angles:
    """Rotary angles of the features that are rotated."""
    text = self.config.text
    scaling = text.rope_scaling
    frequencies = rotary_scaling.frequencies(text.rotary_dim, text.rope_theta, scaling)
    angles = positions[..., None].astype(jnp.float32) * frequencies
    return rotary_scaling.cosines_and_sines(angles, scaling)

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
    normed = self._norm(x, weights)
    query, key, value = (self.project(normed, weights, name) for name in ("query", "key", "value"))
    return layers.rotate(query, cos, sin), layers.rotate(key, cos, sin), value

  def finish_layer(
    self,
    x: Float[Array, "*batch embed"],
    mixed: Float[Array, "*batch heads head_dim"],
    weights: dict[str, Array],
    place: Callable[[Array], Array] = lambda x: x,
  ) -> Float[Array, "*batch embed"]:
    """Output projection and feed-forward block of a layer, added to its input."""
    attended = place(self.project(mixed, weights, "out", contract=2))
    up = self.project(self._norm(x, weights), weights, "up")
    up = jax.nn.gelu(up, approximate=True)
    return attended + self.project(up, weights, "down") + x

  def final_norm(self, x: Float[Array, "*batch embed"]) -> Float[Array, "*batch embed"]:
    """Applies the final layer norm."""
    epsilon = self.config.text.layer_norm_eps
    return layers.layer_norm(x, self.norm[...], self.norm_bias[...], epsilon=epsilon)

  def _norm(
    self, x: Float[Array, "*batch embed"], weights: dict[str, Array]
  ) -> Float[Array, "*batch embed"]:
    """The one norm of a layer; where it is computed twice, the compiler keeps one."""
    epsilon = self.config.text.layer_norm_eps
    return layers.layer_norm(x, weights["norm"], weights["norm_bias"], epsilon=epsilon)
