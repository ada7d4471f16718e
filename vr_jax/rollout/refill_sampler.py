"""Samples groups of replies in fewer slots than replies: a slot that is free gets the next reply.

Prompts are prefilled a few at a time, into prompt slots, and replies are admitted in the order of
prompts. So the replies of a group decode at about the same time, and each step reads the keys of
their prompt once. Decoding is one compiled program, which also serves requests (`turn_decode`): a
chunk of steps for a fixed number of slots. Replies are admitted between two chunks.

Device memory: `decoding.slots` caches of `max_new_tokens`, instead of one for each reply, and keys
of `prompt_slots` prompts, instead of all. A prompt keeps its slot until all its replies have ended.
While all prompt slots are taken, free slots stay empty.

At the end of a batch free slots begin the replies to the next one (`sample`). These pause when the
batch has ended: their tokens and log-probs stay on the host, and after the update they go on, with
keys and values of the new parameters.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
from typing import cast

from flax import nnx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, PyTree
import numpy as np

from vr_jax import records
from vr_jax.models import interface
from vr_jax.models import layout as layout_lib
from vr_jax.models.common import slots as slots_lib
from vr_jax.parallel import same_programs
from vr_jax.rollout import (
  prompt_slots,
  refill_queue,
  refill_slots,
  sampler,
  turn_decode,
  written_replies,
)
from vr_jax.rollout import slot_layout as slot_layout_lib

CHUNK = 32  # most steps between two admissions
_READ_TOGETHER = 8  # most replies of a device that are read again in one pass


@dataclasses.dataclass(frozen=True, kw_only=True)
class NextBatch:
  """The batch whose replies begin in the slots that the end of a step leaves free.

  prompt: makes its prompts, of the same shapes as this batch's; called when the first one begins.
  key: of its own step.
  """

  prompt: Callable[[], records.Prompt]
  key: Key[Array, ""]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampledBatch:
  """The replies to a batch, and what sampling cost.

  computed_tokens: decoded, or read again to go on; ended replies and empty slots are counted too,
    prompts are not.
  begun: replies of the next batch; None without one.
  """

  rollout: records.Rollout
  computed_tokens: int
  begun: written_replies.WrittenReplies | None = None


def sample_counting(
  graphdef: nnx.GraphDef,
  params: PyTree,
  prompt: records.Prompt,
  allowed_tokens: Bool[Array, "vocab"],
  key: Key[Array, ""],
  *,
  decoding: sampler.Decoding,
) -> tuple[records.Rollout, int]:
  """Draws what `sampler.sample_counting` draws, in `decoding.slots` slots.

  Attention adds up in another order, so that log-probs differ by rounding. Also returns how many
  tokens were computed, with those of ended replies and of empty slots.
  """
  sampled = sample(graphdef, params, prompt, allowed_tokens, key, decoding=decoding)
  return sampled.rollout, sampled.computed_tokens


def sample(
  graphdef: nnx.GraphDef,
  params: PyTree,
  prompt: records.Prompt,
  allowed_tokens: Bool[Array, "vocab"],
  key: Key[Array, ""],
  *,
  decoding: sampler.Decoding,
  begun: written_replies.WrittenReplies | None = None,
  next_batch: NextBatch | None = None,
) -> SampledBatch:
  """Draws the replies to a batch, and begins those to the next one while slots are free.

  begun: replies that have tokens already, of other parameters maybe; they get the rest. Their keys
    and values are computed anew.
  next_batch: the next batch; None: slots stay empty once no reply waits.
  """
  training_layout = nnx.merge(graphdef, params).layout
  layout, time = training_layout.decoding, decoding.max_new_tokens
  places = refill_queue.RefillLayout.choose(
    training_layout, len(prompt.tokens), decoding.group, decoding.slots
  )
  batches = _make_batches(prompt, begun, next_batch, decoding=decoding, layout=layout)
  keys = jnp.stack([key, key if next_batch is None else next_batch.key])
  ended = [batch.written.ended for batch in batches]
  blocks = [refill_queue.BlockQueue(block, places, ended) for block in range(places.blocks)]
  running: list[refill_queue.SlotReply | None] = [None] * (places.devices * places.slots)
  window = decoding.repetition_stop.window
  prefix, state = _open_slots(
    graphdef, params, prompt, places=places, slots=len(running), length=time, window=window
  )
  # Prefilling reads the parameters as training has them, as in `sampler.sample`.
  decode_params = sampler.decoding_params(graphdef, params, int8_weights=decoding.int8_weights)
  chunk, computed = min(CHUNK, time), 0
  while not all(block.is_done for block in blocks):
    is_new = np.zeros(len(running), bool)
    prefix = _fill_slots(graphdef, params, batches, prefix, blocks, running, is_new, places=places)
    if is_new.any():
      prompt_slot = np.array([0 if reply is None else reply.prompt_slot for reply in running])
      state = _begin_replies(graphdef, params, prefix, state, is_new, prompt_slot.astype(np.int32))
    slots = refill_slots.chunk_slots(running, places, batches, time)
    state, read_again = _read_again(
      graphdef, decode_params, prefix, state, running, batches, slots, is_new, places=places
    )
    chosen, stop = refill_slots.choose_slots(slots, places, blocks, decoding.slot_fractions)
    state, decoded = turn_decode.decode(
      graphdef,
      decode_params,
      prefix,
      state,
      jax.tree.map(lambda x, chosen=chosen: x[chosen], slots),
      allowed_tokens,
      keys,
      jnp.int32(stop),
      decoding=decoding,
      chunk=chunk,
    )
    steps = refill_slots.add_tokens(decoded, chosen, batches, blocks, running, layout=layout)
    computed += read_again + len(chosen) * steps
  written = batches[0].written
  return SampledBatch(
    rollout=_rollout(training_layout, written.tokens, written.log_probs, written.lengths),
    computed_tokens=computed,
    begun=batches[1].written if next_batch is not None else None,
  )


def _make_batches(
  prompt: records.Prompt,
  begun: written_replies.WrittenReplies | None,
  next_batch: NextBatch | None,
  *,
  decoding: sampler.Decoding,
  layout: layout_lib.Layout,
) -> list[refill_slots.RefillBatch]:
  """This batch and, if there is one, the next; `begun` is copied."""
  shape = len(prompt.tokens), decoding.group, decoding.max_new_tokens
  make_batch = functools.partial(refill_slots.RefillBatch, layout=layout)
  nothing = written_replies.WrittenReplies.none
  batches = [
    make_batch(make_prompt=lambda: prompt, written=begun.copy() if begun else nothing(*shape))
  ]
  if next_batch is not None:
    batches.append(make_batch(make_prompt=next_batch.prompt, written=nothing(*shape)))
  return batches


def _fill_slots(
  graphdef: nnx.GraphDef,
  params: PyTree,
  batches: Sequence[refill_slots.RefillBatch],
  prefix: interface.Prefix,
  blocks: Sequence[refill_queue.BlockQueue],
  running: list[refill_queue.SlotReply | None],
  is_new: Bool[np.ndarray, "slots"],
  *,
  places: refill_queue.RefillLayout,
) -> interface.Prefix:
  """Prefills prompts, and puts waiting replies into empty slots of `running`, noted in `is_new`."""
  while True:
    for slot, reply in enumerate(running):
      block = blocks[slot // places.block_slots]
      if reply is None and block.is_next_resident():
        running[slot], is_new[slot] = block.admit(), True
    begins = [i * places.block_slots for i in range(places.blocks)]
    # One pass has prompts of one batch; into out of range is dropped.
    index = np.zeros((len(batches), places.blocks, places.prefill), np.int32)
    into = np.full_like(index, places.prompt_slots)
    for number, (block, begin) in enumerate(zip(blocks, begins, strict=True)):
      has_free_slot = None in running[begin : begin + places.block_slots]
      needed = has_free_slot and bool(block.waiting) and not block.is_next_resident()
      batch, load = block.load(needed=needed)
      for column, (row, target) in enumerate(load):
        index[batch, number, column] = row - number * places.prompts
        into[batch, number, column] = target
    is_loaded = (into < places.prompt_slots).any(axis=(1, 2))
    if not is_loaded.any():
      return prefix
    for number in np.flatnonzero(is_loaded).tolist():
      at = index[number].reshape(-1), into[number].reshape(-1)
      prefix = _load_prompts(graphdef, params, batches[number].prompt, prefix, *at)


def _read_again(
  graphdef: nnx.GraphDef,
  params: PyTree,
  prefix: interface.Prefix,
  state: turn_decode.EpisodeDecodeState,
  running: Sequence[refill_queue.SlotReply | None],
  batches: Sequence[refill_slots.RefillBatch],
  slots: turn_decode.ChunkSlots,
  is_new: Bool[np.ndarray, "slots"],
  *,
  places: refill_queue.RefillLayout,
) -> tuple[turn_decode.EpisodeDecodeState, int]:
  """Reads the tokens of new replies that go on, a few replies of each device at a time.

  Also returns how many tokens were computed.
  """
  left, computed = is_new & (np.asarray(slots.step) > 0), 0
  while left.any():
    chosen = places.choose_slots(left, min(_READ_TOGETHER, places.slots))
    added = _written_tokens(running, chosen, left[chosen], batches, slots, places.slots)
    computed += added[0].tokens.size
    state = turn_decode.append_replies(graphdef, params, prefix, state, *added)
    left[chosen] = False
  return state, computed


def _written_tokens(
  running: Sequence[refill_queue.SlotReply | None],
  chosen: Int[np.ndarray, "rows"],
  goes_on: Bool[np.ndarray, "rows"],
  batches: Sequence[refill_slots.RefillBatch],
  slots: turn_decode.ChunkSlots,
  no_slot: int,
) -> tuple[records.Prompt, slots_lib.CacheRows]:
  """The tokens of replies that go on, as `turn_decode.append_replies` takes them.

  chosen: slots of replies. goes_on: which of them are read.
  no_slot: the cache slot of the others. Few lengths occur, since each is compiled once.
  """
  slots = jax.tree.map(lambda x: np.asarray(x)[chosen], slots)
  lengths = np.where(goes_on, slots.step, 0)
  most = batches[0].written.tokens.shape[-1]
  length = min(most, CHUNK * 2 ** math.ceil(math.log2(max(1, lengths.max() / CHUNK))))
  tokens = np.zeros((len(chosen), length), np.int32)
  for row in np.flatnonzero(goes_on).tolist():
    reply = cast(refill_queue.SlotReply, running[chosen[row]])
    whole = batches[reply.batch].written.tokens[reply.row, reply.group_index]
    tokens[row, : lengths[row]] = whole[: lengths[row]]
  steps = np.arange(length, dtype=np.int32)
  kind = np.where(steps < lengths[:, None], records.Kind.TEXT, records.Kind.PAD)
  axes = batches[0].prompt.positions.shape[-1]
  written = records.Prompt(
    tokens=tokens,
    kind=kind.astype(np.int32),
    positions=np.broadcast_to(steps[:, None], (*tokens.shape, axes)),
    next_position=lengths.astype(np.int32),
    media_index=np.full_like(tokens, -1),
    vision=None,
  )
  rows = dataclasses.replace(
    slots.rows,
    cache_slot=np.where(goes_on, slots.rows.cache_slot, no_slot).astype(np.int32),
    written=np.zeros_like(slots.rows.written),
    position=(slots.rows.position - slots.rows.written).astype(np.int32),
  )
  return written, rows


@same_programs.compared
@functools.partial(jax.jit, static_argnames=("graphdef", "places", "slots", "length", "window"))
def _open_slots(
  graphdef: nnx.GraphDef,
  params: PyTree,
  prompt: records.Prompt,
  *,
  places: refill_queue.RefillLayout,
  slots: int,
  length: int,
  window: int,
) -> tuple[interface.Prefix, turn_decode.EpisodeDecodeState]:
  """Empty prompt slots and slots."""
  model = nnx.merge(graphdef, params)
  one = jax.eval_shape(model.prefill, prompt)
  layout = model.layout.decoding
  prefix = prompt_slots.blank_prefix(layout, one, places.blocks * places.prompt_slots)
  hidden = jnp.zeros((slots, one.hidden.shape[-1]), one.hidden.dtype)
  return prefix, turn_decode.EpisodeDecodeState(
    hidden=layout.place(hidden, ("slots", None)),
    cache=model.init_cache(prefix, slots, length),
    media=(),
    last_tokens=turn_decode.no_last_tokens(layout, slots, window),
  )


@same_programs.compared
@functools.partial(jax.jit, static_argnames="graphdef", donate_argnames="prefix")
def _load_prompts(
  graphdef: nnx.GraphDef,
  params: PyTree,
  prompt: records.Prompt,
  prefix: interface.Prefix,
  index: Int[Array, "rows"],
  into: Int[Array, "rows"],
) -> interface.Prefix:
  """Prefills some prompts of each block, and puts their keys and values into prompt slots.

  index, into: prompts and slots within the block, for all blocks in turn.
  """
  model = nnx.merge(graphdef, params)
  layout = model.layout.decoding
  # Else XLA may want them split as prompts are, which the mesh of the parameters can't express.
  index, into = (layout.place(x, (None,)) for x in (index, into))

  def put(x: Array, new: Array, axes: layout_lib.Axes) -> Array:
    rows = (slice(None),) * axes.index("prompts")
    return layout.per_shard(
      lambda x, new, into: x.at[(*rows, into)].set(new, mode="drop"),
      ((x, axes), (new, axes), (into, ("prompts",))),
    )

  return prompt_slots.put_prompts(
    prefix, model.prefill(prompt_slots.take_prompts(layout, prompt, index)), put
  )


@same_programs.compared
@functools.partial(jax.jit, static_argnames="graphdef", donate_argnames="state")
def _begin_replies(
  graphdef: nnx.GraphDef,
  params: PyTree,
  prefix: interface.Prefix,
  state: turn_decode.EpisodeDecodeState,
  is_new: Bool[Array, "slots"],
  prompt_slot: Int[Array, "slots"],
) -> turn_decode.EpisodeDecodeState:
  """Lets new replies begin where their prompts end."""
  model = nnx.merge(graphdef, params)
  layout = model.layout.decoding
  is_new, prompt_slot = (layout.place(x, ("slots",)) for x in (is_new, prompt_slot))
  decode_slots = slots_lib.DecodeSlots(
    prompt=prompt_slot, group_index=jnp.zeros_like(prompt_slot), group=1
  )
  first = model.gather_for_slots(prefix.hidden, decode_slots)
  hidden = jnp.where(is_new[:, None], first, state.hidden)
  return dataclasses.replace(state, hidden=layout.place(hidden, ("slots", None)))


@functools.partial(jax.jit, static_argnames="layout")
def _rollout(
  layout: layout_lib.Layout,
  tokens: Int[Array, "prompts group time"],
  log_probs: Float[Array, "prompts group time"],
  lengths: Int[Array, "prompts group"],
) -> records.Rollout:
  """The replies, on the devices of their prompts."""
  tokens, log_probs = (layout.place(x, ("prompts", None, None)) for x in (tokens, log_probs))
  return slot_layout_lib.one_turn_rollout(
    tokens, log_probs, layout.place(lengths, ("prompts", None))
  )
