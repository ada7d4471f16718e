"""The host's side of `refill_sampler`: which replies wait, and which prompts have keys."""

from collections import Counter, deque
from collections.abc import Sequence
import dataclasses
import math

from jaxtyping import Bool, Int
import numpy as np

from vr_jax.models import layout as layout_lib
from vr_jax.rollout import slot_layout as slot_layout_lib

_WAVES = 2  # prompt slots hold so many times the groups that fill the decode slots


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

  def choose_slots(self, active: Bool[np.ndarray, "slots"], size: int) -> Int[np.ndarray, "chosen"]:
    """`size` slots of each device: its active ones, or the first of them, and others."""
    is_empty = ~active.reshape(self.devices, -1)
    chosen = np.sort(np.argsort(is_empty, axis=1, kind="stable")[:, :size], axis=1)
    return (chosen + self.slots * np.arange(self.devices)[:, None]).reshape(-1)

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
class SlotReply:
  """A reply in a slot.

  batch: 0: this step's; 1: the next one's.
  row: index of its prompt in its batch.
  prompt_slot: of its block.
  """

  block: int
  batch: int
  row: int
  prompt_slot: int
  group_index: int


class BlockQueue:
  """What the host knows of a block: which prompts have keys, and which replies wait.

  Replies are admitted in order: batch after batch, prompt after prompt.

  ended: of each batch, which of its replies have ended already.
  """

  def __init__(
    self, block: int, places: RefillLayout, ended: Sequence[Bool[np.ndarray, "prompts group"]]
  ):
    self.block, self._places = block, places
    first = block * places.prompts
    self.waiting = deque(
      (batch, first + prompt, index)
      for batch, known in enumerate(ended)
      for prompt, group in enumerate(known[first : first + places.prompts])
      for index in np.flatnonzero(~group).tolist()
    )
    self._free = deque(range(places.prompt_slots))
    self._resident: dict[tuple[int, int], int] = {}
    self._unfinished = Counter(reply[:2] for reply in self.waiting)
    self._loads = deque(self._unfinished)  # prompts are loaded in order
    self._first_batch = sum(batch == 0 for batch, _, _ in self.waiting)

  @property
  def is_done(self) -> bool:
    """Whether all replies of the first batch have ended."""
    return not self._first_batch

  def load(self, *, needed: bool) -> tuple[int, list[tuple[int, int]]]:
    """The batch and the rows of the prompts to prefill next, with their slots.

    As many as fit one pass, or none.

    needed: whether to start a pass that is not full, or one of the next batch. These prompts are
      prefilled again in their own step, so none is before a reply needs it.
    """
    batch = self._loads[0][0] if self._loads else 0
    same = sum(1 for other, _ in self._loads if other == batch)
    count = min(self._places.prefill, same)
    if not needed and (batch or len(self._free) < count):
      return batch, []
    new = []
    for _ in range(min(count, len(self._free))):
      prompt = self._loads.popleft()
      self._resident[prompt] = slot = self._free.popleft()
      new.append((prompt[1], slot))
    return batch, new

  def is_next_resident(self) -> bool:
    """Whether the prompt of the next waiting reply has keys."""
    return bool(self.waiting) and self.waiting[0][:2] in self._resident

  def admit(self) -> SlotReply:
    """Takes the next waiting reply, whose prompt has keys."""
    batch, row, group_index = self.waiting.popleft()
    return SlotReply(
      block=self.block,
      batch=batch,
      row=row,
      prompt_slot=self._resident[batch, row],
      group_index=group_index,
    )

  def end(self, reply: SlotReply) -> None:
    """Frees the prompt slot of a group whose last reply has ended."""
    prompt = reply.batch, reply.row
    self._first_batch -= not reply.batch
    self._unfinished[prompt] -= 1
    if not self._unfinished[prompt]:
      self._free.append(self._resident.pop(prompt))


def stop_at_unfinished(slots: int, active: int) -> int:
  """Unfinished replies of a device at which a chunk stops for waiting ones, with some slots active.

  An eighth of the slots is to be free, since each stop costs about as much as a few steps.
  """
  return min(slots - max(1, slots // 8), active - 1)
