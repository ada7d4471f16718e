"""The assignment of replies to the decode slots of devices, and the way back to their order."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree
import numpy as np

from vr_jax import records
from vr_jax.models import layout as layout_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlotLayout:
  """Which reply each decode slot starts with.

  A device is a shard of the mesh's slots (data x fsdp x sequence); with tensor > 1, several chips
  are one. Prompts are split into blocks. The devices that hold a block take equal numbers of its
  replies, one device after the other; the last slots may be empty.

  devices: devices that slots are split over.
  blocks: blocks that prompts are split into.
  replies: replies to the prompts of one block.
  slots: slots of one device.
  """

  devices: int
  blocks: int
  replies: int
  slots: int

  @classmethod
  def for_groups(cls, layout: layout_lib.Layout, prompts: int, group: int) -> "SlotLayout":
    """The layout of `group` replies to each prompt."""
    devices, blocks = layout.ways("slots"), layout.shards(("prompts",), (prompts,))[0]
    replies = prompts // blocks * group
    return cls(
      devices=devices,
      blocks=blocks,
      replies=replies,
      slots=-(-replies // (devices // blocks)),
    )

  def device_slot(self) -> Int[np.ndarray, "slots"]:
    """Index of each slot on its device."""
    return np.tile(np.arange(self.slots), self.devices)

  def reply(self) -> Int[np.ndarray, "slots"]:
    """Index of each slot's reply within its block; `replies` for an empty slot."""
    number = np.arange(self.devices * self.slots) % (self.devices // self.blocks * self.slots)
    return np.minimum(number, self.replies)

  def block(self) -> Int[np.ndarray, "slots"]:
    """Index of the block that each slot's reply belongs to."""
    return np.arange(self.devices * self.slots) // (self.devices // self.blocks * self.slots)

  def to_reply_order(self, x: Array) -> Array:
    """Turns an array [slots, …] into [replies of all blocks, …], without the empty slots."""
    rest = x.shape[1:]
    replies = x.reshape(self.blocks, len(x) // self.blocks, *rest)[:, : self.replies]
    return replies.reshape(self.blocks * self.replies, *rest)


def one_turn_rollout(
  tokens: Int[Array, "prompts group time"],
  log_probs: Float[Array, "prompts group time"],
  lengths: Int[Array, "prompts group"],
) -> records.Rollout:
  """The rollout of replies of one turn; behind their lengths it is padding."""
  sampled = jnp.arange(tokens.shape[-1]) < lengths[..., None]
  kind = jnp.where(sampled, int(records.Kind.MODEL), int(records.Kind.PAD))
  return records.Rollout(tokens=tokens, log_probs=log_probs, kind=kind, turn=jnp.zeros_like(tokens))


def put_on_devices(layout: layout_lib.Layout, tree: PyTree, axis: str = "slots") -> PyTree:
  """Puts host arrays, whose rows are split along a logical axis, on the devices."""

  def put(x: np.ndarray | Array) -> Array:
    if isinstance(x, jax.Array):
      return x
    return layout.from_host(x, (axis, *[None] * (x.ndim - 1)))

  return jax.tree.map(put, tree)
