"""The language model of Qwen2.5-VL, in the group layout.

A prompt is run once and leaves its keys and values; the replies of its group attend to them and to themselves, with one
softmax over both. So a group of G replies of R tokens to a prompt of P tokens costs P + G R tokens, and the gradient of
the replies flows into the prompt.

Source: Qwen2.5-VL, arXiv 2502.13923; Hugging Face transformers for what the paper leaves open.
"""

from collections.abc import Callable, Sequence
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vr_jax.models import layout as layout_lib
from vr_jax.models import packing as packing_lib
from vr_jax.models import seats as seats_lib
from vr_jax.models.qwen2_5_vl import attention, layers, rematerialisation
from vr_jax.models.qwen2_5_vl import config as config_lib


class Layers(nnx.Module):
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


class TextModel(nnx.Module):
  """Token embedding, decoder layers, final norm and, where it is not the embedding, the output matrix."""

  def __init__(self, config: config_lib.Config, layout: layout_lib.Layout, *, rngs: nnx.Rngs):
    self.config, self.layout = config, layout
    self.attention = attention.make(config, layout)
    text, scale = config.text, config.initializer_range
    shape = (text.vocab_size, text.hidden_size)
    self.embedding = layers.parameter(rngs, ("vocab", "embed"), shape, scale=scale)
    self.layers = Layers(text, scale=scale, rngs=rngs)
    self.norm = layers.constant(("embed",), (text.hidden_size,), value=1.0)
    if not config.tie_word_embeddings:
      self.head = layers.parameter(rngs, ("vocab", "embed"), shape, scale=scale)

  @property
  def dtype(self) -> jnp.dtype:
    """What activations are computed in."""
    return jnp.dtype(self.config.dtype)

  def embed(
    self, tokens: Int[Array, "..."], axes: layout_lib.Axes, *, whole: bool = False
  ) -> Float[Array, "... embed"]:
    """Embeddings of tokens, whose logical axes these are; whole: every device has all of a row."""
    return self.layout.look_up(self.embedding[...], tokens, axes, self.dtype, whole=whole)

  def output_rows(self) -> Float[Array, "vocab embed"]:
    """The matrix whose product with a hidden state scores the next token."""
    return (self.embedding if self.config.tie_word_embeddings else self.head)[...]

  def logits(self, hidden: Float[Array, "... embed"]) -> Float[Array, "... vocab"]:
    """Scores of the next token, float32."""
    flat = hidden.reshape(-1, hidden.shape[-1])
    scores = jnp.einsum(
      "ne,ve->nv",
      flat,
      self.output_rows().astype(self.dtype),
      precision=layers.precision(self.dtype),
      preferred_element_type=jnp.float32,
    )
    return scores.reshape(*hidden.shape[:-1], -1)

  def prefill(
    self,
    x: Float[Array, "prompts prefix embed"],
    positions: Int[Array, "3 prompts prefix"],
    valid: Bool[Array, "prompts prefix"],
  ) -> tuple[
    Float[Array, "prompts prefix embed"],
    Float[Array, "layers prompts prefix kv_heads head_dim"],
    Float[Array, "layers prompts prefix kv_heads head_dim"],
  ]:
    """Final-normed hidden states of whole prompts, and every layer's keys and values."""
    cos, sin = rotary_angles(positions, self.config.text)
    axes = ("prompts", "prefix", None)

    def layer(x, weights):
      query, key, value = self._qkv(x, weights, cos, sin)
      mixed = self.attention.prompts(query, key, value, valid)
      return self.layout.place(self._finish(x, mixed, weights), axes), (key, value)

    x = self.layout.place(x, axes)
    x, (keys, values) = self._scan(layer, x, layers.stack(self.layers, self.dtype))
    return self._final_norm(x), keys, values

  def extend(
    self,
    x: Float[Array, "prompts group time embed"],
    positions: Int[Array, "*axes prompts group time"],
    valid: Bool[Array, "prompts group time"],
    prefix: attention.Block,
  ) -> Float[Array, "prompts group time embed"]:
    """Final-normed hidden states of replies that continue their prompt's prefix. positions: of text alone, or on 3 axes."""
    cos, sin = self._angles(positions, x)
    axes = ("prompts", "group", "time", None)

    def layer(x, inputs):
      weights, prefix_key, prefix_value = inputs
      query, key, value = self._qkv(x, weights, cos, sin)
      shared = attention.Block(prefix_key, prefix_value, prefix.valid)
      mixed = self.attention.replies(query, shared, attention.Block(key, value, valid))
      return self.layout.place(self._finish(x, mixed, weights), axes), None

    return self._continued(layer, self.layout.place(x, axes), prefix)

  def extend_packed(
    self,
    x: Float[Array, "packed embed"],
    positions: Int[Array, "*axes packed"],
    valid: Bool[Array, "prompts group time"],
    prefix: attention.Block,
    packing: packing_lib.Packing,
  ) -> Float[Array, "packed embed"]:
    """As `extend`, on the valid tokens alone; only attention sees them as replies."""
    cos, sin = self._angles(positions, x)
    axes, heads, kv_heads = ("slots", None), ("heads", None), ("kv_heads", None)

    def layer(x, inputs):
      weights, prefix_key, prefix_value = inputs
      query, key, value = self._qkv(x, weights, cos, sin)
      own = attention.Block(packing.unpack(key, kv_heads), packing.unpack(value, kv_heads), valid)
      shared = attention.Block(prefix_key, prefix_value, prefix.valid)
      mixed = self.attention.replies(packing.unpack(query, heads), shared, own)
      mixed = packing.pack(mixed, heads)
      return self.layout.place(self._finish(x, mixed, weights), axes), None

    return self._continued(layer, self.layout.place(x, axes), prefix)

  def _continued(
    self,
    layer: Callable[[Array, Any], tuple[Array, Any]],
    x: Float[Array, "*batch embed"],
    prefix: attention.Block,
  ) -> Float[Array, "*batch embed"]:
    inputs = (layers.stack(self.layers, self.dtype), prefix.key, prefix.value)
    x, _ = self._scan(layer, x, inputs)
    return self._final_norm(x)

  def decode(
    self,
    x: Float[Array, "slots embed"],
    positions: Int[Array, "slots"],
    seats: seats_lib.Seats,
    weights: dict[str, Array | tuple[Array, ...]],
    prefix: attention.Block,
    recent: attention.Recent,
    *pasts: attention.Block,
  ) -> tuple[
    Float[Array, "slots embed"],
    Float[Array, "layers slots kv_heads head_dim length"] | tuple[Array, ...],
    Float[Array, "layers slots kv_heads length head_dim"] | tuple[Array, ...],
  ]:
    """One step: final-normed hidden states, and the keys and values of `recent` with this token's.

    weights: of the layers; pasts: what replies left before the recent. Where the recent are tuples of layers, all of these are,
    and the prefix lies as they do; in stacks it lies as `prefill` gives it. A stack of layers is only read in the loop over layers, so that a step writes one
    position of it, behind the loop, instead of copying it.
    """
    cos, sin = text_angles(positions, self.config.text)
    by_layer = isinstance(recent.key, tuple)
    places = jnp.arange(recent.key[0].shape[-1])

    def put(past: Sequence[Array], new: Sequence[Array]) -> tuple[Array, Array]:
      axes = past[0].ndim - 1, past[1].ndim - 2
      update = jax.lax.dynamic_update_slice_in_dim
      return tuple(
        update(*pair, recent.index, axis) for *pair, axis in zip(past, new, axes, strict=True)
      )

    def layer(x, inputs):
      weights, of_prefix, own, others = inputs
      query, key, value = self._qkv(x, weights, cos, sin)
      new = key[..., None], value[:, :, None]
      if by_layer:
        new = put(own, new)
        blocks = [attention.Block(*new, places <= recent.index)]
      else:
        of_prefix = attention.turned(*of_prefix)
        alone = attention.Block(*new, jnp.ones(1, bool))
        blocks = [attention.Block(*own, places < recent.index), alone]
      blocks += [
        attention.Block(*pair, past.valid) for pair, past in zip(others, pasts, strict=True)
      ]
      mixed = self.attention.step(query, seats, attention.Block(*of_prefix, prefix.valid), *blocks)
      return self.layout.place(self._finish(x, mixed, weights), ("slots", None)), new

    x = self.layout.place(x, ("slots", None))
    own, *others = ([block.key, block.value] for block in (recent, *pasts))
    inputs = [weights, [prefix.key, prefix.value], own, others]
    x, new = (layers.chain if by_layer else jax.lax.scan)(layer, x, inputs)
    keys, values = new if by_layer else put(own, new)
    return self._final_norm(x), keys, values

  def append(
    self,
    x: Float[Array, "rows time embed"],
    positions: Int[Array, "3 rows time"],
    valid: Bool[Array, "rows time"],
    rows: seats_lib.Rows,
    prefix: attention.Block,
    past_keys: Float[Array, "layers homes kv_heads head_dim length"] | tuple[Array, ...],
    past_values: Float[Array, "layers homes kv_heads length head_dim"] | tuple[Array, ...],
  ) -> tuple[
    Float[Array, "rows time embed"],
    Float[Array, "layers rows kv_heads head_dim time"] | tuple[Array, ...],
    Float[Array, "layers rows kv_heads time head_dim"] | tuple[Array, ...],
  ]:
    """Final-normed hidden states of what some replies are shown next, and the keys and values to be written behind theirs."""
    cos, sin = self._angles(positions, x)
    axes = ("slots", None, None)

    def layer(x, inputs):
      weights, prefix_key, prefix_value, *past = inputs
      query, key, value = self._qkv(x, weights, cos, sin)
      shared = attention.Block(prefix_key, prefix_value, prefix.valid)
      own = attention.Block(key, value, valid)
      mixed = self.attention.append(query, own, rows, shared, *past)
      kept = attention.turned(key, value)
      return self.layout.place(self._finish(x, mixed, weights), axes), kept

    weights = layers.stack(self.layers, self.dtype)
    inputs = [weights, prefix.key, prefix.value, past_keys, past_values]
    run = layers.chain if isinstance(past_keys, tuple) else jax.lax.scan
    x, (keys, values) = run(layer, self.layout.place(x, axes), inputs)
    return self._final_norm(x), keys, values

  def _angles(
    self, positions: Int[Array, "..."], x: Float[Array, "*batch embed"]
  ) -> tuple[Float[Array, "*batch half"], Float[Array, "*batch half"]]:
    """Of positions [*batch], those of text, or [3, *batch]."""
    angles = rotary_angles if positions.ndim == x.ndim else text_angles
    return angles(positions, self.config.text)

  def _qkv(
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
    """Rotated queries and keys, and values, of one layer."""
    normed = layers.rms_norm(x, weights["norm1"], epsilon=self.config.text.rms_norm_eps)
    query = self._project(normed, weights, "query") + weights["query_bias"]
    key = self._project(normed, weights, "key") + weights["key_bias"]
    value = self._project(normed, weights, "value") + weights["value_bias"]
    return layers.rotate(query, cos, sin), layers.rotate(key, cos, sin), value

  def _finish(
    self,
    x: Float[Array, "*batch embed"],
    mixed: Float[Array, "*batch heads head_dim"],
    weights: dict[str, Array],
  ) -> Float[Array, "*batch embed"]:
    """What is left of a layer once its values are mixed."""
    x = x + self._project(mixed, weights, "out", contract=2)
    normed = layers.rms_norm(x, weights["norm2"], epsilon=self.config.text.rms_norm_eps)
    return x + layers.swiglu(normed, weights, merge=self.layout.merges)

  def _project(
    self, x: Float[Array, "..."], weights: dict[str, Array], name: str, *, contract: int = 1
  ) -> Float[Array, "..."]:
    return layers.adapted(x, weights, name, contract=contract, merge=self.layout.merges)

  def _final_norm(self, x: Float[Array, "*batch embed"]) -> Float[Array, "*batch embed"]:
    return layers.rms_norm(x, self.norm[...], epsilon=self.config.text.rms_norm_eps)

  def _scan(
    self, layer: Callable[[Array, Any], tuple[Array, Any]], x: Float[Array, "..."], inputs: Any
  ) -> tuple[Float[Array, "..."], Any]:
    return rematerialisation.scan(layer, x, inputs, policy=self.config.remat)


def rotary_angles(
  positions: Int[Array, "3 *batch"], config: config_lib.TextConfig
) -> tuple[Float[Array, "*batch half"], Float[Array, "*batch half"]]:
  """Cosines and sines of multimodal rotary: each frequency turns with time, height or width.

  `mrope_section` deals the frequencies out to the three axes in turn.
  """
  axis = [i % 3 for i, count in enumerate(config.mrope_section) for _ in range(count)]
  angles = positions[..., None].astype(jnp.float32) * _frequencies(config)
  angles = jnp.stack([angles[a, ..., i] for i, a in enumerate(axis)], axis=-1)
  return layers.cosines_and_sines(angles)


def text_angles(
  positions: Int[Array, "*batch"], config: config_lib.TextConfig
) -> tuple[Float[Array, "*batch half"], Float[Array, "*batch half"]]:
  """As `rotary_angles` for text, whose three positions are one."""
  angles = positions[..., None].astype(jnp.float32) * _frequencies(config)
  return layers.cosines_and_sines(angles)


def _frequencies(config: config_lib.TextConfig) -> Float[Array, "half"]:
  half = config.head_dim // 2
  return 1.0 / config.rope_theta ** (jnp.arange(half, dtype=jnp.float32) / half)
