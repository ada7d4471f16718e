"""Where replies are kept while they are sampled: which device has which, and in what order they come back."""

import dataclasses

from jaxtyping import Array, Int
import numpy as np

from vr_jax.models import layout as layout_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlotLayout:
  """Which reply a slot starts with: devices in turn take equal shares of the replies to the prompts that they hold."""

  devices: int  # that slots are split over
  blocks: int  # into which the prompts are split
  replies: int  # of a block
  slots: int  # of a device

  @classmethod
  def for_groups(cls, layout: layout_lib.Layout, prompts: int, group: int) -> "SlotLayout":
    """Those of `group` replies to each of some prompts."""
    devices, blocks = layout.ways("slots"), layout.shards(("prompts",), (prompts,))[0]
    replies = prompts // blocks * group
    return cls(
      devices=devices,
      blocks=blocks,
      replies=replies,
      slots=-(-replies // (devices // blocks)),
    )

  def device_slot(self) -> Int[np.ndarray, "slots"]:
    """Number of the slot on its device."""
    return np.tile(np.arange(self.slots), self.devices)

  def reply(self) -> Int[np.ndarray, "slots"]:
    """Number of the reply within its block; `replies` where the slot is empty."""
    number = np.arange(self.devices * self.slots) % (self.devices // self.blocks * self.slots)
    return np.minimum(number, self.replies)

  def block(self) -> Int[np.ndarray, "slots"]:
    """Number of the block of prompts that the reply is to."""
    return np.arange(self.devices * self.slots) // (self.devices // self.blocks * self.slots)

  def to_reply_order(self, x: Array) -> Array:
    """What the slots hold -> [replies of all blocks, …], without the empty slots."""
    rest = x.shape[1:]
    held = x.reshape(self.blocks, len(x) // self.blocks, *rest)[:, : self.replies]
    return held.reshape(self.blocks * self.replies, *rest)
