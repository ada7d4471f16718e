"""The connector of TinyLLaVA-Video: learned queries read the features of all images of a video.

Whatever the length of a video, it becomes as many media tokens as there are queries. In each layer
the queries attend to the video and to the queries of their group. There are two kinds:

    naive   one group: all queries read the whole video; positions are added to what they read
    group   the video is divided into consecutive parts, as equal as possible; the queries into as
            many groups of the same size, which read a part each; positions are added to the result

Source: TinyLLaVA-Video, arXiv 2501.15513, and its published code for what the paper leaves out;
the layers are Flamingo's, arXiv 2204.14198.
"""

import math

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int

from vr_jax.models import layout as layout_lib
from vr_jax.models.common import attention, layers, rematerialisation
from vr_jax.models.tinyllava import config as config_lib

EPSILON = 1e-5
AXES = ("prompts", "frames", None, None)  # of activations
WIDENING = 4  # of the feed-forward block


class ResamplerLayers(nnx.Module):
  """Weights of all layers, stacked along a leading layers axis; projections have no biases."""

  def __init__(self, config: config_lib.TinyLlavaConfig, *, scale: float, rngs: nnx.Rngs):
    sizes, embed = config.resampler, config.hidden_size
    depth, heads, head_dim = sizes.layers, sizes.heads, sizes.head_dim

    def weight(axes, *shape):
      return layers.parameter(rngs, ("layers", *axes), (depth, *shape), scale=scale)

    for name in ("norm_media", "norm_latents", "norm_mlp"):
      setattr(self, name, layers.constant(("layers", "embed"), (depth, embed), value=1.0))
      setattr(self, f"{name}_bias", layers.constant(("layers", "embed"), (depth, embed), value=0.0))
    self.query = weight(("embed", "vision_heads", None), embed, heads, head_dim)
    self.key_value = weight(("embed", None, "vision_heads", None), embed, 2, heads, head_dim)
    self.out = weight(("vision_heads", None, "embed"), heads, head_dim, embed)
    self.up = weight(("embed", "vision_mlp"), embed, WIDENING * embed)
    self.down = weight(("vision_mlp", "embed"), WIDENING * embed, embed)


