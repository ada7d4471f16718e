"""Samples groups of replies in fewer slots than replies: a slot that is free gets the next reply.

Prompts are prefilled a few at a time, into prompt slots, and replies are admitted in the order of
prompts. So the replies of a group decode at about the same time, and each step reads the keys of
their prompt once. Decoding is one compiled program, which also serves requests (`turn_decode`): a
chunk of steps for a fixed number of slots. Replies are admitted between two chunks.

Device memory: `decoding.slots` caches of `max_new_tokens`, instead of one for each reply, and keys
of `prompt_slots` prompts, instead of all. A prompt keeps its slot until all its replies have ended.
While all prompt slots are taken, free slots stay empty.
"""

from collections import deque
from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any

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
from vr_jax.rollout import sampler, turn_decode
from vr_jax.rollout import slot_layout as slot_layout_lib

CHUNK = 32  # most steps between two admissions
_WAVES = 2  # the prompt slots hold the groups of all slots so many times


@dataclasses.dataclass(frozen=True, kw_only=True)
class RefillLayout:
  """Slots of a step's replies. A block is a share of the prompts, as in `SlotLayout`.

  slots: slots of one device.
  prompt_slots: prompts of a block whose keys are kept.
  prefill: prompts of a block that are prefilled together.
  """

  devices: int
  blocks: int
  prompts: int
  slots: int
  prompt_slots: int
  prefill: int

  @property
  def block_slots(self) -> int:
    """Slots of the devices that share a block."""
    return self.devices // self.blocks * self.slots

  @classmethod
  def choose(
    cls, layout: layout_lib.Layout, prompts: int, group: int, slots: int
  ) -> "RefillLayout":
    """The layout of `group` replies to each of `prompts` prompts in about `slots` slots.

    layout: that of training, which prefills prompts.
    """
    places = slot_layout_lib.SlotLayout.for_groups(layout.decoding, prompts, group)
    devices, blocks = places.devices, places.blocks
    per_device = min(-(-slots // devices), places.slots)
    groups = math.ceil(devices // blocks * per_device / group)

    def is_split_alike(count: int) -> bool:
      return layout.decoding.shards(("prompts",), (blocks * count,))[0] == blocks

    def prefilling_devices(count: int) -> int:
      return layout.shards(("prompts",), (blocks * count,))[0]

    of_block = prompts // blocks
    most = range(1, min(groups, of_block) + 1)
    prefill = max(filter(is_split_alike, most), key=lambda n: (prefilling_devices(n), n))
    wanted = min(_WAVES * groups, of_block)
    prompt_slots = min(n for n in range(wanted, of_block + 1) if is_split_alike(n))
    return cls(
      devices=devices,
      blocks=blocks,
      prompts=of_block,
      slots=per_device,
      prompt_slots=prompt_slots,
      prefill=prefill,
    )


@dataclasses.dataclass(kw_only=True, eq=False)
class _Reply:
  """A reply in a slot. row: index of its prompt in the batch; the others count in its block."""

  block: int
  row: int
  prompt_slot: int
  group_index: int
  written: int = 0


class BlockQueue:
  """What the host knows of a block: which prompts have keys, and which replies wait."""

  def __init__(self, block: int, places: RefillLayout, group: int):
    self.block, self._places, self._group = block, places, group
    self.waiting = deque((p, g) for p in range(places.prompts) for g in range(group))
    self._free = deque(range(places.prompt_slots))
    self._resident: dict[int, int] = {}
    self._loaded = 0  # prompts are loaded in order
    self._unfinished = [group] * places.prompts

  def load(self, *, needed: bool) -> list[tuple[int, int]]:
    """Prompts to prefill next, with their slots: as many as fit one pass, or none.

    needed: whether to start a pass that is not full.
    """
    count = min(self._places.prefill, self._places.prompts - self._loaded)
    if len(self._free) < count and not needed:
      return []
    new = [(self._loaded + i, self._free.popleft()) for i in range(min(count, len(self._free)))]
    self._loaded += len(new)
    self._resident.update(new)
    return new

  def is_next_resident(self) -> bool:
    """Whether the prompt of the next waiting reply has keys."""
    return bool(self.waiting) and self.waiting[0][0] in self._resident

  def admit(self) -> _Reply:
    """Takes the next waiting reply, whose prompt has keys."""
    prompt, group_index = self.waiting.popleft()
    return _Reply(
      block=self.block,
      row=self.block * self._places.prompts + prompt,
      prompt_slot=self._resident[prompt],
      group_index=group_index,
    )

  def end(self, reply: _Reply) -> None:
    """Frees the prompt slot of a group whose last reply has ended."""
    prompt = reply.row - self.block * self._places.prompts
    self._unfinished[prompt] -= 1
    if not self._unfinished[prompt]:
      self._free.append(self._resident.pop(prompt))


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
  training_layout = nnx.merge(graphdef, params).layout
  layout = training_layout.decoding
  prompts, group, time = len(prompt.tokens), decoding.group, decoding.max_new_tokens
  places = RefillLayout.choose(training_layout, prompts, group, decoding.slots)
  chunk = min(CHUNK, time)
  next_position = jax.device_get(turn_decode.replicate(layout, jnp.asarray(prompt.next_position)))
  tokens = np.zeros((prompts, group, time), np.int32)
  log_probs, lengths = np.zeros(tokens.shape, np.float32), np.zeros((prompts, group), np.int32)
  blocks = [BlockQueue(block, places, group) for block in range(places.blocks)]
  running: list[_Reply | None] = [None] * (places.devices * places.slots)
  prefix, state = _open_slots(
    graphdef,
    params,
    prompt,
    places=places,
    slots=len(running),
    length=time,
    window=decoding.repetition_stop.window,
  )
  # Prefilling reads the parameters as training has them, as in `sampler.sample`.
  decode_params = sampler.decoding_params(graphdef, params, int8_weights=decoding.int8_weights)
  computed = 0
  while True:
    prefix, state = _fill_slots(
      graphdef, params, prompt, prefix, state, blocks, running, places=places
    )
    slots = _chunk_slots(running, places, next_position, time)
    active = (slots.left > 0).reshape(places.devices, -1).sum(axis=1).max()
    if not active:
      break
    waiting = any(block.waiting for block in blocks)
    stop = stop_at_unfinished(places.slots, int(active)) if waiting else 0
    state, decoded = turn_decode.decode(
      graphdef,
      decode_params,
      prefix,
      state,
      slots,
      allowed_tokens,
      key,
      jnp.int32(stop),
      decoding=decoding,
      chunk=chunk,
    )
    new, new_log_probs, counts, ended = jax.device_get(
      (decoded.tokens, decoded.log_probs, decoded.counts, decoded.ended)
    )
    computed += len(running) * _count_steps(layout, counts, ended, chunk)
    for slot, reply in enumerate(running):
      if reply is None:
        continue
      place = reply.row, reply.group_index
      span = slice(reply.written, reply.written + counts[slot])
      tokens[place][span] = new[slot, : counts[slot]]
      log_probs[place][span] = new_log_probs[slot, : counts[slot]]
      reply.written = lengths[place] = span.stop
      if ended[slot]:
        blocks[reply.block].end(reply)
        running[slot] = None
  return _rollout(training_layout, tokens, log_probs, lengths), computed


def stop_at_unfinished(slots: int, active: int) -> int:
  """Unfinished replies of a device at which a chunk stops for waiting ones, with some slots active.

  An eighth of the slots is to be free, since each stop costs about as much as a few steps.
  """
  return min(slots - max(1, slots // 8), active - 1)


def _count_steps(
  layout: layout_lib.Layout,
  counts: Int[np.ndarray, "slots"],
  ended: Bool[np.ndarray, "slots"],
  chunk: int,
) -> int:
  """Steps that a chunk took, which end later than the last reply with several devices."""
  steps = int(counts.max())
  if ended.all() and layout.ways("slots") > 1:
    return min(chunk, sampler.CHECK_EVERY * -(-steps // sampler.CHECK_EVERY))
  return steps


def _fill_slots(
  graphdef: nnx.GraphDef,
  params: PyTree,
  prompt: records.Prompt,
  prefix: interface.Prefix,
  state: turn_decode.EpisodeDecodeState,
  blocks: list[BlockQueue],
  running: list[_Reply | None],
  *,
  places: RefillLayout,
) -> tuple[interface.Prefix, turn_decode.EpisodeDecodeState]:
  """Prefills prompts and puts waiting replies into empty slots of `running`, which is changed."""
  is_new = np.zeros(len(running), bool)
  while True:
    for slot, reply in enumerate(running):
      block = blocks[slot // places.block_slots]
      if reply is None and block.is_next_resident():
        running[slot], is_new[slot] = block.admit(), True
    begins = [i * places.block_slots for i in range(places.blocks)]
    loads = []
    for block, begin in zip(blocks, begins, strict=True):
      has_free_slot = None in running[begin : begin + places.block_slots]
      needed = has_free_slot and bool(block.waiting) and not block.is_next_resident()
      loads.append(block.load(needed=needed))
    if not any(loads):
      break
    index = np.zeros((places.blocks, places.prefill), np.int32)
    into = np.full_like(index, places.prompt_slots)  # out of range: dropped
    for row, load in enumerate(loads):
      for column, (source, target) in enumerate(load):
        index[row, column], into[row, column] = source, target
    prefix = _load_prompts(graphdef, params, prompt, prefix, index.reshape(-1), into.reshape(-1))
  if is_new.any():
    prompt_slot = np.array([0 if reply is None else reply.prompt_slot for reply in running])
    state = _begin_replies(graphdef, params, prefix, state, is_new, prompt_slot.astype(np.int32))
  return prefix, state


def _chunk_slots(
  running: list[_Reply | None],
  places: RefillLayout,
  next_position: Int[np.ndarray, "prompts"],
  time: int,
) -> turn_decode.ChunkSlots:
  """The replies in the slots, as decoding takes them."""
  cache_slot = np.tile(np.arange(places.slots, dtype=np.int32), places.devices)
  prompt_slot = np.full(len(running), places.prompt_slots, np.int32)
  written, row, group_index, left, position = np.zeros((5, len(running)), np.int32)
  for slot, reply in enumerate(running):
    if reply is not None:
      prompt_slot[slot], written[slot] = reply.prompt_slot, reply.written
      row[slot], group_index[slot] = reply.row, reply.group_index
      left[slot] = time - reply.written
      position[slot] = next_position[reply.row] + reply.written
  return turn_decode.ChunkSlots(
    rows=slots_lib.CacheRows(
      cache_slot=cache_slot, prompt_slot=prompt_slot, written=written, position=position
    ),
    row=row,
    group_index=group_index,
    step=written,
    left=left,
  )


def _take_prompts(
  layout: layout_lib.Layout, prompt: records.Prompt, index: Int[Array, "rows"]
) -> records.Prompt:
  """Some prompts of each block. index: within the block, for all blocks in turn."""

  def take(x: Array) -> Array:
    axes = ("prompts", *[None] * (x.ndim - 1))
    return layout.per_shard(
      lambda x, index: x[index],
      ((x, axes), (index, ("prompts",))),
      out=(axes, (len(index), *x.shape[1:])),
    )

  return jax.tree.map(lambda x: take(jnp.asarray(x)), prompt)


@same_programs.compared
@functools.partial(jax.jit, static_argnames=("graphdef", "places", "slots", "length", "window"))
def _open_slots(
  graphdef: nnx.GraphDef,
  params: PyTree,
  prompt: records.Prompt,
  *,
  places: RefillLayout,
  slots: int,
  length: int,
  window: int,
) -> tuple[interface.Prefix, turn_decode.EpisodeDecodeState]:
  """Empty prompt slots and slots."""
  model = nnx.merge(graphdef, params)
  one = jax.eval_shape(model.prefill, prompt)
  layout = model.layout.decoding
  prefix = blank_prefix(layout, one, places.blocks * places.prompt_slots)
  hidden = jnp.zeros((slots, one.hidden.shape[-1]), one.hidden.dtype)
  return prefix, turn_decode.EpisodeDecodeState(
    hidden=layout.place(hidden, ("slots", None)),
    cache=model.init_cache(prefix, slots, length),
    media=(),
    last_tokens=turn_decode.no_last_tokens(layout, slots, window),
  )


def blank_prefix(layout: layout_lib.Layout, like: Any, prompts: int) -> interface.Prefix:
  """What `prompts` prompts would leave, all zeros. like: the shapes of a Prefix.

  All tokens are valid: a softmax over none would not be finite.
  """

  def blank(x: jax.ShapeDtypeStruct, axes: layout_lib.Axes) -> Array:
    shape = [prompts if axis == "prompts" else n for n, axis in zip(x.shape, axes, strict=True)]
    return layout.place((jnp.ones if x.dtype == bool else jnp.zeros)(shape, x.dtype), axes)

  return like.placed(blank)


def put_prompts(
  prefix: interface.Prefix,
  new: interface.Prefix,
  put: Callable[[Array, Array, layout_lib.Axes], Array],
) -> interface.Prefix:
  """The prefix with new prompts: `put(array, new array, logical axes)` for each of its arrays."""
  arrays: list[Array] = []

  def note(x: Array, axes: layout_lib.Axes) -> Array:
    del axes
    arrays.append(x)
    return x

  new.placed(note)
  remaining = iter(arrays)
  return prefix.placed(lambda x, axes: put(x, next(remaining), axes))


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

  return put_prompts(prefix, model.prefill(_take_prompts(layout, prompt, index)), put)


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
