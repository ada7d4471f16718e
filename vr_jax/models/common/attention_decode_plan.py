"""What the decode kernel reads in which step of its grid (attention_decode_kernel.py).

Which blocks of keys there are depends on the lengths of prompts and replies, and not on the layer:
`make_plan` computes a table once a token, and the kernel looks up what to read.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from vr_jax.models.common import slots as slots_lib

ROWS = 8  # rows of a register
LANES = 128  # columns of a register; blocks have multiples of this many keys
MOST_KEYS = 2048  # of a block
# Bytes of a block's keys: so many that copying them takes longer than to begin a step.
PROMPT_BYTES, REPLY_BYTES = 2**20, 2**18
# What a step has in vector memory at most: heads, their queries, and logits of one head.
MOST_HEADS, MOST_ROWS, LOGITS = 8, 512, 2**18


class CachedKeys(NamedTuple):
  """Keys and values of replies in all layers, and which of them each reply attends to.

  key: [layers, slots, kv_heads, head_dim, length]; value: with the last two axes exchanged.
  begin, end: int32 [slots], the first position and the one behind the last.
  """

  key: Array
  value: Array
  begin: Array
  end: Array

  @classmethod
  def from_mask(cls, key: Array, value: Array, valid: Bool[Array, "slots length"]) -> "CachedKeys":
    """From a mask of keys, whose valid ones follow one another."""
    begin = jnp.argmax(valid, axis=1).astype(jnp.int32)
    return cls(key, value, begin, begin + valid.sum(axis=1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class KernelSizes:
  """Sizes of the kernel's grid and of the plan that it follows, on one device.

  Parts of a prompt's steps: 0 is about the prompt, the others about the caches of its replies. An
  owner of keys is a prompt in part 0, and a reply of a prompt in the others.

  slots: as in `step`.
  prompts, group: prompts, and replies of each.
  rows: queries of a reply that share a key's head, padded to a multiple of `ROWS`.
  heads: of the keys, that a step computes.
  blocks: keys of a block, for each part.
  most: blocks that an owner has room for, for each part.
  """

  slots: int
  prompts: int
  group: int
  rows: int
  heads: int
  blocks: tuple[int, ...]
  most: tuple[int, ...]

  @classmethod
  def choose(
    cls,
    shapes: Sequence[tuple[int, ...]],
    item_bytes: int,
    *,
    slots: int,
    group: int,
    per_key: int,
  ) -> "KernelSizes":
    """The sizes for keys of these shapes: of the prompts, then of each cache.

    shapes: (layers, owners, kv_heads, head_dim, length), owners being prompts or slots.
    item_bytes: of a number.
    per_key: query heads that share a key's head.
    """
    kv_heads, rows = shapes[0][2], -(-per_key // ROWS) * ROWS
    most_heads = max(1, min(MOST_HEADS, MOST_ROWS // (group * rows)))
    heads = max(n for n in range(1, most_heads + 1) if kv_heads % n == 0)
    blocks = []
    for part, (_, _, _, head_dim, length) in enumerate(shapes):
      size = REPLY_BYTES if part else PROMPT_BYTES
      blocks.append(_choose_block(head_dim, length, heads * item_bytes, size, group * rows))
    return cls(
      slots=slots,
      prompts=shapes[0][1],
      group=group,
      rows=rows,
      heads=heads,
      blocks=tuple(blocks),
      most=tuple(-(-shape[4] // block) for shape, block in zip(shapes, blocks, strict=True)),
    )

  @property
  def parts(self) -> range:
    """The parts of a prompt's steps."""
    return range(len(self.blocks))

  def owners(self, part: int) -> int:
    """Owners of keys that a prompt has in a part."""
    return self.group if part else 1

  @functools.cached_property
  def offsets(self) -> Mapping[str, tuple[int, int]]:
    """Where each array of the plan begins, and its length."""
    names, lengths = zip(*self._arrays(), strict=True)
    begins = itertools.accumulate(lengths, initial=0)
    return {name: (begin, n) for name, begin, n in zip(names, begins, lengths, strict=False)}

  @property
  def length(self) -> int:
    """Of a plan."""
    return sum(length for _, length in self.offsets.values())

  def _arrays(self) -> Iterator[tuple[str, int]]:
    steps = self.most[0] + self.group * sum(self.most[1:])
    yield "starts", len(self.blocks) + 1
    yield "shortest", self.prompts
    yield from ((name, self.prompts * self.group) for name in ("limit", "slot"))
    yield "reply", self.slots
    for part in self.parts:
      yield from ((f"{name} {part}", steps) for name in ("owner", "turn"))
      owners = self.prompts * self.owners(part)
      yield from ((f"{name} {part}", owners) for name in ("row", "low", "high", "begin", "end"))

  def place(self, name: str, part: int | None = None) -> int:
    """Where an array of the plan begins."""
    return self.offsets[name if part is None else f"{name} {part}"][0]

  def array(self, plan: Int[Array, "plan"], name: str) -> Int[Array, "..."]:
    """An array of the plan."""
    begin, length = self.offsets[name]
    return plan[begin : begin + length]


