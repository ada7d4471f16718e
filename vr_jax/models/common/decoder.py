"""The decoder that language models of all families share: stacked layers in the group layout.

A prompt is run once and leaves its keys and values; the replies of its group attend to them and to
themselves, with one softmax over both. So a group of G replies of R tokens to a prompt of P tokens
costs P + G R tokens, and the gradient of the replies flows into the prompt.

A family adds its weights and implements the computation of a layer (`project_qkv`,
`finish_layer`), the rotary angles (`media_angles`, `text_angles`) and the final norm.
"""

import abc
from collections.abc import Callable, Sequence
import functools
from typing import Any, cast

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from vr_jax.models import interface
from vr_jax.models import layout as layout_lib
from vr_jax.models.common import (
  attention,
  attention_decode_plan,
  kv_cache,
  layers,
  rematerialisation,
  stored_weights,
  zigzag,
)
from vr_jax.models.common import packing as packing_lib
from vr_jax.models.common import slots as slots_lib

Angles = tuple[Float[Array, "*batch half"], Float[Array, "*batch half"]]


class Decoder(nnx.Module):
  """Token embedding, decoder layers, final norm and output matrix, if it is not the embedding.

  A subclass sets `layers`, a module of weights stacked along a leading layers axis, `embedding`
  [vocab, embed] and, unless they are tied, `head` [vocab, embed].
  """

  embedding: nnx.Param
  head: nnx.Param
  layers: nnx.Module

  def __init__(self, config: interface.ModelConfig, layout: layout_lib.Layout):
    self.config, self.layout = config, layout
    self.attention = attention.make(config, layout)

  @abc.abstractmethod
  def media_angles(self, positions: Int[Array, "*batch axes"]) -> Angles:
    """Cosines and sines of rotary angles of positions on all axes."""

  @abc.abstractmethod
  def text_angles(self, positions: Int[Array, "*batch"]) -> Angles:
    """Like `media_angles` for text, whose position is the same on all axes."""

  @abc.abstractmethod
  def project_qkv(
    self, x: Float[Array, "*batch embed"], weights: dict[str, Array], cos: Array, sin: Array
  ) -> tuple[
    Float[Array, "*batch heads head_dim"],
    Float[Array, "*batch kv_heads head_dim"],
    Float[Array, "*batch kv_heads head_dim"],
  ]:
    """Computes rotated queries, rotated keys, and values of one layer."""

  @abc.abstractmethod
  def finish_layer(
    self,
    x: Float[Array, "*batch embed"],
    mixed: Float[Array, "*batch heads head_dim"],
    weights: dict[str, Array],
    place: Callable[[Array], Array] = lambda x: x,
  ) -> Float[Array, "*batch embed"]:
    """Computes a layer's output from its input `x` and the attention output `mixed`.

    place: of hidden states between the layer's blocks. Without it, XLA may move the weights of a
      layer to many slots instead.
    """

  @abc.abstractmethod
  def final_norm(self, x: Float[Array, "*batch embed"]) -> Float[Array, "*batch embed"]:
    """Applies the norm after the last layer."""

  @property
  def dtype(self) -> jnp.dtype:
    """The dtype of activations."""
    return jnp.dtype(self.config.dtype)

  def embed(
    self, tokens: Int[Array, "..."], axes: layout_lib.Axes, *, decoding: bool = False
  ) -> Float[Array, "... embed"]:
    """Embeds tokens. axes: their logical axes. decoding: with the layout of decoding."""
    layout = self.layout.decoding if decoding else self.layout
    return layout.look_up(self.embedding[...], tokens, axes, self.dtype)

  def lm_head_weight(self) -> Float[Array, "vocab embed"]:
    """The output matrix, whose product with a hidden state gives logits."""
    return (self.embedding if self.config.tie_word_embeddings else self.head)[...]

  def lm_head_bias(self) -> Float[Array, "vocab"] | None:
    """What is added to that product; None, unless a family overrides it."""
    return None

  def logits(self, hidden: Float[Array, "... embed"]) -> Float[Array, "... vocab"]:
    """Logits of the next token, float32."""
    flat = hidden.reshape(-1, hidden.shape[-1])
    scores = jnp.einsum(
      "ne,ve->nv",
      flat,
      self.lm_head_weight().astype(self.dtype),
      precision=layers.precision(self.dtype),
      preferred_element_type=jnp.float32,
    )
    bias = self.lm_head_bias()
    if bias is not None:
      scores = scores + bias.astype(self.dtype)
    return scores.reshape(*hidden.shape[:-1], -1)

  def prefill(
    self,
    x: Float[Array, "prompts prefix embed"],
    positions: Int[Array, "prompts prefix axes"],
    valid: Bool[Array, "prompts prefix"],
    added: Float[Array, "prompts prefix levels embed"] | None = None,
  ) -> tuple[
    Float[Array, "prompts prefix embed"],
    Float[Array, "layers prompts prefix kv_heads head_dim"],
    Float[Array, "layers prompts prefix kv_heads head_dim"],
  ]:
    """Computes final-normed hidden states of prompts, and every layer's keys and values.

    added: what is added to each token behind the first layers, one level a layer.
    """
    axes, folded = ("prompts", "prefix", None), None
    if zigzag.fits(self.layout, valid.shape):
      folded = zigzag.fold(valid, axes[:2], self.layout)
      x, positions = (zigzag.fold(y, axes, self.layout) for y in (x, positions))
      added = None if added is None else zigzag.fold(added, (*axes, None), self.layout)
    cos, sin = self.media_angles(positions)

    def keep(x):
      """What is returned stays split along the prefix; attention gathered copies."""
      kept_axes = (*axes[:2], "kv_heads", None)
      x = x if folded is None else zigzag.unfold(x, kept_axes, self.layout)
      return self.layout.place(x, kept_axes)

    def layer(x, weights):
      query, key, value = self.project_qkv(x, weights, cos, sin)
      mixed = self.attention.prompts(query, key, value, valid, folded)
      return self.layout.place(self.finish_layer(x, mixed, weights), axes), (keep(key), keep(value))

    x = self.layout.place(x, axes)
    run, inputs = self._adding(layer, self.stacked(), added, axes)
    x, (keys, values) = rematerialisation.scan(run, x, inputs, policy=self.config.remat)
    x = x if folded is None else zigzag.unfold(x, axes, self.layout)
    return self.final_norm(x), keys, values

  def forward_replies(
    self,
    x: Float[Array, "prompts group time embed"],
    positions: Int[Array, "prompts group time *axes"],
    valid: Bool[Array, "prompts group time"],
    prefix: attention.Block,
    forgetting: attention.Forgetting | None = None,
    added: Float[Array, "prompts group time levels embed"] | None = None,
  ) -> Float[Array, "prompts group time embed"]:
    """Computes final-normed hidden states of replies, which attend to their prompt's prefix.

    positions: on all axes, or without the axes dimension if all tokens are text.
    added: as in `prefill`.
    """
    cos, sin = self._angles(positions, x)
    axes = ("prompts", "group", "time", None)

    def layer(x, inputs):
      weights, prefix_key, prefix_value = inputs
      query, key, value = self.project_qkv(x, weights, cos, sin)
      shared = attention.Block(prefix_key, prefix_value, prefix.valid)
      own = attention.Block(key, value, valid)
      mixed = self.attention.replies(query, shared, own, forgetting)
      return self.layout.place(self.finish_layer(x, mixed, weights), axes), None

    return self._continue(layer, x, prefix, added, axes)

  def forward_packed_replies(
    self,
    x: Float[Array, "packed embed"],
    positions: Int[Array, "packed *axes"],
    valid: Bool[Array, "prompts group time"],
    prefix: attention.Block,
    packing: packing_lib.Packing,
    forgetting: attention.Forgetting | None = None,
    added: Float[Array, "packed levels embed"] | None = None,
  ) -> Float[Array, "packed embed"]:
    """Like `forward_replies`, on the valid tokens only; they are unpacked for attention alone."""
    cos, sin = self._angles(positions, x)
    axes, heads, kv_heads = ("slots", None), ("heads", None), ("kv_heads", None)

    def layer(x, inputs):
      weights, prefix_key, prefix_value = inputs
      query, key, value = self.project_qkv(x, weights, cos, sin)
      own = attention.Block(packing.unpack(key, kv_heads), packing.unpack(value, kv_heads), valid)
      shared = attention.Block(prefix_key, prefix_value, prefix.valid)
      mixed = self.attention.replies(packing.unpack(query, heads), shared, own, forgetting)
      mixed = packing.pack(mixed, heads)
      return self.layout.place(self.finish_layer(x, mixed, weights), axes), None

    return self._continue(layer, x, prefix, added, axes)

  def _continue(
    self,
    layer: Callable[[Array, Any], tuple[Array, Any]],
    x: Float[Array, "*batch embed"],
    prefix: attention.Block,
    added: Float[Array, "*batch levels embed"] | None,
    axes: layout_lib.Axes,
  ) -> Float[Array, "*batch embed"]:
    inputs = [self.stacked(), prefix.key, prefix.value]
    layer, inputs = self._adding(layer, inputs, added, axes)
    x, _ = rematerialisation.scan(
      layer, self.layout.place(x, axes), inputs, policy=self.config.remat
    )
    return self.final_norm(x)

  def _adding(
    self,
    layer: Callable[[Array, Any], tuple[Array, Any]],
    inputs: PyTree,
    added: Float[Array, "*batch levels embed"] | None,
    axes: layout_lib.Axes,
    layout: layout_lib.Layout | None = None,
  ) -> tuple[Callable[[Array, Any], tuple[Array, Any]], PyTree]:
    """Adds level i of `added` behind layer i, for a scan over `inputs`; returns layer and inputs.

    axes: logical axes of a layer's output.
    layout: None: that of training.
    """
    if added is None:
      return layer, inputs
    layout = layout or self.layout
    # Levels lead, so that each is contiguous.
    levels = jnp.moveaxis(added.astype(self.dtype), -2, 0)
    levels = layout.place(levels, (None, *axes))
    depth = len(jax.tree.leaves(inputs, is_leaf=layers.has_layers)[0])

    def and_add(x: Array, numbered: Any) -> tuple[Array, Any]:
      number, one = numbered
      x, output = layer(x, one)
      x = jax.lax.cond(number < len(levels), lambda x: x + levels[number], lambda x: x, x)
      return layout.place(x, axes), output

    return and_add, [jnp.arange(depth), inputs]

  def decode(
    self,
    x: Float[Array, "slots embed"],
    positions: Int[Array, "slots"],
    decode_slots: slots_lib.DecodeSlots,
    weights: dict[str, Array | tuple[Array, ...]],
    prefix: attention.Block,
    recent: attention.Recent,
    *pasts: attention.Block,
  ) -> tuple[
    Float[Array, "slots embed"],
    Float[Array, "layers slots kv_heads head_dim length"] | tuple[Array, ...],
    Float[Array, "layers slots kv_heads length head_dim"] | tuple[Array, ...],
  ]:
    """Runs one decoding step.

    Stacked keys and values are only read in the loop over layers. After the loop one position of
    them is written, so that no step copies the whole stack.

    weights: of the layers, by name.
    recent: keys and values of the tokens fed so far.
    pasts: earlier keys and values of the same replies.
    If `recent` has tuples with one array a layer, so do weights, prefix and pasts. Then, and where
    decoding runs in the kernel, the prefix has axes in the order of `KVCache`; otherwise in that of
    `prefill`.

    Returns final-normed hidden states, and the keys and values of `recent` with this token's.
    """
    cos, sin = self.text_angles(positions)
    place = functools.partial(self.layout.decoding.place, axes=("hidden_slots", None))
    by_layer = isinstance(recent.key, tuple)
    places = jnp.arange(recent.key[0].shape[-1])

    def put(past: Sequence[Any], new: Sequence[Array]) -> tuple[Array, Array]:
      update = jax.lax.dynamic_update_slice_in_dim
      keys = update(past[0], new[0], recent.index, past[0].ndim - 1)
      return keys, update(past[1], new[1], recent.index, past[1].ndim - 2)

    def layer(x, inputs):
      weights, prompt, own, others = inputs
      query, key, value = self.project_qkv(x, weights, cos, sin)
      new = key[..., None], value[:, :, None]
      if by_layer:
        new = put(own, new)
        blocks = [attention.Block(new[0], new[1], places <= recent.index)]
      else:
        prompt = kv_cache.transpose_for_decode(*prompt)
        current = attention.Block(new[0], new[1], jnp.ones(1, bool))
        blocks = [attention.Block(own[0], own[1], places < recent.index), current]
      blocks += [
        attention.Block(key, value, past.valid)
        for (key, value), past in zip(others, pasts, strict=True)
      ]
      mixed = self.attention.step(
        query, decode_slots, attention.Block(prompt[0], prompt[1], prefix.valid), *blocks
      )
      return place(self.finish_layer(x, mixed, weights, place)), new

    def layer_in_kernel(x, inputs):
      weights, number = inputs
      query, key, value = self.project_qkv(x, weights, cos, sin)
      new = query, key, value, plans, number
      mixed = self.attention.step_in_kernel(*new, *read, group=decode_slots.group)
      x = place(self.finish_layer(x, mixed, weights, place))
      return x, (key[..., None], value[:, :, None])

    x = place(x)
    if self.attention.decodes_in_kernel:
      written = jnp.full(len(x), recent.index)
      keys, values = cast(Array, recent.key), cast(Array, recent.value)
      read = [
        attention.Block(prefix.key, prefix.value, prefix.valid.sum(axis=1)),
        attention_decode_plan.CachedKeys(keys, values, jnp.zeros_like(written), written),
        *(attention_decode_plan.CachedKeys.from_mask(*past) for past in pasts),
      ]
      per_key = self.config.text_sizes.queries_per_key
      plans = self.attention.plan_in_kernel(decode_slots, *read, per_key=per_key)
      numbered = [weights, jnp.arange(len(prefix.key))]
      x, new = stored_weights.scan(layer_in_kernel, x, numbered)
      return self.final_norm(x), *put((keys, values), new)
    own, *others = ([block.key, block.value] for block in (recent, *pasts))
    inputs = [weights, [prefix.key, prefix.value], own, others]
    x, new = (layers.chain if by_layer else stored_weights.scan)(layer, x, inputs)
    keys, values = new if by_layer else put(own, new)
    return self.final_norm(x), keys, values

  def prefill_observation(
    self,
    x: Float[Array, "rows time embed"],
    positions: Int[Array, "rows time axes"],
    valid: Bool[Array, "rows time"],
    rows: slots_lib.CacheRows,
    prefix: attention.Block,
    past_keys: Float[Array, "layers cache_slots kv_heads head_dim length"] | tuple[Array, ...],
    past_values: Float[Array, "layers cache_slots kv_heads length head_dim"] | tuple[Array, ...],
    added: Float[Array, "rows time levels embed"] | None = None,
  ) -> tuple[
    Float[Array, "rows time embed"],
    Float[Array, "layers rows kv_heads head_dim time"] | tuple[Array, ...],
    Float[Array, "layers rows kv_heads time head_dim"] | tuple[Array, ...],
  ]:
    """Computes final-normed hidden states, keys and values of observations after replies.

    added: as in `prefill`.
    """
    cos, sin = self._angles(positions, x)
    axes = ("hidden_slots", None, None)
    place = functools.partial(self.layout.decoding.place, axes=axes)

    def layer(x, inputs):
      weights, prefix_key, prefix_value, *past = inputs
      query, key, value = self.project_qkv(x, weights, cos, sin)
      shared = attention.Block(prefix_key, prefix_value, prefix.valid)
      own = attention.Block(key, value, valid)
      mixed = self.attention.prefill_observation(query, own, rows, shared, *past)
      kept = kv_cache.transpose_for_decode(key, value)
      return place(self.finish_layer(x, mixed, weights, place)), kept

    weights = self.stacked()
    inputs = [weights, prefix.key, prefix.value, past_keys, past_values]
    adding, inputs = self._adding(layer, inputs, added, axes, self.layout.decoding)
    run = layers.chain if isinstance(past_keys, tuple) else stored_weights.scan
    x, (keys, values) = run(adding, place(x), inputs)
    return self.final_norm(x), keys, values

  def stacked(self) -> dict[str, Any]:
    """The weights of all layers by name, for a scan over layers."""
    return layers.stack(self.layers, platform=self.layout.platform)

  def _angles(self, positions: Int[Array, "..."], x: Float[Array, "*batch embed"]) -> Angles:
    """Rotary angles of positions [*batch, axes], or [*batch] if all tokens are text."""
    return (self.media_angles if positions.ndim == x.ndim else self.text_angles)(positions)

  def project(
    self, x: Float[Array, "..."], weights: dict[str, Array], name: str, *, contract: int = 1
  ) -> Float[Array, "..."]:
    """Projects `x` by the named weight of a layer, with its adapter and bias."""
    return layers.project_by_name(x, weights, name, contract=contract, merge=self.layout.merges)
