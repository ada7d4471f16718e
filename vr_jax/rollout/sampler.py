"""Samples a group of replies to each prompt, with a key/value cache and one prefill per prompt.

Each reply starts in a slot of its own, and a decoding step computes all slots. When enough replies
have ended, the others move to fewer slots, and decoding continues with a program compiled for that
number. The slot of a reply does not influence what is drawn for it.
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
from vr_jax.parallel import same_programs
from vr_jax.rollout import forward, inverse_cdf, likely_tokens, repetition
from vr_jax.rollout import slot_layout as slot_layout_lib

CHECK_EVERY = 4  # with several devices, steps between two counts of the unfinished replies


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decoding:
  """How replies are drawn. It is hashable, because it is a static argument of jitted functions.

  group: replies to each prompt.
  max_new_tokens: the most tokens of a reply.
  temperature: 0 is greedy.
  top_p: keeps the smallest set of tokens whose probability reaches it; 1: all tokens.
  top_k, min_p: of `likely_tokens.keep_likely`, before top-p; 0: all tokens.
  kept_log_probs: whether log-probs are among the tokens that top-p, top-k and min-p keep, those of
    which one was drawn, and not among all. Greedy ones are always among all.
  int8_weights: whether replies, not prompts, are computed with matrices in 8-bit integers.
  presence_penalty: is taken from the logits of the tokens that a reply has already, before the
    division by the temperature. Only this module has it, and log-probs are those after it.
  stop_tokens: end a reply, and are part of it.
  repetition_stop: when a reply ends because it repeats itself.
  slot_fractions: falling fractions of the slots to which decoding shrinks as replies end; decoding
    is compiled once for each fraction that is reached.
  slots: of `refill_sampler`, which decodes fewer replies at once than there are; 0: not used.
  """

  group: int
  max_new_tokens: int
  temperature: float
  top_p: float
  stop_tokens: tuple[int, ...]
  top_k: int = 0
  min_p: float = 0.0
  kept_log_probs: bool = False
  int8_weights: bool = False
  repetition_stop: repetition.RepetitionStop = dataclasses.field(
    default_factory=repetition.RepetitionStop
  )
  presence_penalty: float = 0.0
  slot_fractions: tuple[float, ...] = ()
  slots: int = 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
@typing.no_type_check  # tree transformations rebuild it with leaves that are no arrays
class _State:
  """The state of decoding between two steps.

  cache_slot: for each slot, the slot of the same device in which its reply started. Its results are
    written there, so that replies keep their order when they move to fewer slots.
  seen: the tokens that each slot's reply has; None without a presence penalty.
  """

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
  seen: Bool[Array, "slots vocab"] | None


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

  Each reply has a random key of its own, folded from `key`, the index of its prompt and its index
  in the group. So what is drawn does not depend on the length or the slots of other replies.
  Decoding ends when every reply has ended or has `max_new_tokens` tokens.

  Log-probs are of the distribution at the temperature (at temperature 0: at temperature 1), without
  the tokens that are not allowed and before min-p, top-k and top-p. `forward.reply_log_probs`
  computes the same, unless `decoding` has a presence_penalty, kept_log_probs or int8_weights.
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
  """Same as `sample`; also returns how many tokens were computed.

  Tokens of ended replies and of padding slots are counted too.
  """
  layout = nnx.merge(graphdef, params).layout
  prefix, state = _start(graphdef, params, prompt, key, decoding=decoding)
  params = decoding_params(graphdef, params, int8_weights=decoding.int8_weights)
  slots_per_device = max_unfinished = len(state.finished) // layout.decoding.ways("slots")
  sizes = slot_sizes(slots_per_device, decoding.slot_fractions)
  results, computed, reached = None, 0, 0
  while max_unfinished:
    size = min(size for size in sizes if size >= max_unfinished)
    if size < slots_per_device:
      state, slots_per_device = _compact(layout.decoding, state, size), size
    next_size = jnp.int32(max((smaller for smaller in sizes if smaller < size), default=0))
    state = _decode(graphdef, params, prefix, state, allowed_tokens, next_size, decoding=decoding)
    results = _collect(layout.decoding, state, results) if results is not None else _results(state)
    index, max_unfinished = (int(x) for x in jax.device_get(_progress(layout.decoding, state)))
    computed += (index - reached) * len(state.finished)
    reached = index
  shape = (prompt.tokens.shape[0], decoding.group)
  return _in_order(layout, results, shape), computed


@functools.partial(jax.jit, static_argnames=("graphdef", "decoding"))
def sample_without_compaction(
  graphdef: nnx.GraphDef,
  params: PyTree,
  prompt: records.Prompt,
  allowed_tokens: Bool[Array, "vocab"],
  key: Key[Array, ""],
  *,
  decoding: Decoding,
) -> records.Rollout:
  """Same as `sample`, in one program: every reply keeps its slot to the end."""
  prefix, state = _start(graphdef, params, prompt, key, decoding=decoding)
  params = decoding_params(graphdef, params, int8_weights=decoding.int8_weights)
  state = _decode(graphdef, params, prefix, state, allowed_tokens, jnp.int32(0), decoding=decoding)
  shape = (prompt.tokens.shape[0], decoding.group)
  layout = nnx.merge(graphdef, params).layout
  return _in_order(layout, _results(state), shape)


def slot_sizes(slots_per_device: int, slot_fractions: tuple[float, ...]) -> set[int]:
  """The numbers of slots per device that decoding may be compiled for."""
  return {
    slots_per_device,
    *(max(1, math.ceil(slots_per_device * fraction)) for fraction in slot_fractions),
  }


@same_programs.compared
@functools.partial(jax.jit, static_argnames=("graphdef", "decoding"))
def _start(
  graphdef: nnx.GraphDef,
  params: PyTree,
  prompt: records.Prompt,
  key: Key[Array, ""],
  *,
  decoding: Decoding,
) -> tuple[interface.Prefix, _State]:
  """Reads the prompts, and makes the state of decoding before the first token."""
  model = nnx.merge(graphdef, params)
  prompts, group = prompt.tokens.shape[0], decoding.group
  layout = model.layout.decoding
  prefix = model.prefill(prompt).placed(layout.place)
  places = slot_layout_lib.SlotLayout.for_groups(layout, prompts, group)
  reply_index, block = places.reply(), places.block()
  place_slots = functools.partial(layout.place, axes=("slots",))
  decode_slots = slots_lib.DecodeSlots(
    prompt=place_slots(jnp.asarray(reply_index // group)),
    group_index=place_slots(jnp.asarray(reply_index % group)),
    group=group,
  )
  global_prompt = block * (places.replies // group) + reply_index // group
  slots, vocab = len(reply_index), len(model.lm_head_weight())
  blank = layout.place(jnp.zeros((slots, decoding.max_new_tokens)), ("slots", None))
  return prefix, _State(
    index=layout.place(jnp.int32(0), ()),  # it is folded into keys of the same mesh
    hidden=model.gather_for_slots(prefix.hidden, decode_slots),
    cache=model.init_cache(prefix, slots, decoding.max_new_tokens),
    tokens=blank.astype(jnp.int32),
    log_probs=blank,
    lengths=place_slots(jnp.zeros(slots, jnp.int32)),
    # Padding slots, which hold no reply, start finished.
    finished=place_slots(jnp.asarray(reply_index == places.replies)),
    keys=place_slots(reply_keys(key, jnp.asarray(global_prompt), jnp.asarray(reply_index % group))),
    cache_slot=place_slots(jnp.asarray(places.device_slot())),
    decode_slots=decode_slots,
    seen=layout.place(jnp.zeros((slots, vocab), bool), ("slots", None))
    if decoding.presence_penalty
    else None,
  )


def decoding_params(
  graphdef: nnx.GraphDef, params: PyTree, *, int8_weights: bool = False
) -> PyTree:
  """The parameters as decoding has them: in its layout, in the dtypes that it reads.

  They move from device to device, once for all tokens. What stays as it is is not copied.
  """
  changed = changed_for_decoding(graphdef, params, int8_weights=int8_weights)
  return jax.tree.map(lambda old, new: old if new is None else new, params, changed)


@same_programs.compared
@functools.partial(jax.jit, static_argnames=("graphdef", "int8_weights"))
def changed_for_decoding(
  graphdef: nnx.GraphDef, params: PyTree, *, int8_weights: bool = False
) -> PyTree:
  """The arrays that decoding has in another dtype or sharding; None in place of the rest."""
  return nnx.merge(graphdef, params).decoding_params(int8_weights=int8_weights)


@same_programs.compared
@functools.partial(jax.jit, static_argnames=("graphdef", "decoding"), donate_argnames="state")
def _decode(
  graphdef: nnx.GraphDef,
  params: PyTree,
  prefix: interface.Prefix,
  state: _State,
  allowed_tokens: Bool[Array, "vocab"],
  stop_at_unfinished: Int[Array, ""],
  *,
  decoding: Decoding,
) -> _State:
  """Decodes until no device has more than `stop_at_unfinished` unfinished replies.

  It also ends once replies have `max_new_tokens` tokens. See `decode_loop`.
  """
  model = nnx.merge(graphdef, params)
  stops, constants = jnp.array(decoding.stop_tokens), model.prepare_decode(prefix)
  layout = model.layout.decoding

  def should_continue(state: _State) -> Array:
    return _count_unfinished(layout, state) > stop_at_unfinished

  def step(state: _State) -> _State:
    index, done = state.index, state.finished
    logits = forward.slot_logits(model, state.hidden, allowed_tokens, decoding.temperature or 1.0)
    if (seen := state.seen) is not None:
      logits -= decoding.presence_penalty / (decoding.temperature or 1.0) * seen
    token, log_prob = sample_token(logits, state.keys, index, decoding)
    token, log_prob = jnp.where(done, 0, token), jnp.where(done, 0, log_prob)
    tokens = jax.lax.dynamic_update_index_in_dim(state.tokens, token, index, axis=1)
    ended = (token[:, None] == stops).any(axis=-1)
    if stop := decoding.repetition_stop.window:
      # Of a shorter reply, the places before the first are places after the last, which are 0.
      last = jnp.take(tokens, index - jnp.arange(stop)[::-1], axis=1, mode="wrap")
      ended |= repetition.is_repeating(last, index + 1, decoding.repetition_stop)
    if seen is not None:
      seen = seen | (jnp.arange(seen.shape[1]) == token[:, None])
    hidden, cache = model.decode(constants, state.cache, token, index, state.decode_slots)
    return dataclasses.replace(
      state,
      index=index + 1,
      hidden=hidden,
      cache=cache,
      tokens=tokens,
      log_probs=jax.lax.dynamic_update_index_in_dim(state.log_probs, log_prob, index, axis=1),
      lengths=state.lengths + ~done,
      finished=done | ended,
      seen=seen,
    )

  most = decoding.max_new_tokens
  return decode_loop(
    layout, should_continue, step, state, index=lambda state: state.index, most=most
  )


def decode_loop(
  layout: layout_lib.Layout,
  should_continue: Callable[[Any], Array],
  step: Callable[[Any], Any],
  state: Any,
  *,
  index: Callable[[Any], Array],
  most: int,
) -> Any:
  """Repeats `step` while `should_continue(state)` and index(state) < most.

  With several devices, `should_continue` makes them wait for each other. So it is evaluated only
  every `CHECK_EVERY` steps, and a few more steps than necessary may be done.

  index: the number of the next step.
  """

  def within(state: Any) -> Array:
    return index(state) < most

  if layout.ways("slots") == 1:
    return jax.lax.while_loop(lambda state: within(state) & should_continue(state), step, state)

  def stepped(carry: tuple[Any, Array]) -> tuple[Any, Array]:
    state = step(carry[0])
    check = index(state) % CHECK_EVERY == 0
    return state, jax.lax.cond(check, should_continue, lambda _: jnp.array(True), state)

  begun = (state, should_continue(state))
  return jax.lax.while_loop(lambda carry: carry[1] & within(carry[0]), stepped, begun)[0]


def _count_unfinished(layout: layout_lib.Layout, state: _State) -> Int[Array, ""]:
  """The number of unfinished replies on the device that has most of them."""
  return (~state.finished).reshape(layout.ways("slots"), -1).sum(axis=1).max()


@functools.partial(jax.jit, static_argnames="layout")
def _progress(layout: layout_lib.Layout, state: _State) -> tuple[Int[Array, ""], Int[Array, ""]]:
  """The number of steps done, and the number of unfinished replies on the device with most of them.

  The second is 0 once replies have full length.
  """
  full = state.index == state.tokens.shape[1]
  return state.index, jnp.where(full, 0, _count_unfinished(layout, state))


@functools.partial(jax.jit, static_argnames=("layout", "slots"))
def _compact(layout: layout_lib.Layout, state: _State, slots: int) -> _State:
  """Moves unfinished replies to `slots` slots of each device; ended replies fill up the rest."""

  def unfinished_first(done: Array) -> Array:
    return jnp.argsort(done, stable=True)[:slots]

  kept = layout.per_shard(unfinished_first, ((state.finished, ("slots",)),))

  def select_kept(x: Array) -> Array:
    axes = ("slots", *[None] * (x.ndim - 1))
    return layout.per_shard(lambda x, kept: x[kept], ((x, axes), (kept, ("slots",))))

  index, cache = state.index, state.cache.select_slots(layout, kept)
  rest = jax.tree.map(select_kept, dataclasses.replace(state, index=None, cache=None))
  return dataclasses.replace(rest, index=index, cache=cache)


Results = tuple[Int[Array, "slots time"], Float[Array, "slots time"], Int[Array, "slots"]]


def _results(state: _State) -> Results:
  """Tokens, log-probs and lengths of the replies in the slots."""
  return state.tokens, state.log_probs, state.lengths


@functools.partial(jax.jit, static_argnames="layout", donate_argnames="results")
def _collect(layout: layout_lib.Layout, state: _State, results: Results) -> Results:
  """Writes the slots' results to the slots in which their replies started."""

  def write_home(results: Array, cache_slot: Array, x: Array) -> Array:
    return results.at[cache_slot].set(x)

  def write_results(result: Array, x: Array) -> Array:
    axes = ("slots", *[None] * (x.ndim - 1))
    return layout.per_shard(write_home, ((result, axes), (state.cache_slot, ("slots",)), (x, axes)))

  tokens, log_probs, lengths = map(write_results, results, _results(state))
  return tokens, log_probs, lengths