def make_plan(
  sizes: KernelSizes,
  prompt: Int[Array, "slots"],
  group_index: Int[Array, "slots"],
  prefix_length: Int[Array, "prompts"],
  *ranges: Int[Array, "slots"],
  forgets: Bool[Array, "slots"] | None = None,
  kept: int = 0,
) -> Int[Array, "plan"]:
  """Makes the table by which the kernel finds its blocks: the same for all layers.

  prompt, group_index: as in `slots.DecodeSlots`.
  prefix_length: valid tokens of each prompt, which come first.
  ranges: begin and end in each cache. A reply attends to its keys from `begin` to before `end`.
  forgets: slots that attend to only the first `kept` tokens of their prompt; None: no slot does.

  Returns int32 arrays, one after the other:
    starts       the first step of each part, and the number of steps
    shortest     the fewest tokens of a prompt that one of its replies attends to
    limit        tokens of its prompt that a reply attends to
    slot, reply  of each reply of each prompt, and the other way round
    owner, turn  for each step of a prompt: which of its owners, and which of the owner's blocks;
                 for steps of other parts the nearest
    row          which row of the keys an owner reads
    low, high    its blocks; of an owner without keys, those that are in memory anyway
    begin, end   its keys
  """
  shape, replies = (sizes.prompts, sizes.group), sizes.prompts * sizes.group
  reply = prompt * sizes.group + group_index
  slot = slots_lib.slots_to_groups(jnp.arange(sizes.slots), prompt, group_index, shape).reshape(-1)
  is_live = jnp.zeros(replies, bool).at[reply].set(True, mode="drop")
  limit = jnp.repeat(prefix_length, sizes.group)
  if forgets is not None:
    limit = jnp.where(forgets[slot], jnp.minimum(limit, kept), limit)
  longest = jnp.where(is_live, limit, 0).reshape(shape).max(axis=1)
  shortest = jnp.where(is_live, limit, longest.max()).reshape(shape).min(axis=1)
  arrays = {"shortest": shortest, "limit": limit, "slot": slot, "reply": reply}
  part_ranges = [(jnp.arange(sizes.prompts), jnp.zeros_like(longest), longest)]
  for begin, end in zip(ranges[::2], ranges[1::2], strict=True):
    part_ranges.append((slot, begin[slot], jnp.where(is_live, end[slot], 0)))
  start, starts = jnp.int32(0), [jnp.int32(0)]
  steps = jnp.arange(sizes.offsets["owner 0"][1])
  for part, (row, begin, end) in enumerate(part_ranges):
    block, owners = sizes.blocks[part], sizes.owners(part)
    has_keys = end > begin
    low, high = begin // block, (end - 1) // block
    count = jnp.where(has_keys, high - low + 1, 0).max()
    if part == 0:
      count = jnp.maximum(count, 1)  # the first step begins the softmax, even of no prompt
    inside = jnp.clip(steps - start, 0, owners * count - 1)
    start = start + owners * count
    starts.append(start)
    # What the last owner before has read is still in memory; else what the first one reads.
    before = jax.lax.cummax(jnp.where(has_keys, jnp.arange(len(end)), -1))
    source = jnp.where(before >= 0, before, jnp.argmax(has_keys))
    kept_block = jnp.where(before >= 0, high[source], low[source])
    fields = {
      "owner": inside // jnp.maximum(count, 1),
      "turn": inside % jnp.maximum(count, 1),
      "row": row[source],
      "low": jnp.where(has_keys, low, kept_block),
      "high": jnp.where(has_keys, high, kept_block),
      "begin": begin,
      "end": end,
    }
    arrays |= {f"{name} {part}": jnp.maximum(x, 0) for name, x in fields.items()}
  arrays["starts"] = jnp.stack(starts)
  return jnp.concatenate([arrays[name].astype(jnp.int32) for name in sizes.offsets])


def _choose_block(head_dim: int, length: int, item_bytes: int, size: int, rows: int) -> int:
  """Keys of a block: all of them, or a multiple of `LANES`.

  item_bytes: of a number, for all heads of a block.
  size: bytes of the block's keys, about.
  rows: the most queries of a head that a block is multiplied by.
  """
  most = min(size // (head_dim * item_bytes), LOGITS // rows, MOST_KEYS)
  most = max(most // LANES * LANES, LANES)
  if length <= most:
    return length
  even = -(-length // -(-length // most))
  return -(-even // LANES) * LANES
