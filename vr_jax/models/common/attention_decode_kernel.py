"""Attention of a decoding step as one Pallas kernel for TPUs (emulated on CPU, which is slow).

Computes what `attention_decode.step` computes, and reads less: the keys of a prompt once for all
its replies, and only as far as the prompt goes; the keys of a reply only as far as it is written.
Its operands are the keys and values of all layers as they lie in memory, and the layer is an index
into them: no layer is cut out of its stack. Logits stay in vector memory.

The queries of a prompt are the rows of one matrix: for each reply of the group in turn, the query
heads that share a key's head, padded to `ROWS`. The grid goes over prompts, over the keys' heads a
few at a time, and for these over

    blocks of the prompt | blocks of the first cache of reply 0, 1, … | blocks of the second …

Such a step multiplies one block by the rows that attend to it, and adds to a running softmax that
begins with the new token's own key. The number of steps is known at run time. Where a prompt or a
reply has less to read than another, its steps keep the block that they have: nothing is copied.

Source: arXiv 2205.14135, for the running softmax.
"""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vr_jax.models.common import layers
from vr_jax.models.common import slots as slots_lib

NAME = "decode_attention"  # of the kernel in compiled programs
ROWS = 8  # rows of a register
LANES = 128  # columns of a register; blocks have multiples of this many keys
MOST_KEYS = 2048  # of a block
# Bytes of a block's keys: so many that copying them takes longer than to begin a step.
PROMPT_BYTES, REPLY_BYTES = 2**20, 2**18
# What a step has in vector memory at most: heads, their queries, and logits of one head.
MOST_HEADS, MOST_ROWS, LOGITS = 8, 512, 2**18


class KeyOwners(NamedTuple):
  """What there is to read of each owner of keys, a prompt or a reply; int32 arrays [owners].

  source: the owner whose block is in memory: itself; where it has nothing to read, another one.
  begin: the first of its keys that is attended to.
  end: the one behind the last; at most `begin` where there are none.
  """

  source: Array
  begin: Array
  end: Array


@dataclasses.dataclass(frozen=True)
class StepPart:
  """One part of a prompt's steps: those about the prompt, or about one cache of all its replies.

  number: 0 for the prompt; 1, … for the caches.
  owners: of a prompt in this part: 1, or the replies of a group.
  group: replies of a group.
  block: keys of a block.
  """

  number: int
  owners: int
  group: int
  block: int

  def block_of(self, key: Array) -> Array:
    """The block of a key. Kernels have no floor division."""
    return jax.lax.div(key, self.block)

  def turn(self, prompt: Array, step: Array, counts: Sequence[Array]) -> tuple[Array, Array, Array]:
    """Which owner and which of its blocks a step is about; of another part, the nearest ones.

    counts: the most blocks that an owner has in each part.

    Returns the owner, the block counted from its first, and whether it is a step of this part.
    """
    before = counts[0] if self.number else 0
    before += sum(self.group * count for count in counts[1 : self.number])
    count = jnp.maximum(counts[self.number], 1)
    place = step - before
    inside = jnp.clip(place, 0, self.owners * count - 1)
    owner, index = jax.lax.div(inside, count), jax.lax.rem(inside, count)
    return prompt * self.owners + owner, index, place == inside

  def in_memory(self, owner: Array, turn: Array, owners: KeyOwners) -> tuple[Array, Array]:
    """The owner whose block is in memory at an owner's turn, and the index of that block."""
    source = owners.source[owner]
    first = self.block_of(owners.begin[source])
    last = jnp.maximum(self.block_of(owners.end[source] - 1), first)
    chosen = jnp.where(source > owner, first, jnp.minimum(first + turn, last))
    return source, jnp.where(source < owner, last, chosen)


