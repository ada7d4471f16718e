"""What replies have written behind their prompts, on the devices: decoded a chunk at a time, and appended to when they are shown more.

Each reply has a home, where its own keys and values stay from its first turn to its last; nothing there is computed again.
Decoding works on slots: the homes of the replies that go on, each at a place of its own. A chunk of steps reads what was
written before and keeps what is new beside it, at the same place for all slots; its end writes that home. So a step scatters
nothing, and replies of different turns are one batch.
"""

import dataclasses
import functools
import typing

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree
import numpy as np

from vr_jax import records
from vr_jax.models import interface
from vr_jax.models import layout as layout_lib
from vr_jax.models.common import slots as slots_lib
from vr_jax.rollout import forward, sampler
from vr_jax.rollout import slot_layout as slot_layout_lib


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
@typing.no_type_check  # tree transformations rebuild it with leaves that are no arrays
class EpisodeDecodeState:
  """All replies at home. hidden: at the last token of each that is to be decoded; media: features
  [homes, media, …] of what it was shown.
  """

  hidden: Float[Array, "homes embed"]
  cache: interface.Cache
  media: PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
@typing.no_type_check
class ChunkSlots:
  """The replies of a chunk. prompt, group_index: their numbers in the batch; step: that of their next token, over all turns.

  left: tokens that a reply may still have; 0 where the slot has nothing to decode.
  """

  rows: slots_lib.CacheRows
  prompt: Int[Array | np.ndarray, "slots"]
  group_index: Int[Array | np.ndarray, "slots"]
  step: Int[Array | np.ndarray, "slots"]
  left: Int[Array | np.ndarray, "slots"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
@typing.no_type_check
class DecodedChunk:
  """What the slots said: as many tokens as `counts`, and whether the reply ended with them."""

  tokens: Int[Array, "slots chunk"]
  log_probs: Float[Array, "slots chunk"]
  counts: Int[Array, "slots"]
  ended: Bool[Array, "slots"]


@functools.partial(jax.jit, static_argnames=("graphdef", "group", "length", "frames", "patches"))
def start(
  graphdef: nnx.GraphDef,
  params: PyTree,
  prompt: records.Prompt,
  *,
  group: int,
  length: int,
  frames: int,
  patches: int,
) -> tuple[interface.Prefix, EpisodeDecodeState]:
  """Prompts that have been read, and replies that have written nothing.

  They have room for `length` tokens and `frames` frames of so many patches.
  """
  model = nnx.merge(graphdef, params)
  prefix = model.prefill(prompt)
  reply = slot_layout_lib.SlotLayout.for_groups(model.layout, prompt.tokens.shape[0], group).reply()
  decode_slots = slots_lib.DecodeSlots(
    prompt=model.layout.place(jnp.asarray(reply // group), ("slots",)),
    group_index=model.layout.place(jnp.asarray(reply % group), ("slots",)),
    group=group,
  )
  return prefix, EpisodeDecodeState(
    hidden=model.gather_for_slots(prefix.hidden, decode_slots),
    cache=model.start_cache(prefix, len(reply), length),
    media=model.start_media(len(reply), frames, patches),
  )


@functools.partial(
  jax.jit, static_argnames=("graphdef", "decoding", "chunk"), donate_argnames="state"
)
def decode(
  graphdef: nnx.GraphDef,
  params: PyTree,
  prefix: interface.Prefix,
  state: EpisodeDecodeState,
  slots: ChunkSlots,
  allowed_tokens: Bool[Array, "vocab"],
  key: Key[Array, ""],
  fewer: Int[Array, ""],
  *,
  decoding: sampler.Decoding,
  chunk: int,
) -> tuple[EpisodeDecodeState, DecodedChunk]:
  """Up to `chunk` steps; fewer once no device has more than `fewer` replies that go on (`sampler.decode_loop`). What is said is whole on every device.

  As many slots as homes are these, in their order. `key` is folded as `sampler.sample` does, by prompt, reply and step.
  """
  model = nnx.merge(graphdef, params)
  slots = jax.tree.map(lambda x: model.layout.place(jnp.asarray(x), ("slots",)), slots)
  rows, whole = slots.rows, len(slots.step) == len(state.hidden)
  decode_slots = slots_lib.DecodeSlots(
    prompt=rows.prompt,
    group_index=slots.group_index,
    group=decoding.group,
    forgets=None if rows.forgotten is None else rows.forgotten > 0,
    kept=rows.kept,
  )
  keys = sampler.reply_keys(key, slots.prompt, slots.group_index)
  stops, constants = jnp.array(decoding.stop_tokens), model.prepare_decode(prefix)
  past = state.cache if whole else state.cache.select_slots(model.layout, rows.cache_slot)
  blank = model.layout.place(jnp.zeros((len(slots.step), chunk)), ("slots", None))

  def goes_on(carry: tuple) -> Array:
    ended = carry[-1].ended
    return (~ended).reshape(model.layout.ways("slots"), -1).sum(axis=1).max() > fewer

  def step(carry: tuple) -> tuple:
    index, hidden, recent, said = carry
    logits = forward.token_logits(model, hidden, allowed_tokens, decoding.temperature or 1.0)
    token, log_prob = sampler.draw(logits, keys, slots.step + index, decoding)
    token, log_prob = (jnp.where(said.ended, 0, x) for x in (token, log_prob))
    hidden, recent = model.decode_on(constants, past, recent, token, index, rows, decode_slots)
    last = (token[:, None] == stops).any(axis=-1) | (index + 1 >= slots.left)
    put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=index, axis=1)
    said = DecodedChunk(
      tokens=put(said.tokens, token),
      log_probs=put(said.log_probs, log_prob),
      counts=said.counts + ~said.ended,
      ended=said.ended | last,
    )
    return index + 1, hidden, recent, said

  said = DecodedChunk(
    tokens=blank.astype(jnp.int32),
    log_probs=blank,
    counts=jnp.zeros_like(slots.left),
    ended=slots.left == 0,
  )
  hidden = _read_cache_slots(model.layout, state.hidden, rows.cache_slot)
  recent = model.start_cache(prefix, len(slots.step), chunk)
  carry = (jnp.int32(0), hidden, recent, said)
  _, hidden, recent, said = sampler.decode_loop(
    model.layout, goes_on, step, carry, index=lambda carry: carry[0], most=chunk
  )
  cache = state.cache.write_rows(model.layout, recent, rows.cache_slot, rows.written, said.counts)
  hidden = _write_cache_slots(model.layout, state.hidden, rows.cache_slot, hidden)
  return dataclasses.replace(state, hidden=hidden, cache=cache), replicate(model.layout, said)


@functools.partial(jax.jit, static_argnames=("graphdef", "stride"), donate_argnames="state")
def append(
  graphdef: nnx.GraphDef,
  params: PyTree,
  prefix: interface.Prefix,
  state: EpisodeDecodeState,
  shown: records.Prompt,
  rows: slots_lib.CacheRows,
  seen: Int[Array, "rows"],
  *,
  stride: int,
) -> EpisodeDecodeState:
  """What some replies are shown next, behind what they have written.

  shown: its positions count from 0. seen: frames that each reply was shown before; stride: media tokens of a frame.
  """
  model = nnx.merge(graphdef, params)
  place = functools.partial(model.layout.place, axes=("slots",))
  rows = jax.tree.map(lambda x: place(jnp.asarray(x)), rows)
  media = model.encode_vision(shown.vision)
  hidden, new = model.append(prefix, state.cache, shown, media, rows)
  counts = place((jnp.asarray(shown.kind) != records.Kind.PAD).sum(axis=1))
  cache = state.cache.write_rows(model.layout, new, rows.cache_slot, rows.written, counts)
  first = place(jnp.asarray(seen)) * stride

  def of_device(x: Array, new: Array, cache_slot: Array, first: Array) -> Array:
    return x.at[cache_slot[:, None], first[:, None] + jnp.arange(new.shape[1])].set(
      new, mode="drop"
    )

  def kept(x: Array, new: Array) -> Array:
    wide = ("slots", *[None] * (x.ndim - 1))
    places = (rows.cache_slot, ("slots",)), (first, ("slots",))
    return model.layout.per_shard(of_device, ((x, wide), (new, wide), *places))

  return EpisodeDecodeState(
    hidden=_write_cache_slots(model.layout, state.hidden, rows.cache_slot, hidden),
    cache=cache,
    media=jax.tree.map(kept, state.media, media),
  )


@functools.partial(jax.jit, static_argnames=("layout", "length"))
def grow(layout: layout_lib.Layout, state: EpisodeDecodeState, length: int) -> EpisodeDecodeState:
  """The same with room for `length` tokens."""
  return dataclasses.replace(state, cache=state.cache.grow(layout, length))


@functools.partial(jax.jit, static_argnames=("layout", "shape", "media"))
def gather_media(
  layout: layout_lib.Layout, state: EpisodeDecodeState, shape: tuple[int, int], media: int
) -> PyTree:
  """The first `media` features of each reply, those of a group one after the other. shape: prompts, group."""
  places = slot_layout_lib.SlotLayout.for_groups(layout, *shape)

  def of_array(x: Array) -> Array:
    found = places.to_reply_order(x[:, :media])
    joined = found.reshape(shape[0], shape[1] * media, *found.shape[2:])
    return layout.place(joined, ("prompts", *[None] * (joined.ndim - 1)))

  return jax.tree.map(of_array, state.media)


@functools.partial(jax.jit, static_argnames="layout")
def replicate(layout: layout_lib.Layout, tree: PyTree) -> PyTree:
  """The arrays whole on every device, so that every process can read them."""
  return jax.tree.map(lambda x: layout.place(x, (None,) * x.ndim), tree)


def _read_cache_slots(
  layout: layout_lib.Layout, x: Float[Array, "homes embed"], cache_slot: Int[Array, "slots"]
) -> Float[Array, "slots embed"]:
  def of_device(cache_slot: Array, x: Array) -> Array:
    return jnp.take(x, cache_slot, axis=0, mode="clip")

  out = ("slots", None), (len(cache_slot), x.shape[1])
  return layout.per_shard(of_device, ((cache_slot, ("slots",)), (x, ("slots", None))), out=out)


def _write_cache_slots(
  layout: layout_lib.Layout,
  x: Float[Array, "homes embed"],
  cache_slot: Int[Array, "slots"],
  new: Float[Array, "slots embed"],
) -> Float[Array, "homes embed"]:
  def of_device(x: Array, cache_slot: Array, new: Array) -> Array:
    return x.at[cache_slot].set(new, mode="drop")

  axes = ("slots", None)
  return layout.per_shard(of_device, ((x, axes), (cache_slot, ("slots",)), (new, axes)))
