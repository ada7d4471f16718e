"""A vision language model in the group layout: prompts in, hidden states of replies out.

    prefix = model.prefill(prompt)                      each prompt once, its vision too
    # The update runs all replies of all groups at once:
    hidden = model.forward_replies(prefix, tokens, valid)
    # The sampler runs one token a slot:
    cache, constants = model.init_cache(prefix, slots, length), model.prepare_decode(prefix)
    hidden, cache = model.decode(constants, cache, tokens, index, decode_slots)
    # Between turns it reads observations, text and frames, and writes them into the cache:
    hidden, new = model.prefill_observation(prefix, cache, shown, media, rows)
    cache = cache.write_rows(layout, new, rows.cache_slot, rows.written, counts)
    # The replies of later turns continue in a second cache:
    hidden, recent = model.decode_later_turn(constants, cache, recent, tokens, index, rows, …)
    model.logits(hidden)

The first reply token's distribution comes from `prefix.hidden`, that of token t + 1 from the hidden
state of token t. A family passes in a vision tower and a decoder. The class implements
`interface.LanguageModel`.
"""

from collections.abc import Callable
from typing import Any, cast

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped
import numpy as np

from vr_jax import records
from vr_jax.models import interface
from vr_jax.models import layout as layout_lib
from vr_jax.models.common import attention, decoder, kv_cache, layers
from vr_jax.models.common import int8_weights as int8_lib
from vr_jax.models.common import packing as packing_lib
from vr_jax.models.common import slots as slots_lib


