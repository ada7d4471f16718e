"""Sampling: prompts -> groups of replies, with a key/value cache, one prefill per prompt, and no step for ended replies.

Replies start in a slot each. Every step of decoding computes all slots; when enough replies have ended, what is left moves to
fewer slots, and the loop goes on compiled for these. Where a reply is kept changes nothing of what is drawn for it.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
import typing
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree

from vr_jax import records
from vr_jax.models import interface
from vr_jax.models import layout as layout_lib
from vr_jax.models.common import slots as slots_lib
from vr_jax.rollout import chunked_logprobs, forward
from vr_jax.rollout import slot_layout as slot_layout_lib

_UNASKED = 4  # steps of several devices from one look at how many replies go on to the next
_BLOCKS = 128  # of the vocabulary, in which a token is looked for


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
  """How replies are drawn. Hashable: a static argument of the jitted functions.

  temperature 0 is greedy. `top_p` keeps the smallest set of tokens whose probability reaches it. A reply ends with one
  of `stop_tokens`, which belongs to it, or after `max_new_tokens`. `slot_fractions`: shares of the slots, falling, to which
  decoding goes down as replies end; it is compiled once for each that is reached. replicate_weights: weights lie whole on each device
  (but for the split of heads) while it decodes, instead of being sent to it for every token.
  """

  group: int
  max_new_tokens: int
  temperature: float
  top_p: float
  stop_tokens: tuple[int, ...]
  slot_fractions: tuple[float, ...] = ()
  replicate_weights: bool = True


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
@typing.no_type_check  # tree transformations rebuild it with leaves that are no arrays
class _State:
  """Decoding between two steps. cache_slot: the place of a slot's reply among those that its device started with."""

  index: Int[Array, ""]
  hidden: Float[Array, "slots embed"]
  cache: interface.Cache
  tokens: Int[Array, "slots time"]
  log_probs: Float[Array, "slots time"]
  lengths: Int[Array, "slots"]
  finished: Bool[Array, "slots"]
  keys: Key[Array, "slots"]
  cache_slot: Int[Array, "slots"]
  decode_slots: slots_lib.DecodeSlots


def sample(
  graphdef: nnx.GraphDef,
  params: PyTree,
  prompt: records.Prompt,
  allowed_tokens: Bool[Array, "vocab"],
  key: Key[Array, ""],
  *,
  decoding: Decoding,
) -> records.Rollout:
  """Draws `decoding.group` replies to each prompt.

  Each reply has a key of its own, folded from `key`, its prompt's and its group's index: what is drawn for it does not
  depend on how long the others run, or where they are kept. Decoding ends when every reply has. The log-probs are those of
  the distribution at the temperature, before top-p (at temperature 0: at temperature 1), with media tokens taken out;
  this is what `forward.reply_log_probs` computes for the same tokens.
  """
  return sample_counting(graphdef, params, prompt, allowed_tokens, key, decoding=decoding)[0]


def sample_counting(
  graphdef: nnx.GraphDef,
  params: PyTree,
  prompt: records.Prompt,
  allowed_tokens: Bool[Array, "vocab"],
  key: Key[Array, ""],
  *,
  decoding: Decoding,
) -> tuple[records.Rollout, int]:
  """As `sample`; also the number of tokens that decoding computed, those in slots whose reply had ended with them."""
  layout = nnx.merge(graphdef, params).layout
  prefix, state = _start(graphdef, params, prompt, key, decoding=decoding)
  params = decoding_params(graphdef, params) if decoding.replicate_weights else params
  slots = left = len(state.finished) // layout.ways("slots")
  sizes = slot_sizes(slots, decoding.slot_fractions)
  results, computed, reached = None, 0, 0
  while left:
    size = min(size for size in sizes if size >= left)
    if size < slots:
      state, slots = _compact(layout, state, size), size
    go_down = jnp.int32(max((fewer for fewer in sizes if fewer < size), default=0))
    state = _decode(graphdef, params, prefix, state, allowed_tokens, go_down, decoding=decoding)
    results = _collect(layout, state, results) if results is not None else _results(state)
    index, left = (int(x) for x in jax.device_get(_progress(layout, state)))
    computed += (index - reached) * len(state.finished)
    reached = index
  shape = (prompt.tokens.shape[0], decoding.group)
  return _in_order(layout, results, shape), computed