class Resampler(nnx.Module):
  """A projection to the language model's width, learned queries, layers, and a norm."""

  def __init__(
    self, config: config_lib.TinyLlavaConfig, layout: layout_lib.Layout, *, rngs: nnx.Rngs
  ):
    self.config, self.layout = config, layout
    self.attention = attention.make(config, layout)
    scale, embed = config.initializer_range, config.hidden_size
    shape = (config.vision.hidden_size, embed)
    self.linear = layers.parameter(rngs, ("vision_embed", None), shape, scale=scale)
    self.linear_bias = layers.constant(("embed",), (embed,), value=0.0)
    latents = (config.resampler.latents, embed)
    self.latents = layers.parameter(rngs, (None, "embed"), latents, scale=scale)
    self.layers = ResamplerLayers(config, scale=scale, rngs=rngs)
    self.norm = layers.constant(("embed",), (embed,), value=1.0)
    self.norm_bias = layers.constant(("embed",), (embed,), value=0.0)

  def __call__(
    self,
    x: Float[Array, "prompts frames tokens vision_embed"],
    segment: Int[Array, "prompts frames tokens"],
  ) -> Float[Array, "prompts frames queries embed"]:
    """Reads the features of videos.

    x: of each video; "frames" counts videos here. Of any float type, which the result has.
    segment: -1 for tokens of images that are not there, which come last.

    The result of a video without tokens means nothing. Raises InputError if the attention's backend
    does not run here.
    """
    config, dtype = self.config.resampler, x.dtype
    x = layers.project(x, self.linear[...], merge=self.layout.merges)
    x = self.layout.place(layers.add_bias(x, self.linear_bias[...]), AXES)
    if not config.grouped:
      x = x + self._positions(x.shape[2]).astype(dtype)
    tokens = jnp.where(segment >= 0, parts(segment, config.groups), -1)
    own = jnp.repeat(jnp.arange(config.groups), config.latents)
    own = jnp.broadcast_to(own, (*x.shape[:2], config.queries))
    latents = jnp.tile(self.latents[...], (config.groups, 1))
    # Cast after broadcasting, so that their gradient is summed in float32.
    latents = jnp.broadcast_to(latents, (*x.shape[:2], *latents.shape)).astype(dtype)

    def layer(latents, weights):
      latents = latents + self._attend(latents, own, x, tokens, weights)
      normed = _norm(latents, weights["norm_mlp"], weights["norm_mlp_bias"])
      up = layers.project(normed, weights["up"], merge=self.layout.merges)
      up = jax.nn.gelu(up, approximate=False)
      down = layers.project(up, weights["down"], merge=self.layout.merges)
      return self.layout.place(latents + down, AXES), None

    weights = layers.stack(self.layers, platform=self.layout.platform)
    latents, _ = rematerialisation.scan(
      layer, self.layout.place(latents, AXES), weights, policy=self.config.remat
    )
    result = _norm(latents, self.norm[...], self.norm_bias[...])
    return result + self._positions(config.queries).astype(dtype) if config.grouped else result

  def _attend(
    self,
    latents: Float[Array, "prompts frames queries embed"],
    own: Int[Array, "prompts frames queries"],
    x: Float[Array, "prompts frames tokens embed"],
    tokens: Int[Array, "prompts frames tokens"],
    weights: dict[str, Array],
  ) -> Float[Array, "prompts frames queries embed"]:
    """Attention of the queries to the tokens of their part, and to the queries of their part.

    own, tokens: the part of each.
    """
    merge = self.layout.merges
    normed = _norm(latents, weights["norm_latents"], weights["norm_latents_bias"])
    media = _norm(x, weights["norm_media"], weights["norm_media_bias"])
    query = layers.project(normed, weights["query"], merge=merge)
    # Projected apart and then joined: the other way round copies the features of the whole video.
    both = (layers.project(y, weights["key_value"], merge=merge) for y in (media, normed))
    key_value = jnp.concatenate(list(both), axis=2)
    segments = jnp.concatenate([tokens, own], axis=2)
    key, value = key_value[..., 0, :, :], key_value[..., 1, :, :]
    mixed = self.attention.frames(query, key, value, own, segments)
    return layers.project(mixed, weights["out"], contract=2, merge=merge)

  def _positions(self, length: int) -> Float[Array, "length embed"]:
    """The table of positions, rounded as in the released code."""
    dtype = self.config.resampler.position_dtype
    return position_table(length, self.config.hidden_size, dtype)


def parts(
  segment: Int[Array, "prompts frames tokens"], groups: int
) -> Int[Array, "prompts frames tokens"]:
  """The part of its video that each token is in; parts are as equal as possible, the longer first.

  segment: -1 for tokens that are not there, which come last; their result means nothing.
  """
  count = (segment >= 0).sum(axis=2, keepdims=True)
  size, longer = count // groups, count % groups
  index = jnp.arange(segment.shape[2])
  behind = index - longer * (size + 1)
  short = longer + behind // jnp.maximum(size, 1)
  return jnp.where(behind < 0, index // (size + 1), jnp.minimum(short, groups - 1))


def position_table(length: int, width: int, dtype: DTypeLike) -> Float[Array, "length width"]:
  """Sines and cosines of positions, in turn along an even `width`, rounded to `dtype`; float32."""
  step = -math.log(10000.0) / width
  frequency = jnp.exp(jnp.arange(0, width, 2, dtype=jnp.float32) * step)
  angles = jnp.arange(length, dtype=jnp.float32)[:, None] * frequency
  table = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(length, -1)
  # Without the barrier XLA may drop the two casts.
  return jax.lax.optimization_barrier(table.astype(dtype)).astype(jnp.float32)


def _norm(
  x: Float[Array, "... embed"], scale: Float[Array, "embed"], bias: Float[Array, "embed"]
) -> Float[Array, "... embed"]:
  return layers.layer_norm(x, scale, bias, epsilon=EPSILON)
