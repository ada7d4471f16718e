"""A vision language model in the group layout: prompts in, hidden states of replies out.

    prefix = model.prefill(prompt)                      each prompt once, its vision too
    hidden = model.extend(prefix, tokens, valid)        all replies of all groups at once: what the
    update runs
    cache, read = model.start_cache(prefix, slots, length), model.prepare_decode(prefix)
    hidden, cache = model.decode(read, cache, tokens, index, seats)     one token a slot: what the
    sampler runs
    hidden, new = model.append(prefix, cache, shown, media, rows)   what some replies are shown
    next: texts and frames
    model.logits(hidden)

The first reply token's distribution comes from `prefix.hidden`, that of token t + 1 from the hidden
state of token t.
A family gives it a vision tower and a decoder; it implements `interface.LanguageModel`.
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
from vr_jax.models.common import packing as packing_lib
from vr_jax.models.common import slots as slots_lib


class DecoderLanguageModel(nnx.Module):
  """The whole model. Parameters are float32, activations `config.dtype`, placed by `layout`.

  vision: what the vision tower's inputs [prompts, frames, patches, …] become, features [prompts,
  media, …]; text: the decoder.
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
    """Features [prompts, media, …] of the media tokens of each prompt, padding included."""
    return self.vision(vision)

  def embed(self, prompt: records.Prompt, media: PyTree) -> Float[Array, "prompts prefix embed"]:
    """Token embeddings, with the media features where `media_index` points to one."""
    tokens = self.text.embed(jnp.asarray(prompt.tokens), ("prompts", "prefix"))
    return self._with_media(tokens, jnp.asarray(prompt.media_index), media)

  def _with_media(
    self,
    x: Float[Array, "rows *time embed"],
    index: Int[Array, "rows *time"],
    media: PyTree,
    axis: str = "prompts",
  ) -> Float[Array, "rows *time embed"]:
    """Embeddings with features where the index names one. axis: the logical axis of rows."""
    return jnp.where(index[..., None] >= 0, self._features(index, media, axis).astype(x.dtype), x)

  def merge_features(self, media: PyTree) -> Float[Array, "rows media embed"]:
    """The input embeddings of media tokens. A family with several feature arrays merges them."""
    return media

  def _features(
    self, index: Int[Array, "rows *time"], media: PyTree, axis: str
  ) -> Float[Array, "rows *time embed"]:
    """What stands at each index, any where it is below 0; zeros where there are no media."""
    media = self.merge_features(media)
    if media.shape[1] == 0:
      return jnp.zeros((*index.shape, media.shape[2]), media.dtype)
    # Media of one frame may stand anywhere in the prompt: each device takes its tokens from all of
    # them.
    media = self.layout.place(media, (axis, None, None))
    return jax.vmap(lambda media, index: media[index])(media, jnp.maximum(index, 0))

  def prefill(self, prompt: records.Prompt) -> kv_cache.PrefixKV:
    """Runs the prompts once, after the vision tower if they bring its inputs, not features."""
    valid = jnp.asarray(prompt.kind) != records.Kind.PAD
    x = self.embed(prompt, self._media(prompt))
    hidden, keys, values = self.text.prefill(x, jnp.asarray(prompt.positions), valid)
    return kv_cache.PrefixKV(
      keys=keys,
      values=values,
      valid=valid,
      hidden=_last(hidden, valid),
      next_position=jnp.asarray(prompt.next_position),
    )

  def _media(self, shown: records.Prompt | records.EpisodeInputs) -> PyTree:
    """The features that it brings, or those of its patches."""
    return (
      self.encode_vision(shown.vision)
      if shown.media is None
      else jax.tree.map(jnp.asarray, shown.media)
    )

  def extend(
    self,
    prefix: kv_cache.PrefixKV,
    tokens: Int[Array, "prompts group time"],
    valid: Bool[Array, "prompts group time"],
    episode_inputs: records.EpisodeInputs | None = None,
  ) -> Float[Array, "prompts group time embed"]:
    """Final-normed hidden states of replies; of several turns where there is a suffix.

    Token t sees its prompt and the valid tokens up to t of its own reply. Gradients flow into the
    prefix, and into the tower
    where a suffix brings patches and not its features.
    """
    embedded = self.text.embed(tokens, packing_lib.REPLIES)
    if episode_inputs is None:
      return self.text.extend(embedded, _positions(prefix, tokens), valid, _block(prefix))
    embedded = self._with_media(
      embedded, jnp.asarray(episode_inputs.media_index), self._media(episode_inputs)
    )
    positions = jnp.asarray(episode_inputs.positions)
    return self.text.extend(embedded, positions, valid, _block(prefix), _forgetting(episode_inputs))

  def extend_packed(
    self,
    prefix: kv_cache.PrefixKV,
    tokens: Int[Array, "prompts group time"],
    valid: Bool[Array, "prompts group time"],
    packing: packing_lib.Packing,
    episode_inputs: records.EpisodeInputs | None = None,
  ) -> Float[Array, "packed embed"]:
    """As `extend`, of the valid tokens alone."""
    embedded = self.text.embed(packing.pack(tokens), ("slots",))
    if episode_inputs is None:
      positions = packing.pack(_positions(prefix, tokens))
      return self.text.extend_packed(embedded, positions, valid, _block(prefix), packing)
    index = jnp.asarray(episode_inputs.media_index)
    features = packing.pack(self._features(index, self._media(episode_inputs), "prompts"), (None,))
    is_media = packing.pack(index >= 0)[:, None]
    embedded = jnp.where(is_media, features.astype(embedded.dtype), embedded)
    positions = packing.pack(jnp.asarray(episode_inputs.positions), (None,))
    read = _block(prefix), packing, _forgetting(episode_inputs)
    return self.text.extend_packed(embedded, positions, valid, *read)

  def append(
    self,
    prefix: kv_cache.PrefixKV,
    cache: kv_cache.KVCache,
    shown: records.Prompt,
    media: PyTree,
    rows: slots_lib.CacheRows,
  ) -> tuple[Float[Array, "rows embed"], kv_cache.KVCache]:
    """Runs what some replies are shown next, each behind what it has written.

    Returns the hidden state of the last token of each row, and the new keys and values.

    shown: as prompts, whose positions count from 0; media: what the tower made of its frames. The
    cache is only read:
    `KVCache.write_rows` puts the new keys and values into it.
    """
    valid = jnp.asarray(shown.kind) != records.Kind.PAD
    x = self.text.embed(jnp.asarray(shown.tokens), ("slots", None), whole=True)
    x = self._with_media(x, jnp.asarray(shown.media_index), media, "slots")
    positions = jnp.asarray(shown.positions) + rows.position[:, None, None]
    past = cache.keys, cache.values
    hidden, keys, values = self.text.append(x, positions, valid, rows, _block(prefix), *past)
    return _last(hidden, valid), kv_cache.KVCache(keys=keys, values=values)

  def start_media(self, slots: int, frames: int, patches: int) -> PyTree:
    """Zero buffer [slots, media, …] for the features of `frames` frames of `patches` patches."""
    shapes = self.config.vision_shapes
    empty = shapes.features(jnp.zeros, slots, frames * shapes.media_tokens(patches))
    return jax.tree.map(lambda x: self.layout.place(x, ("slots", *[None] * (x.ndim - 1))), empty)

  def decoding_params(self) -> PyTree:
    """The parameters as each step of decoding reads them: gathered, in the dtype of activations.

    Split rows would be sent to all devices for every token; here they are sent once. Adapters keep
    their dtype: they are
    scaled before they are cast. The vision tower's stay as they are.
    """

    def whole(path: tuple, variable: nnx.Variable) -> nnx.Variable:
      name = jax.tree_util.keystr(path, simple=True, separator=".")
      if not name.startswith("text."):
        return variable
      x = variable.get_value()
      x = x if name.endswith((layers.LORA_A, layers.LORA_B)) else x.astype(self.text.dtype)
      axes = tuple(axis if axis != "embed" else None for axis in variable.get_metadata()["axes"])
      return variable.replace(self.layout.place(x, axes))

    params = nnx.split(self)[1]
    return jax.tree.map_with_path(whole, params, is_leaf=lambda x: isinstance(x, nnx.Variable))

  def start_cache(self, prefix: kv_cache.PrefixKV, slots: int, length: int) -> kv_cache.KVCache:
    """An empty cache for replies of up to `length` tokens."""
    depth, _, _, kv_heads, head_dim = prefix.keys.shape
    keys = jnp.zeros((depth, slots, kv_heads, head_dim, length), prefix.keys.dtype)
    empty = kv_cache.KVCache(keys=keys, values=keys.swapaxes(-1, -2))
    if depth <= layers.UNROLLED:
      empty = kv_cache.KVCache(keys=tuple(empty.keys), values=tuple(empty.values))
    return empty.placed(self.layout.place)

  def prepare_decode(self, prefix: kv_cache.PrefixKV) -> kv_cache.DecodeConstants:
    """Made once for a loop of steps."""
    weights: dict[str, Any] = dict(layers.stack(self.text.layers, self.text.dtype))
    block = _block(prefix)
    if len(prefix.keys) <= layers.UNROLLED:
      weights = {name: tuple(stack) for name, stack in weights.items()}
      turned = (
        attention.transpose_for_decode(*pair)
        for pair in zip(prefix.keys, prefix.values, strict=True)
      )
      keys, values = zip(*turned, strict=True)
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
    """Feeds token number `index` of every slot: (final-normed hidden states, updated cache).

    Positions before `index` must have been written by the calls before.
    """
    start = self.gather_for_slots(constants.next_position, decode_slots)
    return self._step(constants, cache, tokens, index, decode_slots, start)

  def decode_on(
    self,
    constants: kv_cache.DecodeConstants,
    past: kv_cache.KVCache,
    recent: kv_cache.KVCache,
    tokens: Int[Array, "slots"],
    index: Int[Array, ""],
    rows: slots_lib.CacheRows,
    decode_slots: slots_lib.DecodeSlots,
  ) -> tuple[Float[Array, "slots embed"], kv_cache.KVCache]:
    """Like `decode`, for replies that go on: each behind what its slot of `past` holds.

    recent: of the tokens fed since, as many for every slot; `KVCache.write_rows` puts them behind the
    past.
    """
    places = jnp.arange(past.length)
    seen = places < rows.written[:, None]
    if rows.forgotten is not None:
      seen &= places >= rows.forgotten[:, None]
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
    # Split as a parameter is, the table would be sent for every token where it also makes the
    # logits.
    x = self.text.embed(tokens, ("slots",), whole=True)
    recent = attention.Recent(cache.keys, cache.values, index)
    read = (constants.weights, constants.prefix, recent, *past)
    positions = cast(Array, start + index)
    hidden, keys, values = self.text.decode(x, positions, decode_slots, *read)
    return hidden, kv_cache.KVCache(keys=keys, values=values)

  def gather_for_slots(
    self, x: Shaped[Array, "prompts *rest"], decode_slots: slots_lib.DecodeSlots
  ) -> Shaped[Array, "slots *rest"]:
    """Of each slot, what its prompt has."""
    rest = (None,) * (x.ndim - 1)
    return self.layout.per_shard(
      lambda prompt, x: jnp.take(x, prompt, axis=0, mode="clip"),
      ((decode_slots.prompt, ("slots",)), (x, ("prompts", *rest))),
    )

  @property
  def logit_chunk(self) -> int:
    """Rows of the vocabulary whose logits an update has in memory at once."""
    return self.config.logit_chunk

  def output_rows(self) -> Float[Array, "vocab embed"]:
    """The matrix whose product with a hidden state scores the next token."""
    return self.text.output_rows()

  def logits(self, hidden: Float[Array, "... embed"]) -> Float[Array, "... vocab"]:
    """Scores of the next token, float32."""
    return self.text.logits(hidden)


def _positions(
  prefix: kv_cache.PrefixKV, tokens: Int[Array, "prompts group time"]
) -> Int[Array, "prompts group time"]:
  positions = prefix.next_position[:, None, None] + jnp.arange(tokens.shape[2])
  return jnp.broadcast_to(positions, tokens.shape)


def _last(
  hidden: Float[Array, "rows time embed"], valid: Bool[Array, "rows time"]
) -> Float[Array, "rows embed"]:
  """At the last valid token of each row, whose first ones are valid."""
  last = jnp.maximum(valid.sum(axis=1) - 1, 0)
  return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]


def _block(prefix: kv_cache.PrefixKV) -> attention.Block:
  return attention.Block(prefix.keys, prefix.values, prefix.valid)


def _forgetting(episode_inputs: records.EpisodeInputs) -> attention.Forgetting | None:
  if episode_inputs.forgotten is None:
    return None
  return attention.Forgetting(jnp.asarray(episode_inputs.forgotten), episode_inputs.kept)
