"""Decodes episodes of several turns on the devices, and appends observations to them.

Each reply has a cache slot, which keeps its keys and values from its first turn to its last;
nothing in it is computed again. Decoding works on slots, which hold the replies that continue.
During a chunk of steps, new keys and values go into a small separate cache, at the same index for
all slots. At the end of the chunk they are written into the cache slots. So a step needs no
scatter, and replies in different turns are decoded in one batch.
"""

import dataclasses
import functools
import typing
from typing import cast

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped
import numpy as np

from vr_jax import records
from vr_jax.models import interface
from vr_jax.models import layout as layout_lib
from vr_jax.models.common import slots as slots_lib
from vr_jax.parallel import same_programs
from vr_jax.rollout import forward, repetition, row_sampling, sampler
from vr_jax.rollout import slot_layout as slot_layout_lib


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
@typing.no_type_check  # tree transformations rebuild it with leaves that are no arrays
class EpisodeDecodeState:
  """The state of all replies, in their cache slots.

  hidden: hidden state at the last token of each reply, from which the next one is drawn.
  cache: keys and values of the tokens after the prompt.
  media: features [cache_slots, media, …] of the frames that later turns showed.
  last_tokens: of each reply, the newest last, for `Decoding.repetition_stop`; None without it. What
    a reply does not have yet means nothing.
  """

  hidden: Float[Array, "cache_slots embed"]
  cache: interface.Cache
  media: PyTree
  last_tokens: Int[Array, "cache_slots window"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
@typing.no_type_check
class ChunkSlots:
  """The replies that a chunk of steps decodes.

  rows: their cache slots.
  row: index of the prompt in the batch.
  group_index: index of the reply in its group.
  step: number of the next token, counted over all turns.
  left: tokens that the reply may still get; 0 for an empty slot.
  batch: whose key the reply has, where `decode` gets several; None: it gets one.
  """

  rows: slots_lib.CacheRows
  row: Int[Array | np.ndarray, "slots"]
  group_index: Int[Array | np.ndarray, "slots"]
  step: Int[Array | np.ndarray, "slots"]
  left: Int[Array | np.ndarray, "slots"]
  batch: Int[Array | np.ndarray, "slots"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
@typing.no_type_check
class DecodedChunk:
  """The tokens that a chunk of steps sampled.

  counts: number of new tokens of each slot.
  ended: whether the reply ended with them.
  """

  tokens: Int[Array, "slots chunk"]
  log_probs: Float[Array, "slots chunk"]
  counts: Int[Array, "slots"]
  ended: Bool[Array, "slots"]


@same_programs.compared
@functools.partial(
  jax.jit, static_argnames=("graphdef", "group", "length", "frames", "patches", "window")
)
def start(
  graphdef: nnx.GraphDef,
  params: PyTree,
  prompt: records.Prompt,
  *,
  group: int,
  length: int,
  frames: int,
  patches: int,
  window: int = 0,
) -> tuple[interface.Prefix, EpisodeDecodeState]:
  """Reads the prompts, and makes the state of replies that have no tokens yet.

  group: replies to each prompt.
  length: tokens that a cache slot has room for.
  frames, patches: frames and patches per frame that each reply has room for.
  window: of `Decoding.repetition_stop`.
  """
  model = nnx.merge(graphdef, params)
  layout = model.layout.decoding
  prefix = model.prefill(prompt).placed(layout.place)
  reply = slot_layout_lib.SlotLayout.for_groups(layout, prompt.tokens.shape[0], group).reply()
  decode_slots = slots_lib.DecodeSlots(
    prompt=layout.place(jnp.asarray(reply // group), ("slots",)),
    group_index=layout.place(jnp.asarray(reply % group), ("slots",)),
    group=group,
  )
  return prefix, EpisodeDecodeState(
    hidden=model.gather_for_slots(prefix.hidden, decode_slots),
    cache=model.init_cache(prefix, len(reply), length),
    media=model.init_media_features(len(reply), frames, patches),
    last_tokens=no_last_tokens(layout, len(reply), window),
  )


def no_last_tokens(
  layout: layout_lib.Layout, slots: int, window: int
) -> Int[Array, "slots window"] | None:
  """The last tokens of replies that have none; None if there is no window."""
  return layout.place(jnp.zeros((slots, window), jnp.int32), ("slots", None)) if window else None


@same_programs.compared
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
  key: Key[Array, "*batches"],
  stop_at_unfinished: Int[Array, ""],
  row_settings: row_sampling.RowSampling | None = None,
  *,
  decoding: sampler.Decoding,
  chunk: int,
) -> tuple[EpisodeDecodeState, DecodedChunk]:
  """Decodes up to `chunk` steps; stops at `stop_at_unfinished` unfinished replies a device.

  Several devices check that now and then only, see `sampler.decode_loop`. The result is replicated
  over all devices.

  slots: if there are as many as cache slots, slot i has to hold the reply of cache slot i.
  key: is folded by prompt, reply and step, as in `sampler.sample`; one, or that of each batch.
  row_settings: seed, temperature, top-p, top-k and min-p of each slot; they replace `key` and
    those of `decoding`.

  Raises ValueError if `decoding` has a presence penalty, which it does not know.
  """
  if decoding.presence_penalty:
    raise ValueError("a presence penalty: only sampler has it")
  model = nnx.merge(graphdef, params)
  layout = model.layout.decoding
  slots = jax.tree.map(lambda x: layout.place(jnp.asarray(x), ("slots",)), slots)
  rows, whole = slots.rows, len(slots.step) == len(state.hidden)
  cache_slot, written = cast(Array, rows.cache_slot), cast(Array, rows.written)
  decode_slots = slots_lib.DecodeSlots(
    prompt=rows.prompt_slot,
    group_index=slots.group_index,
    group=decoding.group,
    forgets=None if rows.visible_from is None else cast(Array, rows.visible_from) > 0,
    kept=rows.kept,
  )
  if slots.batch is not None:
    key = key[cast(Array, slots.batch)]
  keys = sampler.reply_keys(key, cast(Array, slots.row), cast(Array, slots.group_index))
  stops, constants = jnp.array(decoding.stop_tokens), model.prepare_decode(prefix)
  past = state.cache if whole else state.cache.select_slots(layout, cache_slot)
  blank = layout.place(jnp.zeros((len(slots.step), chunk)), ("slots", None))

  def should_continue(carry: tuple) -> Array:
    ended = carry[-2].ended
    return (~ended).reshape(layout.ways("slots"), -1).sum(axis=1).max() > stop_at_unfinished

  def draw(hidden: Array, number: Array) -> tuple[Array, Array]:
    if row_settings is None:
      logits = forward.slot_logits(model, hidden, allowed_tokens, decoding.temperature or 1.0)
      return sampler.sample_token(logits, keys, number, decoding)
    divisor = row_sampling.divisor(row_settings)
    logits = forward.slot_logits(model, hidden, allowed_tokens, divisor)
    return row_sampling.sample_tokens(logits, row_settings, number)

  def step(carry: tuple) -> tuple:
    index, hidden, recent, decoded, last_tokens = carry
    token, log_prob = draw(hidden, slots.step + index)
    token, log_prob = (jnp.where(decoded.ended, 0, x) for x in (token, log_prob))
    hidden, recent = model.decode_later_turn(
      constants, past, recent, token, index, rows, decode_slots
    )
    last = (token[:, None] == stops).any(axis=-1) | (index + 1 >= slots.left)
    if last_tokens is not None:
      added = repetition.append(last_tokens, token)
      last_tokens = jnp.where(decoded.ended[:, None], last_tokens, added)
      length = decoding.max_new_tokens - slots.left + index + 1
      last |= repetition.is_repeating(last_tokens, length, decoding.repetition_stop)
    put = functools.partial(jax.lax.dynamic_update_index_in_dim, index=index, axis=1)
    decoded = DecodedChunk(
      tokens=put(decoded.tokens, token),
      log_probs=put(decoded.log_probs, log_prob),
      counts=decoded.counts + ~decoded.ended,
      ended=decoded.ended | last,
    )
    return index + 1, hidden, recent, decoded, last_tokens

  decoded = DecodedChunk(
    tokens=blank.astype(jnp.int32),
    log_probs=blank,
    counts=jnp.zeros_like(slots.left),
    ended=slots.left == 0,
  )
  hidden = _read_cache_slots(layout, state.hidden, cache_slot)
  recent = model.init_cache(prefix, len(slots.step), chunk)
  last_tokens = state.last_tokens
  if last_tokens is not None:
    last_tokens = _read_cache_slots(layout, last_tokens, cache_slot)
  carry = (jnp.int32(0), hidden, recent, decoded, last_tokens)
  _, hidden, recent, decoded, last_tokens = sampler.decode_loop(
    layout, should_continue, step, carry, index=lambda carry: carry[0], most=chunk
  )
  cache = state.cache.write_rows(layout, recent, cache_slot, written, decoded.counts)
  hidden = _write_cache_slots(layout, state.hidden, cache_slot, hidden)
  if state.last_tokens is not None:
    last_tokens = _write_cache_slots(layout, state.last_tokens, cache_slot, last_tokens)
  state = dataclasses.replace(state, hidden=hidden, cache=cache, last_tokens=last_tokens)
  return state, replicate(layout, decoded)


@same_programs.compared
@functools.partial(jax.jit, static_argnames=("graphdef", "stride"), donate_argnames="state")
def append_observations(
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
  """Appends observations to the episodes of some replies.

  shown: the observations; their positions count from 0.
  rows: the cache slots that they are appended to.
  seen: number of frames that earlier turns of each episode showed.
  stride: media tokens of a frame.
  """
  model = nnx.merge(graphdef, params)
  layout = model.layout.decoding
  place = functools.partial(layout.place, axes=("slots",))
  rows = jax.tree.map(lambda x: place(jnp.asarray(x)), rows)
  cache_slot, written = cast(Array, rows.cache_slot), cast(Array, rows.written)
  media = model.encode_vision(shown.vision)
  hidden, new = model.prefill_observation(prefix, state.cache, shown, media, rows)
  counts = place((jnp.asarray(shown.kind) != records.Kind.PAD).sum(axis=1))
  cache = state.cache.write_rows(layout, new, cache_slot, written, counts)
  first = place(jnp.asarray(seen)) * stride

  def of_device(x: Array, new: Array, cache_slot: Array, first: Array) -> Array:
    return x.at[cache_slot[:, None], first[:, None] + jnp.arange(new.shape[1])].set(
      new, mode="drop"
    )

  def write(x: Array, new: Array) -> Array:
    wide = ("slots", *[None] * (x.ndim - 1))
    places = (cache_slot, ("slots",)), (first, ("slots",))
    return layout.per_shard(of_device, ((x, wide), (new, wide), *places))

  return dataclasses.replace(
    state,
    hidden=_write_cache_slots(layout, state.hidden, cache_slot, hidden),
    cache=cache,
    media=jax.tree.map(write, state.media, media),
  )


@same_programs.compared
@functools.partial(jax.jit, static_argnames="graphdef", donate_argnames="state")
def append_replies(
  graphdef: nnx.GraphDef,
  params: PyTree,
  prefix: interface.Prefix,
  state: EpisodeDecodeState,
  written: records.Prompt,
  rows: slots_lib.CacheRows,
) -> EpisodeDecodeState:
  """Reads what replies have written already, as if it had been decoded here.

  written: their tokens; positions count from 0.
  rows: their cache slots, out of range for a reply that is left out.
  """
  model = nnx.merge(graphdef, params)
  layout = model.layout.decoding
  place = functools.partial(layout.place, axes=("slots",))
  rows = jax.tree.map(lambda x: place(jnp.asarray(x)), rows)
  cache_slot, start = cast(Array, rows.cache_slot), cast(Array, rows.written)
  lengths, no_media = place(jnp.asarray(written.next_position)), model.init_media_features
  media = no_media(len(cache_slot), 0, 0)
  hidden, new = model.prefill_observation(prefix, state.cache, written, media, rows)
  last_tokens = state.last_tokens
  if last_tokens is not None:
    places = lengths[:, None] + jnp.arange(-last_tokens.shape[1], 0)
    newest = jnp.take_along_axis(jnp.asarray(written.tokens), jnp.maximum(places, 0), axis=1)
    last_tokens = _write_cache_slots(layout, last_tokens, cache_slot, newest)
  return dataclasses.replace(
    state,
    hidden=_write_cache_slots(layout, state.hidden, cache_slot, hidden),
    cache=state.cache.write_rows(layout, new, cache_slot, start, lengths),
    last_tokens=last_tokens,
  )


@functools.partial(jax.jit, static_argnames=("layout", "length"))
def grow(layout: layout_lib.Layout, state: EpisodeDecodeState, length: int) -> EpisodeDecodeState:
  """The same state with room for `length` tokens in each cache slot."""
  return dataclasses.replace(state, cache=state.cache.grow(layout, length))


@functools.partial(jax.jit, static_argnames=("layout", "shape", "media"))
def gather_media(
  layout: layout_lib.Layout, state: EpisodeDecodeState, shape: tuple[int, int], media: int
) -> PyTree:
  """The first `media` features of each reply, [prompts, group * media, …].

  layout: that of training, which they get.
  shape: (prompts, group).
  """
  slot_layout = slot_layout_lib.SlotLayout.for_groups(layout.decoding, *shape)

  def of_array(x: Array) -> Array:
    ordered = slot_layout.to_reply_order(x[:, :media])
    joined = ordered.reshape(shape[0], shape[1] * media, *ordered.shape[2:])
    return layout.place(joined, ("prompts", *[None] * (joined.ndim - 1)))

  return jax.tree.map(of_array, state.media)


@functools.partial(jax.jit, static_argnames="layout")
def replicate(layout: layout_lib.Layout, tree: PyTree) -> PyTree:
  """Replicates arrays over all devices, so that every process can read them."""
  return jax.tree.map(lambda x: layout.place(x, (None,) * x.ndim), tree)


def _read_cache_slots(
  layout: layout_lib.Layout, x: Shaped[Array, "cache_slots last"], cache_slot: Int[Array, "slots"]
) -> Shaped[Array, "slots last"]:
  def of_device(cache_slot: Array, x: Array) -> Array:
    return jnp.take(x, cache_slot, axis=0, mode="clip")

  out = ("slots", None), (len(cache_slot), x.shape[1])
  return layout.per_shard(of_device, ((cache_slot, ("slots",)), (x, ("slots", None))), out=out)


def _write_cache_slots(
  layout: layout_lib.Layout,
  x: Shaped[Array, "cache_slots last"],
  cache_slot: Int[Array, "slots"],
  new: Shaped[Array, "slots last"],
) -> Shaped[Array, "cache_slots last"]:
  def of_device(x: Array, cache_slot: Array, new: Array) -> Array:
    return x.at[cache_slot].set(new, mode="drop")

  axes = ("slots", None)
  return layout.per_shard(of_device, ((x, axes), (cache_slot, ("slots",)), (new, axes)))