@functools.partial(jax.jit, static_argnames=("layout", "shape"))
def _in_order(
  layout: layout_lib.Layout, results: Results, shape: tuple[int, int]
) -> records.Rollout:
  """The rollout of replies whose results are in the slots in which they started.

  layout: that of training, which the rollout gets.
  """
  places = slot_layout_lib.SlotLayout.for_groups(layout.decoding, *shape)
  tokens, log_probs, lengths = (
    layout.place(
      places.to_reply_order(x).reshape(*shape, *x.shape[1:]), ("prompts", *[None] * x.ndim)
    )
    for x in results
  )
  return slot_layout_lib.one_turn_rollout(tokens, log_probs, lengths)


def reply_keys(
  key: Key[Array, "*slots"], prompt: Int[Array, "slots"], group_index: Int[Array, "slots"]
) -> Key[Array, "slots"]:
  """A key for each reply, folded from the index of its prompt, then from its index in the group."""

  def fold_in_reply(key: Array, prompt: Array, group_index: Array) -> Array:
    return jax.random.fold_in(jax.random.fold_in(key, prompt), group_index)

  return jax.vmap(fold_in_reply, in_axes=(0 if key.ndim else None, 0, 0))(key, prompt, group_index)


def sample_token(
  logits: Float[Array, "slots vocab"],
  keys: Key[Array, "slots"],
  index: Int[Array, "*slots"],
  decoding: Decoding,
) -> tuple[Int[Array, "slots"], Float[Array, "slots"]]:
  """Samples a token for each slot, and returns it with its log-prob.

  logits: already divided by the temperature and without tokens that are not allowed, as
    `forward.token_logits` returns them. `decoding.temperature` only tells whether to be greedy.
  index: number of the step, folded into the keys of the slots.
  """
  log_probs, kept_mass = jax.nn.log_softmax(logits), None
  if decoding.temperature == 0:
    token = jnp.argmax(logits, axis=-1)
  else:
    weights = jnp.exp(log_probs)
    kept = likely_tokens.keep_likely(
      weights, top_p=decoding.top_p, top_k=decoding.top_k, min_p=decoding.min_p
    )
    token = inverse_cdf.sample(kept, uniform(keys, index))
    if decoding.kept_log_probs and kept is not weights:
      kept_mass = kept.sum(axis=-1)
  token = token.astype(jnp.int32)
  log_prob = jnp.take_along_axis(log_probs, token[:, None], axis=-1)[:, 0]
  return token, log_prob if kept_mass is None else log_prob - jnp.log(kept_mass)


def uniform(keys: Key[Array, "slots"], index: Int[Array, "*slots"]) -> Float[Array, "slots"]:
  """A random number in (0, 1) for each slot; `index` is folded into its key."""

  def draw_uniform(key: Array, index: Array) -> Array:
    # `uniform` gives multiples of 2^-23 from 0 on. Half a step is added because 0 would draw the
    # first token, whatever its probability.
    return jax.random.uniform(jax.random.fold_in(key, index)) + 2.0**-24

  return jax.vmap(draw_uniform)(keys, jnp.broadcast_to(index, keys.shape))
