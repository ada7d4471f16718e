"""The host's arrays of `refill_sampler`: what a chunk of steps gets of the replies, and gives back.

`running` has the reply of each slot of all devices in turn; None: the slot is empty.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Int
import numpy as np

from vr_jax import records
from vr_jax.models import layout as layout_lib
from vr_jax.models.common import slots as slots_lib
from vr_jax.rollout import refill_queue, sampler, turn_decode, written_replies


@dataclasses.dataclass(kw_only=True)
class RefillBatch:
  """A batch in sampling.

  make_prompt: makes its prompts; called when the first of its replies begins.
  written: its replies, which grow.
  """

  make_prompt: Callable[[], records.Prompt]
  written: written_replies.WrittenReplies
  layout: layout_lib.Layout

  @functools.cached_property
  def prompt(self) -> records.Prompt:
    """Its prompts, which are made once."""
    return self.make_prompt()

  @functools.cached_property
  def next_position(self) -> Int[np.ndarray, "prompts"]:
    """The position of each reply's first token."""
    whole = turn_decode.replicate(self.layout, jnp.asarray(self.prompt.next_position))
    return jax.device_get(whole)


def chunk_slots(
  running: Sequence[refill_queue.SlotReply | None],
  places: refill_queue.RefillLayout,
  batches: Sequence[RefillBatch],
  time: int,
) -> turn_decode.ChunkSlots:
  """The replies in the slots, as decoding takes them."""
  cache_slot = np.tile(np.arange(places.slots, dtype=np.int32), places.devices)
  prompt_slot = np.full(len(running), places.prompt_slots, np.int32)
  written, row, group_index, left, position, number = np.zeros((6, len(running)), np.int32)
  for slot, reply in enumerate(running):
    if reply is not None:
      batch, number[slot] = batches[reply.batch], reply.batch
      row[slot], group_index[slot] = reply.row, reply.group_index
      prompt_slot[slot] = reply.prompt_slot
      written[slot] = batch.written.lengths[reply.row, reply.group_index]
      left[slot] = time - written[slot]
      position[slot] = batch.next_position[reply.row] + written[slot]
  return turn_decode.ChunkSlots(
    rows=slots_lib.CacheRows(
      cache_slot=cache_slot, prompt_slot=prompt_slot, written=written, position=position
    ),
    row=row,
    group_index=group_index,
    step=written,
    left=left,
    batch=number,
  )


def choose_slots(
  slots: turn_decode.ChunkSlots,
  places: refill_queue.RefillLayout,
  blocks: Sequence[refill_queue.BlockQueue],
  fractions: tuple[float, ...],
) -> tuple[Int[np.ndarray, "chosen"], int]:
  """The slots that a chunk decodes, and at how many unfinished replies a device it stops.

  fractions: `Decoding.slot_fractions`.
  """
  is_active = np.asarray(slots.left) > 0
  active = int(is_active.reshape(places.devices, -1).sum(axis=1).max())
  sizes = sampler.slot_sizes(places.slots, fractions)
  chosen = places.choose_slots(is_active, min(size for size in sizes if size >= active))
  waiting = any(block.waiting for block in blocks)
  return chosen, refill_queue.stop_at_unfinished(places.slots, active) if waiting else 0


def add_tokens(
  decoded: turn_decode.DecodedChunk,
  chosen: Int[np.ndarray, "chosen"],
  batches: Sequence[RefillBatch],
  blocks: Sequence[refill_queue.BlockQueue],
  running: list[refill_queue.SlotReply | None],
  *,
  layout: layout_lib.Layout,
) -> int:
  """Adds the tokens of a chunk to the replies, and empties the slots of those that ended.

  decoded: of the slots `chosen`. Returns how many steps the chunk took.
  """
  new, log_probs, counts, has_ended = jax.device_get(
    (decoded.tokens, decoded.log_probs, decoded.counts, decoded.ended)
  )
  for number, slot in enumerate(chosen):
    reply = running[slot]
    if reply is None:
      continue
    batches[reply.batch].written.add(
      reply.row,
      reply.group_index,
      new[number, : counts[number]],
      log_probs[number, : counts[number]],
      ended=bool(has_ended[number]),
    )
    if has_ended[number]:
      blocks[reply.block].end(reply)
      running[slot] = None
  return _count_steps(layout, counts, has_ended, new.shape[1])


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