class DecoderLanguageModel(nnx.Module):
  """The whole model: parameters are float32, activations `config.dtype`, sharded by `layout`.

  vision: the vision tower, from inputs [prompts, frames, patches, …] to features
    [prompts, media, …].
  text: the decoder.
  """

  def __init__(
    self,
    config: interface.ModelConfig,
    layout: layout_lib.Layout,
    vision: Callable[[PyTree], PyTree],
    text: decoder.Decoder,
  ):
    self.config, self.layout = config, layout
    self.vision, self.text = vision, text

  def encode_vision(self, vision: PyTree) -> PyTree:
    """Runs the vision tower; returns features [prompts, media, …], also for padding."""
    return self.vision(vision)

  def embed(self, prompt: records.Prompt, media: PyTree) -> Float[Array, "prompts prefix embed"]:
    """Embeds tokens, and puts features where `media_index` points to one."""
    tokens = self.text.embed(jnp.asarray(prompt.tokens), ("prompts", "prefix"))
    return self._with_media(tokens, jnp.asarray(prompt.media_index), media)

  def _with_media(
    self,
    x: Float[Array, "rows *time embed"],
    index: Int[Array, "rows *time"],
    media: PyTree,
    *,
    decoding: bool = False,
  ) -> Float[Array, "rows *time embed"]:
    """Replaces embeddings by features where the index is not -1.

    decoding: rows are slots in the layout of decoding, not prompts.
    """
    found = self._at(index, self.merge_features(media), decoding=decoding)
    return jnp.where(index[..., None] >= 0, found.astype(x.dtype), x)

  def merge_features(self, media: PyTree) -> Float[Array, "rows media embed"]:
    """Merges features into input embeddings of media tokens; families with several override it."""
    return media

  def layer_features(self, media: PyTree) -> Float[Array, "rows media levels embed"] | None:
    """Features that are added behind the first layers of the decoder, one level a layer.

    None: the family has no such features.
    """
    del media
    return None

  def _at_layers(
    self, index: Int[Array, "rows *time"], media: PyTree, *, decoding: bool = False
  ) -> Float[Array, "rows *time levels embed"] | None:
    """What is added to each token behind the first layers: zeros where the index is -1."""
    levels = self.layer_features(media)
    if levels is None or levels.shape[1] == 0:
      return None
    found = self._at(index, levels, decoding=decoding)
    return jnp.where((index >= 0)[..., None, None], found, 0)

  def _at(
    self,
    index: Int[Array, "rows *time"],
    media: Float[Array, "rows media ..."],
    *,
    decoding: bool = False,
  ) -> Float[Array, "rows ..."]:
    """Features at each index: any feature where it is below 0, zeros where there are no media."""
    if media.shape[1] == 0:
      return jnp.zeros((*index.shape, *media.shape[2:]), media.dtype)
    # A token may need features of any frame, so each device takes its tokens from all of them.
    layout, axis = (self.layout.decoding, "hidden_slots") if decoding else (self.layout, "prompts")
    media = layout.place(media, (axis, *[None] * (media.ndim - 1)))
    return jax.vmap(lambda media, index: media[index])(media, jnp.maximum(index, 0))

  def prefill(self, prompt: records.Prompt) -> kv_cache.PrefixKV:
    """Runs the prompts once; runs the vision tower first unless they bring features."""
    valid = jnp.asarray(prompt.kind) != records.Kind.PAD
    hidden, keys, values = self.run_prompts(prompt, self._media(prompt))
    return kv_cache.PrefixKV(
      keys=keys,
      values=values,
      valid=valid,
      hidden=_last(hidden, valid),
      next_position=jnp.asarray(prompt.next_position),
    )

  def run_prompts(
    self, prompt: records.Prompt, media: PyTree
  ) -> tuple[
    Float[Array, "prompts prefix embed"],
    Float[Array, "layers prompts prefix kv_heads head_dim"],
    Float[Array, "layers prompts prefix kv_heads head_dim"],
  ]:
    """Computes final-normed hidden states of prompts with these features, keys and values."""
    valid = jnp.asarray(prompt.kind) != records.Kind.PAD
    added = self._at_layers(jnp.asarray(prompt.media_index), media)
    x, positions = self.embed(prompt, media), jnp.asarray(prompt.positions)
    return self.text.prefill(x, positions, valid, added)

  def _media(self, shown: records.Prompt | records.EpisodeInputs) -> PyTree:
    """Returns the features that are given, or runs the vision tower."""
    return (
      self.encode_vision(shown.vision)
      if shown.media is None
      else jax.tree.map(jnp.asarray, shown.media)
    )

  def forward_replies(
    self,
    prefix: kv_cache.PrefixKV,
    tokens: Int[Array, "prompts group time"],
    valid: Bool[Array, "prompts group time"],
    episode_inputs: records.EpisodeInputs | None = None,
  ) -> Float[Array, "prompts group time embed"]:
    """Computes final-normed hidden states of replies.

    Token t attends to its prompt and to the valid tokens of its own reply up to t; with a
    forgetting window, not to tokens of forgotten turns. Gradients flow into the prefix, and into
    the vision tower where `episode_inputs` has patches, not features.

    episode_inputs: positions and observations of episodes with several turns, and what each token
      has forgotten.
    """
    embedded = self.text.embed(tokens, packing_lib.REPLIES)
    if episode_inputs is None:
      return self.text.forward_replies(embedded, _positions(prefix, tokens), valid, _block(prefix))
    index, media = jnp.asarray(episode_inputs.media_index), self._media(episode_inputs)
    embedded = self._with_media(embedded, index, media)
    positions = jnp.asarray(episode_inputs.positions)
    more = _forgetting(episode_inputs), self._at_layers(index, media)
    return self.text.forward_replies(embedded, positions, valid, _block(prefix), *more)

  def forward_packed_replies(
    self,
    prefix: kv_cache.PrefixKV,
    tokens: Int[Array, "prompts group time"],
    valid: Bool[Array, "prompts group time"],
    packing: packing_lib.Packing,
    episode_inputs: records.EpisodeInputs | None = None,
  ) -> Float[Array, "packed embed"]:
    """Like `forward_replies`, for the valid tokens only."""
    embedded = self.text.embed(packing.pack(tokens), ("slots",))
    if episode_inputs is None:
      positions = packing.pack(_positions(prefix, tokens))
      return self.text.forward_packed_replies(embedded, positions, valid, _block(prefix), packing)
    index, media = jnp.asarray(episode_inputs.media_index), self._media(episode_inputs)
    features = packing.pack(self._at(index, self.merge_features(media)), (None,))
    added = self._at_layers(index, media)
    if added is not None:
      added = packing.pack(added, (None, None))
    is_media = packing.pack(index >= 0)[:, None]
    embedded = jnp.where(is_media, features.astype(embedded.dtype), embedded)
    positions = packing.pack(jnp.asarray(episode_inputs.positions), (None,))
    read = _block(prefix), packing, _forgetting(episode_inputs), added
    return self.text.forward_packed_replies(embedded, positions, valid, *read)

  def prefill_observation(
    self,
    prefix: kv_cache.PrefixKV,
    cache: kv_cache.KVCache,
    shown: records.Prompt,
    media: PyTree,
    rows: slots_lib.CacheRows,
  ) -> tuple[Float[Array, "rows embed"], kv_cache.KVCache]:
    """Runs an observation after what each reply has written so far.

    The cache is only read; write the new keys and values into it with `KVCache.write_rows`.

    shown: the observations, encoded as prompts whose positions count from 0.
    media: features [rows, media, …] of their frames.

    Returns the hidden state of the last token of each row, and the new keys and values.
    """
    valid = jnp.asarray(shown.kind) != records.Kind.PAD
    x = self.text.embed(jnp.asarray(shown.tokens), ("hidden_slots", None), decoding=True)
    index = jnp.asarray(shown.media_index)
    x = self._with_media(x, index, media, decoding=True)
    positions = jnp.asarray(shown.positions) + rows.position[:, None, None]
    past = cache.keys, cache.values
    hidden, keys, values = self.text.prefill_observation(
      *(x, positions, valid, rows, _block(prefix), *past),
      self._at_layers(index, media, decoding=True),
    )
    return _last(hidden, valid), kv_cache.KVCache(keys=keys, values=values)

  def init_media_features(self, slots: int, frames: int, patches: int) -> PyTree:
    """Zero buffer [slots, media, …] for the features of `frames` frames of `patches` patches."""
    shapes = self.config.vision_shapes
    empty = shapes.features(jnp.zeros, slots, frames * shapes.media_tokens(patches))
    place = self.layout.decoding.place
    return jax.tree.map(lambda x: place(x, ("slots", *[None] * (x.ndim - 1))), empty)

  def decoding_params(self, *, int8_weights: bool = False) -> PyTree:
    """The parameters in the layout of decoding and the dtypes of `layers.cast`.

    Adapters keep their dtype, since they are scaled before they are cast. None in place of what
    stays as it is, as the vision tower does.

    int8_weights: the matrices of the decoder's layers as `Int8Matrices`, and adapters as they are.
    """

    def as_integers(axes: tuple[str | None, ...], name: str, x: Array) -> PyTree:
      matrices = int8_lib.quantize(x, inputs=layers.input_axes(name))
      # The integers move between devices, not the floats.
      matrices = jax.tree.map(lambda x: self.layout.place(x, axes), matrices)
      return jax.tree.map(lambda x: self.layout.decoding.move(x, axes), matrices)

    def changed(path: tuple, variable: nnx.Variable) -> nnx.Variable:
      name, x = jax.tree_util.keystr(path, simple=True, separator="."), variable.get_value()
      if not name.startswith("text."):
        return variable.replace(None)
      is_kept = name.endswith((layers.LORA_A, layers.LORA_B)) or layers.is_stored(name, x)
      axes, layout = variable.get_metadata()["axes"], self.layout.decoding
      if int8_weights and name.startswith("text.layers.") and layers.is_matrix(name, x):
        return variable.replace(as_integers(axes, name, x))
      cast = x if is_kept else x.astype(self.text.dtype)
      moves = layout.shards(axes, x.shape) != self.layout.shards(axes, x.shape)
      stays = cast.dtype == x.dtype and not moves
      return variable.replace(None if stays else layout.move(cast, axes))

    params = nnx.split(self)[1]
    return jax.tree.map_with_path(changed, params, is_leaf=lambda x: isinstance(x, nnx.Variable))

  def init_cache(self, prefix: kv_cache.PrefixKV, slots: int, length: int) -> kv_cache.KVCache:
    """An empty cache for replies of up to `length` tokens."""
    depth, _, _, kv_heads, head_dim = prefix.keys.shape
    keys = jnp.zeros((depth, slots, kv_heads, head_dim, length), prefix.keys.dtype)
    empty = kv_cache.KVCache(keys=keys, values=keys.swapaxes(-1, -2))
    if self._is_unrolled(depth):
      empty = kv_cache.KVCache(keys=tuple(empty.keys), values=tuple(empty.values))
    return empty.placed(self.layout.decoding.place)

  def _is_unrolled(self, depth: int) -> bool:
    """Whether decoding has each of its layers alone; the kernel takes stacks of them."""
    return depth <= layers.UNROLLED and not self.text.attention.decodes_in_kernel

  def prepare_decode(self, prefix: kv_cache.PrefixKV) -> kv_cache.DecodeConstants:
    """Prepares what every decoding step reads, once for a loop of steps."""
    weights: dict[str, Any] = layers.cast(self.text.stacked(), self.text.dtype)
    block = _block(prefix)
    if not self._is_unrolled(len(prefix.keys)):
      weights = layers.merge_heads(weights)
    if self.text.attention.decodes_in_kernel:
      by_layer = jax.vmap(kv_cache.transpose_for_decode)
      block = attention.Block(*by_layer(prefix.keys, prefix.values), prefix.valid)
    elif self._is_unrolled(len(prefix.keys)):
      weights = {
        name: tuple(stack[layer] for layer in range(len(stack))) for name, stack in weights.items()
      }
      transposed = (
        kv_cache.transpose_for_decode(*pair)
        for pair in zip(prefix.keys, prefix.values, strict=True)
      )
      keys, values = zip(*transposed, strict=True)
      block = attention.Block(cast(Any, keys), cast(Any, values), prefix.valid)
    return kv_cache.DecodeConstants(
      weights=weights, prefix=block, next_position=prefix.next_position
    )

  def decode(
    self,
    constants: kv_cache.DecodeConstants,
    cache: kv_cache.KVCache,
    tokens: Int[Array, "slots"],
    index: Int[Array, ""],
    decode_slots: slots_lib.DecodeSlots,
  ) -> tuple[Float[Array, "slots embed"], kv_cache.KVCache]:
    """Feeds token `index` of every slot; returns final-normed hidden states and the cache.

    Earlier calls must have written the positions before `index`.
    """
    start = self.gather_for_slots(constants.next_position, decode_slots)
    return self._step(constants, cache, tokens, index, decode_slots, start)

  def decode_later_turn(
    self,
    constants: kv_cache.DecodeConstants,
    past: kv_cache.KVCache,
    recent: kv_cache.KVCache,
    tokens: Int[Array, "slots"],
    index: Int[Array, ""],
    rows: slots_lib.CacheRows,
    decode_slots: slots_lib.DecodeSlots,
  ) -> tuple[Float[Array, "slots embed"], kv_cache.KVCache]:
    """Like `decode`, for replies that continue after what their slot of `past` holds.

    recent: the cache of the tokens fed since then, the same number for every slot;
      `KVCache.write_rows` appends it to `past`.
    """
    places = jnp.arange(past.length)
    seen = places < rows.written[:, None]
    if rows.visible_from is not None:
      seen &= places >= rows.visible_from[:, None]
    block = attention.Block(cast(Any, past.keys), cast(Any, past.values), seen)
    return self._step(constants, recent, tokens, index, decode_slots, rows.position, block)

  def _step(
    self,
    constants: kv_cache.DecodeConstants,
    cache: kv_cache.KVCache,
    tokens: Int[Array, "slots"],
    index: Int[Array, ""],
    decode_slots: slots_lib.DecodeSlots,
    start: Int[Array | np.ndarray, "slots"],
    *past: attention.Block,
  ) -> tuple[Float[Array, "slots embed"], kv_cache.KVCache]:
    x = self.text.embed(tokens, ("hidden_slots",), decoding=True)
    recent = attention.Recent(cache.keys, cache.values, index)
    read = (constants.weights, constants.prefix, recent, *past)
    positions = cast(Array, start + index)
    hidden, keys, values = self.text.decode(x, positions, decode_slots, *read)
    return hidden, kv_cache.KVCache(keys=keys, values=values)

  def gather_for_slots(
    self, x: Shaped[Array, "prompts *rest"], decode_slots: slots_lib.DecodeSlots
  ) -> Shaped[Array, "slots *rest"]:
    """Copies each prompt's entry of `x` to the slots of its replies."""
    rest = (None,) * (x.ndim - 1)
    return self.layout.decoding.per_shard(
      lambda prompt, x: jnp.take(x, prompt, axis=0, mode="clip"),
      ((decode_slots.prompt, ("slots",)), (x, ("prompts", *rest))),
    )

  @property
  def logit_chunk(self) -> int:
    """Rows of the vocabulary whose logits an update holds in memory at once."""
    return self.config.logit_chunk

  def lm_head_weight(self) -> Float[Array, "vocab embed"]:
    """The output matrix, whose product with a hidden state gives logits."""
    return self.text.lm_head_weight()

  def lm_head_bias(self) -> Float[Array, "vocab"] | None:
    """What is added to that product, if the family has it."""
    return self.text.lm_head_bias()

  def logits(self, hidden: Float[Array, "... embed"]) -> Float[Array, "... vocab"]:
    """Logits of the next token, float32."""
    return self.text.logits(hidden)


def _positions(
  prefix: kv_cache.PrefixKV, tokens: Int[Array, "prompts group time"]
) -> Int[Array, "prompts group time"]:
  positions = prefix.next_position[:, None, None] + jnp.arange(tokens.shape[2])
  return jnp.broadcast_to(positions, tokens.shape)


def _last(
  hidden: Float[Array, "rows time embed"], valid: Bool[Array, "rows time"]
) -> Float[Array, "rows embed"]:
  """Hidden state at the last valid token of each row, which is padded on the right."""
  last = jnp.maximum(valid.sum(axis=1, keepdims=True) - 1, 0)
  # No gather: XLA's partitioner ends the process on one along a split axis in `data_parts`.
  is_last = jnp.arange(hidden.shape[1]) == last
  return jnp.where(is_last[..., None], hidden, 0).sum(axis=1)


def _block(prefix: kv_cache.PrefixKV) -> attention.Block:
  return attention.Block(prefix.keys, prefix.values, prefix.valid)


def _forgetting(episode_inputs: records.EpisodeInputs) -> attention.Forgetting | None:
  if episode_inputs.visible_from is None:
    return None
  return attention.Forgetting(jnp.asarray(episode_inputs.visible_from), episode_inputs.kept)
