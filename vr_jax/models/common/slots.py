"""Replies being sampled, wherever they are kept: each slot holds one, and knows its seat beside its prompt.

Slots are what decoding computes. They start as many as replies and become fewer as replies end; prompts stay where they
are. So the layers run on slots, and only attention to the prompts brings the slots of a prompt together at their seats.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, Shaped
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
@typing.no_type_check  # tree transformations rebuild it with leaves that are no arrays
class DecodeSlots:
  """Where each slot sits, counted on the device that holds it: its prompt, its place among the prompt's `group`.

  An empty slot has a prompt that its device does not hold, one past the last.
  """

  prompt: Int[Array | np.ndarray, "slots"]
  group_index: Int[Array | np.ndarray, "slots"]
  group: int = dataclasses.field(metadata={"static": True})
  # Which slots see the first `kept` tokens of their prompt alone; None: all see all of it.
  forgets: Bool[Array, "slots"] | None = None
  kept: int = dataclasses.field(default=0, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
@typing.no_type_check
class CacheRows:
  """Some replies, each kept at a cache_slot: where that is and which its prompt is, counted on the device that holds them.

  An empty row has a home that its device does not have, one past the last. written: tokens that the reply has so far.
  position: that of its next token.
  """

  cache_slot: Int[Array | np.ndarray, "rows"]
  prompt: Int[Array | np.ndarray, "rows"]
  written: Int[Array | np.ndarray, "rows"]
  position: Int[Array | np.ndarray, "rows"]
  # How many of the written tokens a reply no longer sees; where it is above 0, of its prompt it sees
  # the first `kept` tokens alone. None: every reply sees all.
  forgotten: Int[Array | np.ndarray, "rows"] | None = None
  kept: int = dataclasses.field(default=0, metadata={"static": True})


def slots_to_groups(
  x: Shaped[Array, "slots *rest"],
  prompt: Int[Array, "slots"],
  group_index: Int[Array, "slots"],
  shape: tuple[int, int],
) -> Shaped[Array, "prompts group *rest"]:
  """What the slots hold, at their seats `shape` = (prompts, group); a seat that no slot has holds any slot's."""
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
  """What lies at the seats of the slots; an empty slot gets any."""
  flat = x.reshape(-1, *x.shape[2:])
  return jnp.take(flat, prompt * x.shape[1] + group_index, axis=0, mode="clip")
