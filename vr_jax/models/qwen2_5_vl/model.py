"""Qwen2.5-VL as one module: prompts in, hidden states of replies out, in the group layout.

    prefix = model.prefill(prompt)                      each prompt once, its vision too
    hidden = model.extend(prefix, tokens, valid)        all replies of all groups at once: what the update runs
    cache  = model.start_cache(prefix, slots, length)
    hidden, cache = model.decode(prefix, cache, tokens, index, seats)   one token a slot: what the sampler runs
    model.logits(hidden)

The first reply token's distribution comes from `prefix.hidden`, that of token t + 1 from the hidden state of token t.
"""

import dataclasses
import typing

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from vr_jax import records
from vr_jax.models import layout as layout_lib
from vr_jax.models import packing as packing_lib
from vr_jax.models import seats as seats_lib
from vr_jax.models.qwen2_5_vl import attention, layers, text, vision
from vr_jax.models.qwen2_5_vl import config as config_lib


# Tree transformations rebuild these two with leaves that are no arrays, so their fields are not checked at run time.
@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
@typing.no_type_check
class Prefix:
  """What prompts leave behind for their replies."""

  keys: Float[Array, "layers prompts prefix kv_heads head_dim"]
  values: Float[Array, "layers prompts prefix kv_heads head_dim"]
  valid: Bool[Array, "prompts prefix"]
  hidden: Float[Array, "prompts embed"]  # final-normed, at the last token of each prompt
  next_position: Int[Array, "prompts"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
@typing.no_type_check
class Cache:
  """Keys and values of replies being sampled; positions not yet written are 0."""

  AXES: typing.ClassVar[layout_lib.Axes] = (None, "slots", None, "kv_heads", None)

  keys: Float[Array, "layers slots length kv_heads head_dim"]
  values: Float[Array, "layers slots length kv_heads head_dim"]

  def kept(self, layout: layout_lib.Layout, slots: Int[Array, "kept"]) -> "Cache":
    """That of some slots, named by their places on the device that holds them."""

    def of_device(x: Array, slots: Array) -> Array:
      return jnp.take(x, slots, axis=1)

    inputs = (slots, ("slots",))
    return Cache(
      keys=layout.per_shard(of_device, ((self.keys, self.AXES), inputs)),
      values=layout.per_shard(of_device, ((self.values, self.AXES), inputs)),
    )


class Qwen2_5_VL(nnx.Module):  # noqa: N801
  """The whole model. Parameters are float32; activations are of `config.dtype` and lie as `layout` says."""

  def __init__(
    self,
    config: config_lib.Config,
    *,
    rngs: nnx.Rngs,
    layout: layout_lib.Layout = layout_lib.OneDevice(),  # noqa: B008 it is frozen
  ):
    self.config, self.layout = config, layout
    self.vision = vision.VisionTower(config, layout, rngs=rngs)
    self.text = text.TextModel(config, layout, rngs=rngs)

  def encode_vision(self, vision: records.Vision) -> Float[Array, "prompts media embed"]:
    """Features of the media tokens of each prompt, padding included."""
    return self.vision(vision)

  def embed(
    self, prompt: records.Prompt, media: Float[Array, "prompts media embed"]
  ) -> Float[Array, "prompts prefix embed"]:
    """Token embeddings, with the media features where `media_index` points to one."""
    tokens = self.text.embed(jnp.asarray(prompt.tokens), ("prompts", "prefix"))
    if media.shape[1] == 0:
      return tokens
    # Media of one frame may stand anywhere in the prompt: each device takes its tokens from all of them.
    media = self.layout.place(media, ("prompts", None, None))
    index = jnp.asarray(prompt.media_index)[..., None]
    features = jnp.take_along_axis(media, jnp.maximum(index, 0), axis=1)
    return jnp.where(index >= 0, features.astype(tokens.dtype), tokens)

  def prefill(self, prompt: records.Prompt) -> Prefix:
    """Runs the prompts once, and before them the vision tower where they bring patches and not its features."""
    valid = jnp.asarray(prompt.kind) != records.Kind.PAD
    made = prompt.media is not None
    media = jnp.asarray(prompt.media) if made else self.encode_vision(prompt.vision)
    x = self.embed(prompt, media)
    hidden, keys, values = self.text.prefill(x, jnp.asarray(prompt.positions), valid)
    last = jnp.maximum(valid.sum(axis=1) - 1, 0)
    return Prefix(
      keys=keys,
      values=values,
      valid=valid,
      hidden=jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0],
      next_position=jnp.asarray(prompt.next_position),
    )

  def extend(
    self,
    prefix: Prefix,
    tokens: Int[Array, "prompts group time"],
    valid: Bool[Array, "prompts group time"],
  ) -> Float[Array, "prompts group time embed"]:
    """Final-normed hidden states of replies.

    Token t sees its prompt and the valid tokens up to t of its own reply. Gradients flow into the prefix.
    """
    positions = _positions(prefix, tokens)
    embedded = self.text.embed(tokens, packing_lib.REPLIES)
    return self.text.extend(embedded, positions, valid, _block(prefix))

  def extend_packed(
    self,
    prefix: Prefix,
    tokens: Int[Array, "prompts group time"],
    valid: Bool[Array, "prompts group time"],
    packing: packing_lib.Packing,
  ) -> Float[Array, "packed embed"]:
    """As `extend`, of the valid tokens alone."""
    positions = packing.pack(_positions(prefix, tokens))
    embedded = self.text.embed(packing.pack(tokens), ("slots",))
    return self.text.extend_packed(embedded, positions, valid, _block(prefix), packing)

  def decoding_params(self) -> PyTree:
    """The parameters as decoding reads them, every step anew: of the language model whole rows, in the dtype it computes in.

    Split rows would be sent to all devices for every token; here they are sent once. Adapters keep their dtype: they are
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

  def start_cache(self, prefix: Prefix, slots: int, length: int) -> Cache:
    """An empty cache for replies of up to `length` tokens."""
    depth, _, _, kv_heads, head_dim = prefix.keys.shape
    empty = jnp.zeros((depth, slots, length, kv_heads, head_dim), prefix.keys.dtype)
    empty = self.layout.place(empty, Cache.AXES)
    return Cache(keys=empty, values=empty)

  def decode(
    self,
    prefix: Prefix,
    cache: Cache,
    tokens: Int[Array, "slots"],
    index: Int[Array, ""],
    seats: seats_lib.Seats,
  ) -> tuple[Float[Array, "slots embed"], Cache]:
    """Feeds token number `index` of the reply in every slot; gives its final-normed hidden state and the cache with it.

    Positions before `index` must have been written by the calls before.
    """
    positions = self.of_slots(prefix.next_position, seats) + index
    written = jnp.arange(cache.keys.shape[2]) < index
    past = attention.Block(cache.keys, cache.values, written)
    # Split as a parameter is, the table would be sent for every token where it also makes the logits.
    x = self.text.embed(tokens, ("slots",), whole=True)
    hidden, keys, values = self.text.decode(x, positions, seats, _block(prefix), past)
    return hidden, Cache(
      keys=jax.lax.dynamic_update_index_in_dim(cache.keys, keys, index, axis=2),
      values=jax.lax.dynamic_update_index_in_dim(cache.values, values, index, axis=2),
    )

  def of_slots(
    self, x: Shaped[Array, "prompts *rest"], seats: seats_lib.Seats
  ) -> Shaped[Array, "slots *rest"]:
    """Of each slot, what its prompt has."""
    rest = (None,) * (x.ndim - 1)
    return self.layout.per_shard(
      lambda prompt, x: jnp.take(x, prompt, axis=0, mode="clip"),
      ((seats.prompt, ("slots",)), (x, ("prompts", *rest))),
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
  prefix: Prefix, tokens: Int[Array, "prompts group time"]
) -> Int[Array, "prompts group time"]:
  positions = prefix.next_position[:, None, None] + jnp.arange(tokens.shape[2])
  return jnp.broadcast_to(positions, tokens.shape)


def _block(prefix: Prefix) -> attention.Block:
  return attention.Block(prefix.keys, prefix.values, prefix.valid)
