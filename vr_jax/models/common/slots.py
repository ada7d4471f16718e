"""Decode slots: which reply each slot of a decoding batch holds.

There are as many slots as replies at first, and fewer as replies end; prompts stay where they are.
Layers run on slots. Only attention to the prompts brings the slots of a prompt together, as
[prompts, group].
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
@typing.no_type_check  # tree transformations rebuild it with leaves that are not arrays
class DecodeSlots:
  """The prompt and the group index of each slot's reply, counted on the slot's device.

  An empty slot has an out-of-range prompt, one past the last of its device.
  """

  prompt: Int[Array | np.ndarray, "slots"]
  group_index: Int[Array | np.ndarray, "slots"]
  group: int = dataclasses.field(metadata={"static": True})
  # Slots that attend to only the first `kept` tokens of their prompt; None: no slot does.
  forgets: Bool[Array, "slots"] | None = None
  kept: int = dataclasses.field(default=0, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
@typing.no_type_check
class CacheRows:
  """Replies that are appended to: their slot in the cache and their prompt, on their device.

  An empty row has an out-of-range cache_slot, one past the last of its device: writes there are
  dropped. What it reads is any reply's, and nobody uses it.

  prompt_slot: index of the prompt among those of the device.
  written: tokens that the reply has so far.
  position: position of its next token.
  """

  cache_slot: Int[Array | np.ndarray, "rows"]
  prompt_slot: Int[Array | np.ndarray, "rows"]
  written: Int[Array | np.ndarray, "rows"]
  position: Int[Array | np.ndarray, "rows"]
  # Index of the first written token that a reply still attends to. Where it is above 0, the reply
  # attends to only the first `kept` tokens of its prompt. None: every reply attends to all.
  visible_from: Int[Array | np.ndarray, "rows"] | None = None
  kept: int = dataclasses.field(default=0, metadata={"static": True})


def slots_to_groups(
  x: Shaped[Array, "slots *rest"],
  prompt: Int[Array, "slots"],
  group_index: Int[Array, "slots"],
  shape: tuple[int, int],
) -> Shaped[Array, "prompts group *rest"]:
  """Scatters values of slots to [prompts, group, …]; replies without a slot get any slot's value.

  shape: (prompts, group).
  """
  prompts, group = shape
  slots = jnp.arange(x.shape[0])
  slot = jnp.zeros(prompts * group, slots.dtype)
  slot = slot.at[prompt * group + group_index].set(slots, mode="drop")
  return x[slot].reshape(*shape, *x.shape[1:])


def groups_to_slots(
  x: Shaped[Array, "prompts group *rest"],
  prompt: Int[Array, "slots"],
  group_index: Int[Array, "slots"],
) -> Shaped[Array, "slots *rest"]:
  """Gathers the values of slots from [prompts, group, …]; an empty slot gets any value."""
  flat = x.reshape(-1, *x.shape[2:])
  return jnp.take(flat, prompt * x.shape[1] + group_index, axis=0, mode="clip")