@functools.partial(jax.jit, static_argnames=("graphdef", "decoding"))
def sample_at_once(
  graphdef: nnx.GraphDef,
  params: PyTree,
  prompt: records.Prompt,
  allowed_tokens: Bool[Array, "vocab"],
  key: Key[Array, ""],
  *,
  decoding: Decoding,
) -> records.Rollout:
  """As `sample`, in one program: every reply keeps its slot to the end."""
  prefix, state = _start(graphdef, params, prompt, key, decoding=decoding)
  params = decoding_params(graphdef, params) if decoding.replicate_weights else params
  state = _decode(graphdef, params, prefix, state, allowed_tokens, jnp.int32(0), decoding=decoding)
  shape = (prompt.tokens.shape[0], decoding.group)
  layout = nnx.merge(graphdef, params).layout
  return _in_order(layout, _results(state), shape)


def slot_sizes(slots: int, slot_fractions: tuple[float, ...]) -> set[int]:
  """Numbers of slots of a device that decoding is compiled for."""
  return {slots, *(max(1, math.ceil(slots * rung)) for rung in slot_fractions)}


@functools.partial(jax.jit, static_argnames=("graphdef", "decoding"))
def _start(
  graphdef: nnx.GraphDef,
  params: PyTree,
  prompt: records.Prompt,
  key: Key[Array, ""],
  *,
  decoding: Decoding,
) -> tuple[interface.Prefix, _State]:
  """Prompts that have been read, and their replies before the first token."""
  model = nnx.merge(graphdef, params)
  prompts, group = prompt.tokens.shape[0], decoding.group
  prefix = model.prefill(prompt)
  places = slot_layout_lib.SlotLayout.for_groups(model.layout, prompts, group)
  reply, block = places.reply(), places.block()
  of_slots = functools.partial(model.layout.place, axes=("slots",))
  decode_slots = slots_lib.DecodeSlots(
    prompt=of_slots(jnp.asarray(reply // group)),
    group_index=of_slots(jnp.asarray(reply % group)),
    group=group,
  )
  first = block * (places.replies // group) + reply // group
  slots = len(reply)
  blank = model.layout.place(jnp.zeros((slots, decoding.max_new_tokens)), ("slots", None))
  return prefix, _State(
    index=jnp.int32(0),
    hidden=model.gather_for_slots(prefix.hidden, decode_slots),
    cache=model.start_cache(prefix, slots, decoding.max_new_tokens),
    tokens=blank.astype(jnp.int32),
    log_probs=blank,
    lengths=of_slots(jnp.zeros(slots, jnp.int32)),
    finished=of_slots(jnp.asarray(reply == places.replies)),
    keys=of_slots(reply_keys(key, jnp.asarray(first), jnp.asarray(reply % group))),
    cache_slot=of_slots(jnp.asarray(places.device_slot())),
    decode_slots=decode_slots,
  )


@functools.partial(jax.jit, static_argnames="graphdef")
def decoding_params(graphdef: nnx.GraphDef, params: PyTree) -> PyTree:
  """The parameters as decoding reads them: see the model's."""
  return nnx.merge(graphdef, params).decoding_params()


@functools.partial(jax.jit, static_argnames=("graphdef", "decoding"), donate_argnames="state")
def _decode(
  graphdef: nnx.GraphDef,
  params: PyTree,
  prefix: interface.Prefix,
  state: _State,
  allowed_tokens: Bool[Array, "vocab"],
  fewer: Int[Array, ""],
  *,
  decoding: Decoding,
) -> _State:
  """Steps until no device has more than `fewer` replies that go on (see `looped`), or replies are as long as they may be."""
  model = nnx.merge(graphdef, params)
  stops, constants = jnp.array(decoding.stop_tokens), model.prepare_decode(prefix)

  def goes_on(state: _State) -> Array:
    return _count_unfinished(model.layout, state) > fewer

  def step(state: _State) -> _State:
    index, done = state.index, state.finished
    logits = forward.token_logits(model, state.hidden, allowed_tokens, decoding.temperature or 1.0)
    token, log_prob = draw(logits, state.keys, index, decoding)
    token, log_prob = jnp.where(done, 0, token), jnp.where(done, 0, log_prob)
    hidden, cache = model.decode(constants, state.cache, token, index, state.decode_slots)
    return dataclasses.replace(
      state,
      index=index + 1,
      hidden=hidden,
      cache=cache,
      tokens=jax.lax.dynamic_update_index_in_dim(state.tokens, token, index, axis=1),
      log_probs=jax.lax.dynamic_update_index_in_dim(state.log_probs, log_prob, index, axis=1),
      lengths=state.lengths + ~done,
      finished=done | (token[:, None] == stops).any(axis=-1),
    )

  most = decoding.max_new_tokens
  return decode_loop(model.layout, goes_on, step, state, index=lambda state: state.index, most=most)


def decode_loop(
  layout: layout_lib.Layout,
  goes_on: Callable[[Any], Array],
  step: Callable[[Any], Any],
  state: Any,
  *,
  index: Callable[[Any], Array],
  most: int,
) -> Any:
  """Steps while `goes_on` and index(state), the number of the next one, is below `most`.

  Several devices wait for each other to know whether it goes on: they ask every `_UNASKED` steps, and may do some too many.
  """

  def within(state: Any) -> Array:
    return index(state) < most

  if layout.ways("slots") == 1:
    return jax.lax.while_loop(lambda state: within(state) & goes_on(state), step, state)

  def stepped(carry: tuple[Any, Array]) -> tuple[Any, Array]:
    state = step(carry[0])
    asked = index(state) % _UNASKED == 0
    return state, jax.lax.cond(asked, goes_on, lambda _: jnp.array(True), state)

  begun = (state, goes_on(state))
  return jax.lax.while_loop(lambda carry: carry[1] & within(carry[0]), stepped, begun)[0]


def _count_unfinished(layout: layout_lib.Layout, state: _State) -> Int[Array, ""]:
  """Replies that go on, on the device that has most of them."""
  return (~state.finished).reshape(layout.ways("slots"), -1).sum(axis=1).max()


@functools.partial(jax.jit, static_argnames="layout")
def _progress(layout: layout_lib.Layout, state: _State) -> tuple[Int[Array, ""], Int[Array, ""]]:
  """(steps done, replies that go on, on the device that has most of them; 0 where they may be no longer)."""
  full = state.index == state.tokens.shape[1]
  return state.index, jnp.where(full, 0, _count_unfinished(layout, state))


@functools.partial(jax.jit, static_argnames=("layout", "slots"))
def _compact(layout: layout_lib.Layout, state: _State, slots: int) -> _State:
  """The replies that go on, in `slots` slots of each device; those left over hold ended ones."""

  def first(done: Array) -> Array:
    return jnp.argsort(done, stable=True)[:slots]

  kept = layout.per_shard(first, ((state.finished, ("slots",)),))

  def of_kept(x: Array) -> Array:
    axes = ("slots", *[None] * (x.ndim - 1))
    return layout.per_shard(lambda x, kept: x[kept], ((x, axes), (kept, ("slots",))))

  index, cache = state.index, state.cache.select_slots(layout, kept)
  rest = jax.tree.map(of_kept, dataclasses.replace(state, index=None, cache=None))
  return dataclasses.replace(rest, index=index, cache=cache)


Results = tuple[Int[Array, "slots time"], Float[Array, "slots time"], Int[Array, "slots"]]


def _results(state: _State) -> Results:
  """Tokens, log-probs and lengths of the replies."""
  return state.tokens, state.log_probs, state.lengths


@functools.partial(jax.jit, static_argnames="layout", donate_argnames="results")
def _collect(layout: layout_lib.Layout, state: _State, results: Results) -> Results:
  """The results of all replies, with what the slots hold now at home."""

  def at_home(results: Array, cache_slot: Array, x: Array) -> Array:
    return results.at[cache_slot].set(x)

  def updated(result: Array, x: Array) -> Array:
    axes = ("slots", *[None] * (x.ndim - 1))
    return layout.per_shard(at_home, ((result, axes), (state.cache_slot, ("slots",)), (x, axes)))

  return tuple(updated(*pair) for pair in zip(results, _results(state), strict=True))


@functools.partial(jax.jit, static_argnames=("layout", "shape"))
def _in_order(
  layout: layout_lib.Layout, results: Results, shape: tuple[int, int]
) -> records.Rollout:
  """The rollout of replies in the slots in which they started."""
  places = slot_layout_lib.SlotLayout.for_groups(layout, *shape)
  tokens, log_probs, lengths = (
    layout.place(
      places.to_reply_order(x).reshape(*shape, *x.shape[1:]), ("prompts", *[None] * x.ndim)
    )
    for x in results
  )
  sampled = jnp.arange(tokens.shape[-1]) < lengths[..., None]
  kind = jnp.where(sampled, int(records.Kind.MODEL), int(records.Kind.PAD))
  return records.Rollout(tokens=tokens, log_probs=log_probs, kind=kind, turn=jnp.zeros_like(tokens))


def reply_keys(
  key: Key[Array, ""], prompt: Int[Array, "slots"], group_index: Int[Array, "slots"]
) -> Key[Array, "slots"]:
  """Folded from the number of the prompt, then of the reply in its group."""

  def of_reply(prompt: Array, group_index: Array) -> Array:
    return jax.random.fold_in(jax.random.fold_in(key, prompt), group_index)

  return jax.vmap(of_reply)(prompt, group_index)


def draw(
  logits: Float[Array, "slots vocab"],
  keys: Key[Array, "slots"],
  index: Int[Array, "*slots"],
  decoding: Decoding,
) -> tuple[Int[Array, "slots"], Float[Array, "slots"]]:
  """A token for each slot, and its log-prob at the temperature; `index` is folded into the slots' keys."""
  log_probs = jax.nn.log_softmax(logits)
  if decoding.temperature == 0:
    token = jnp.argmax(logits, axis=-1)
  else:
    kept = nucleus(log_probs, decoding.top_p) if decoding.top_p < 1 else log_probs
    token = sample_inverse_cdf(jnp.exp(kept), uniform(keys, index))
  token = token.astype(jnp.int32)
  return token, jnp.take_along_axis(log_probs, token[:, None], axis=-1)[:, 0]


def uniform(keys: Key[Array, "slots"], index: Int[Array, "*slots"]) -> Float[Array, "slots"]:
  """A number in (0, 1) for each slot; `index` is folded into its key."""

  def of_slot(key: Array, index: Array) -> Array:
    # Of numbers 2^-23 apart from 0 on: moved to the middle, for 0 would be a token's whatever its probability.
    return jax.random.uniform(jax.random.fold_in(key, index)) + 2.0**-24

  return jax.vmap(of_slot)(keys, jnp.broadcast_to(index, keys.shape))


def sample_inverse_cdf(
  weights: Float[Array, "slots vocab"], fraction: Float[Array, "slots"]
) -> Int[Array, "slots"]:
  """The token at which the running sum of the weights first exceeds that share of their sum: one of weight 0 never.

  So one random number draws a token, where the Gumbel trick needs one for each token of the vocabulary. The sum runs over blocks
  of the vocabulary, then within the chosen one, which keeps its rounding small; blocks are reduced, not gathered, so that a
  vocabulary may lie on several devices.
  """
  size = -(-weights.shape[1] // _BLOCKS)
  padded = jnp.pad(weights, ((0, 0), (0, _BLOCKS * size - weights.shape[1])))
  blocks = padded.reshape(-1, _BLOCKS, size)
  sums = blocks.sum(axis=-1)
  wanted = fraction * sums.sum(axis=-1)
  block, before = _first_above(sums, wanted)
  chosen = jnp.where(jnp.arange(_BLOCKS)[:, None] == block[:, None, None], blocks, 0).sum(axis=1)
  place, _ = _first_above(chosen, wanted - before)
  return block * size + place


def _first_above(
  weights: Float[Array, "slots places"], wanted: Float[Array, "slots"]
) -> tuple[Int[Array, "slots"], Float[Array, "slots"]]:
  """(where the running sum of weights first exceeds what is wanted, the sum before it).

  Where rounding leaves it below throughout: at the largest weight.
  """
  running = jnp.cumsum(weights, axis=-1)
  above = (running > wanted[:, None]) & (weights > 0)
  place = jnp.where(above.any(axis=-1), above.argmax(axis=-1), weights.argmax(axis=-1))
  here = jnp.arange(weights.shape[-1]) == place[:, None]
  return place, jnp.where(here, running - weights, 0).sum(axis=-1)


def nucleus(log_probs: Float[Array, "*batch vocab"], top_p: float) -> Float[Array, "*batch vocab"]:
  """Log-probs with all but the most likely tokens, those whose mass first reaches `top_p`, made impossible.

  The most likely token always stays. Ties at the edge stay together. Source: Holtzman et al., arXiv 1904.09751.
  """
  ordered = jnp.sort(log_probs, axis=-1, descending=True)
  mass_before = jnp.cumsum(jnp.exp(ordered), axis=-1) - jnp.exp(ordered)
  inside = (mass_before < top_p) | (mass_before <= 0)
  edge = jnp.where(inside, ordered, jnp.inf).min(axis=-1, keepdims=True)
  return jnp.where(log_probs >= edge, log_probs, chunked_logprobs.IMPOSSIBLE)