def step(
  query: Float[Array, "slots heads head_dim"],
  key: Float[Array, "slots kv_heads head_dim"],
  value: Float[Array, "slots kv_heads head_dim"],
  prompt: Int[Array, "slots"],
  group_index: Int[Array, "slots"],
  layer: Int[Array, ""],
  prefix_key: Float[Array, "layers prompts kv_heads head_dim prefix"],
  prefix_value: Float[Array, "layers prompts kv_heads prefix head_dim"],
  prefix_length: Int[Array, "prompts"],
  *pasts: Array,
  group: int,
  forgets: Bool[Array, "slots"] | None = None,
  kept: int = 0,
  interpret: bool = False,
) -> Float[Array, "slots heads head_dim"]:
  """Attention of the new token of each slot to its prompt, to its reply and to itself.

  key, value: of the new tokens.
  prompt, group_index: as in `slots.DecodeSlots`; the result of an empty slot is meaningless.
  layer: index into the stacks.
  prefix_length: valid tokens of each prompt, which come first.
  pasts: key [layers, slots, kv_heads, head_dim, length], value [layers, slots, kv_heads, length,
    head_dim], begin [slots] and end [slots], of one cache or more. A reply attends to its keys from
    `begin` to before `end`.
  forgets: slots that attend to only the first `kept` tokens of their prompt; None: no slot does.
  interpret: emulate the kernel, on any platform.
  """
  slots, heads, head_dim = query.shape
  prompts, kv_heads = prefix_key.shape[1:3]
  per_key = heads // kv_heads
  padded = -(-per_key // ROWS) * ROWS
  at, shape = (prompt, group_index), (prompts, group)

  def rows_of_prompts(x: Array) -> Float[Array, "prompts kv_heads rows head_dim"]:
    x = jnp.pad(x, ((0, 0), (0, 0), (0, padded - per_key), (0, 0)))
    x = slots_lib.slots_to_groups(x, *at, shape).swapaxes(1, 2)
    return x.reshape(prompts, kv_heads, group * padded, head_dim).astype(jnp.float32)

  grouped = query.reshape(slots, kv_heads, per_key, head_dim)
  new = [jnp.broadcast_to(x[:, :, None], grouped.shape) for x in (key, value)]
  rows = [rows_of_prompts(x) for x in (grouped * head_dim**-0.5, *new)]
  limits = jnp.repeat(prefix_length, group)
  slot = slots_lib.slots_to_groups(jnp.arange(slots), *at, shape).reshape(-1)
  if forgets is not None:
    limits = jnp.where(forgets[slot], jnp.minimum(limits, kept), limits)
  is_live = jnp.zeros(prompts * group, bool)
  is_live = is_live.at[prompt * group + group_index].set(True, mode="drop")
  stacks = [prefix_key, prefix_value]
  ranges = []
  for first in range(0, len(pasts), 4):
    stacks += pasts[first : first + 2]
    begin, end = (x[slot] for x in pasts[first + 2 : first + 4])
    ranges.append((begin, jnp.where(is_live, end, 0)))
  together = _heads_together(kv_heads, group * padded)
  parts = choose_parts(stacks, group, together, padded)
  scalars = make_scalars(parts, layer, slot, is_live, limits, ranges)
  row_spec = pl.BlockSpec(
    (None, together, *rows[0].shape[2:]), lambda prompt, heads, *_: (prompt, heads, 0, 0)
  )
  limit_spec = pl.BlockSpec((None, group * padded, 1), lambda prompt, *_: (prompt, 0, 0))
  of_rows = (together, group * padded)
  mixed = pl.pallas_call(
    functools.partial(_kernel, parts=parts, padded=padded),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=len(scalars),
      grid=(prompts, kv_heads // together, scalars[0][1]),
      in_specs=[
        *[row_spec] * 3,
        limit_spec,
        *(spec for part in parts for spec in make_specs(part, together, head_dim)),
      ],
      out_specs=row_spec,
      scratch_shapes=[
        pltpu.VMEM((*of_rows, LANES), jnp.float32),
        pltpu.VMEM((*of_rows, LANES), jnp.float32),
        pltpu.VMEM((*of_rows, head_dim), jnp.float32),
      ],
    ),
    out_shape=jax.ShapeDtypeStruct(rows[0].shape, jnp.float32),
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
    cost_estimate=estimate_cost(query, group, rows, stacks),
    name=NAME,
    interpret=interpret,
  )(
    *scalars,
    *rows,
    jnp.repeat(limits, padded).reshape(prompts, -1, 1).astype(jnp.int32),
    *stacks,
  )
  mixed = mixed.reshape(prompts, kv_heads, group, padded, head_dim)[:, :, :, :per_key]
  found = slots_lib.groups_to_slots(mixed.swapaxes(1, 2), *at)
  return found.reshape(query.shape).astype(value.dtype)


def choose_parts(
  stacks: Sequence[Array], group: int, heads: int, padded: int
) -> tuple[StepPart, ...]:
  """The parts of a prompt's steps.

  stacks: keys and values of the prompts, then of each cache.
  heads: of the keys, that a step computes.
  padded: rows of a reply and a key's head.
  """
  parts = [StepPart(0, 1, group, choose_block(stacks[0], heads, group * padded, PROMPT_BYTES))]
  parts += [
    StepPart(number, group, group, choose_block(keys, heads, padded, REPLY_BYTES))
    for number, keys in enumerate(stacks[2::2], start=1)
  ]
  return tuple(parts)


def make_scalars(
  parts: Sequence[StepPart],
  layer: Int[Array, ""],
  slot: Int[Array, "replies"],
  is_live: Bool[Array, "replies"],
  limits: Int[Array, "replies"],
  ranges: Sequence[tuple[Array, Array]],
) -> list[Array]:
  """The int32 arrays by which the kernel finds its blocks, as it takes them.

  slot: of each reply of each prompt, in order.
  is_live: whether a reply has a slot.
  limits: tokens of its prompt that a reply attends to.
  ranges: `begin` and `end` [replies] in each cache.
  """
  shape = (-1, parts[0].group)
  longest = jnp.where(is_live, limits, 0).reshape(shape).max(axis=1)
  shortest = jnp.where(is_live, limits, longest.max()).reshape(shape).min(axis=1)
  owners = [_owners(jnp.zeros_like(longest), longest), *(_owners(*pair) for pair in ranges)]
  counts = [_count(*pair) for pair in zip(parts, owners, strict=True)]
  counts[0] = jnp.maximum(counts[0], 1)  # the first step begins the softmax, even of no prompt
  steps = counts[0] + sum(parts[0].group * count for count in counts[1:])
  scalars = [jnp.stack([layer, steps, *counts]), slot, shortest, *(x for o in owners for x in o)]
  return [x.astype(jnp.int32) for x in scalars]


def _heads_together(kv_heads: int, rows: int) -> int:
  """The most of the keys' heads that one step computes, one after the other.

  rows: queries of each.
  """
  most = max(1, min(MOST_HEADS, MOST_ROWS // rows))
  return max(heads for heads in range(1, most + 1) if kv_heads % heads == 0)


def choose_block(stack: Float[Array, "..."], heads: int, rows: int, size: int) -> int:
  """Keys of a block: all of them, or a multiple of `LANES`.

  stack: [layers, owners, kv_heads, head_dim, length].
  heads: of the keys, in a block.
  rows: queries of each head that a block is multiplied by.
  size: bytes of the block's keys, about.
  """
  head_dim, length = stack.shape[3:]
  most = min(size // (heads * head_dim * stack.dtype.itemsize), LOGITS // rows)
  most = max(min(most, MOST_KEYS) // LANES * LANES, LANES)
  if length <= most:
    return length
  even = -(-length // -(-length // most))
  return -(-even // LANES) * LANES


def estimate_cost(
  query: Float[Array, "slots heads head_dim"],
  group: int,
  rows: Sequence[Array],
  stacks: Sequence[Array],
) -> pl.CostEstimate:
  """What one call takes on average over the tokens of a reply.

  Prompts count as long as the array has room for, caches of replies as half of that: they fill up
  from empty.

  rows: the arrays that the kernel reads for each query; it writes one like the first.
  stacks: keys and values of the prompts, then of each cache.
  """
  slots, heads, head_dim = query.shape
  prompts, prefix = stacks[0].shape[1], stacks[0].shape[-1]
  written = sum(key.shape[-1] for key in stacks[2::2]) // 2
  pairs = heads * (prompts * group * prefix + slots * written)
  layer = [x.nbytes // x.shape[0] for x in stacks]
  of_rows = sum(x.nbytes for x in (*rows, rows[0]))
  return pl.CostEstimate(
    flops=4 * head_dim * pairs,
    transcendentals=pairs,
    bytes_accessed=sum(layer[:2]) + sum(layer[2:]) // 2 + of_rows,
  )


def _owners(begin: Int[Array, "owners"], end: Int[Array, "owners"]) -> KeyOwners:
  """Adds the sources: of an owner without keys the last one before it that has some, or the first
  one after it.
  """
  has_keys, index = end > begin, jnp.arange(len(end))
  last = jax.lax.cummax(jnp.where(has_keys, index, -1))
  return KeyOwners(jnp.where(last >= 0, last, jnp.argmax(has_keys)), begin, end)


def _count(part: StepPart, owners: KeyOwners) -> Int[Array, ""]:
  """The most blocks that an owner has in this part."""
  first, behind = owners.begin // part.block, -(-owners.end // part.block)
  return jnp.where(owners.end > owners.begin, behind - first, 0).max()


def make_specs(part: StepPart, heads: int, head_dim: int) -> list[pl.BlockSpec]:
  """The blocks of keys and of values that each step has in memory."""

  def place(prompt: Array, step: Array, scalars: Sequence[Any]) -> tuple[Any, Any, Any]:
    sizes, slot, _, *rest = scalars
    counts = [sizes[2 + i] for i in range(part.number + 1)]
    owner, turn, _ = part.turn(prompt, step, counts)
    owners = KeyOwners(*rest[3 * part.number : 3 * part.number + 3])
    source, block = part.in_memory(owner, turn, owners)
    return sizes[0], slot[source] if part.number else source, block

  def place_keys(prompt: Array, heads: Array, step: Array, *scalars: Any) -> tuple[Any, ...]:
    layer, row, block = place(prompt, step, scalars)
    return layer, row, heads, 0, block

  def place_values(prompt: Array, heads: Array, step: Array, *scalars: Any) -> tuple[Any, ...]:
    layer, row, block = place(prompt, step, scalars)
    return layer, row, heads, block, 0

  return [
    pl.BlockSpec((None, None, heads, head_dim, part.block), place_keys),
    pl.BlockSpec((None, None, heads, part.block, head_dim), place_values),
  ]


def _kernel(
  sizes: Any, slot: Any, shortest: Any, *refs: Any, parts: Sequence[StepPart], padded: int
):
  """The steps of the grid.

  sizes: layer, steps and blocks of an owner in each part.
  slot: of each reply; only the places of blocks need it.
  shortest: the least number of tokens of a prompt that one of its replies attends to.
  refs: `KeyOwners` of each part; queries, keys and values of new tokens; how many tokens of the
    prompt each row attends to; keys and values of each part; results; running maximum, sum and
    mixture.
  padded: rows of a reply.
  """
  del slot
  all_owners = [KeyOwners(*refs[3 * i : 3 * i + 3]) for i in range(len(parts))]
  query, new_key, new_value, limits, *stacks, out, top, total, mixed = refs[3 * len(parts) :]
  prompt, step = pl.program_id(0), pl.program_id(2)
  counts = [sizes[2 + i] for i in range(len(parts))]

  @pl.when(step == 0)
  def begin() -> None:
    logits = (query[...] * new_key[...]).sum(axis=-1, keepdims=True)
    top[...] = jnp.broadcast_to(logits, top.shape)
    total[...] = jnp.ones_like(total)
    mixed[...] = new_value[...]

  def add(rows: Any, keys: Any, values: Any, seen: Any = None, held: Any = None) -> None:
    """Adds a block to the softmax of some rows.

    seen: mask [#rows, keys] of what they attend to; held: [keys, 1], where there are values.
    """
    product = functools.partial(
      jnp.dot, precision=layers.precision(keys.dtype), preferred_element_type=jnp.float32
    )

    def add_to_head(head: Any, carry: None = None) -> None:
      at = head, rows
      logits = product(query[at].astype(keys.dtype), keys[head])
      logits = logits if seen is None else jnp.where(seen, logits, layers.MASKED)
      # Behind the end of an array a block holds anything, even what is not a number.
      value = values[head] if held is None else jnp.where(held, values[head], 0)
      before = top[at]
      after = jnp.maximum(before, logits.max(axis=-1, keepdims=True))
      share, scale = jnp.exp(logits - after[:, :1]), jnp.exp(before - after)
      total[at] = total[at] * scale + share.sum(axis=-1, keepdims=True)
      mixed[at] = mixed[at] * scale[:, :1] + product(share.astype(value.dtype), value)
      top[at] = after
      return carry

    if keys.shape[0] == 1:
      add_to_head(0)
    else:
      jax.lax.fori_loop(0, keys.shape[0], add_to_head, None)

  for part, owners in zip(parts, all_owners, strict=True):
    keys, values = stacks[2 * part.number : 2 * part.number + 2]
    owner, turn, is_here = part.turn(prompt, step, counts)
    start = (part.block_of(owners.begin[owner]) + turn) * part.block
    begins, ends = owners.begin[owner], owners.end[owner]
    if part.number:
      reply = owner - prompt * part.owners
      rows = pl.ds(pl.multiple_of(reply * padded, ROWS), padded)
      is_whole = (begins <= start) & (start + part.block <= ends)
    else:
      rows = slice(None)
      is_whole = start + part.block <= shortest[prompt]
    has_keys = is_here & (begins < ends) & (start < ends)

    @pl.when(has_keys & is_whole)
    def add_whole(rows=rows, keys=keys, values=values) -> None:
      add(rows, keys, values)

    @pl.when(has_keys & ~is_whole)
    def add_masked(
      rows=rows, keys=keys, values=values, start=start, begins=begins, ends=ends, part=part
    ) -> None:
      column = start + jax.lax.broadcasted_iota(jnp.int32, (1, part.block), 1)
      place = start + jax.lax.broadcasted_iota(jnp.int32, (part.block, 1), 0)
      seen = (column >= begins) & (column < (ends if part.number else limits[...]))
      add(rows, keys, values, seen, place < ends)

  @pl.when(step == sizes[1] - 1)
  def finish() -> None:
    out[...] = mixed[...] / total[:, :, :1]
