"""Attention while sampling: of one new token a reply, or of an observation appended to it.

One query a reply has few logits, so plain products reach the memory bandwidth on every platform.
All replies of a prompt read its keys and values together, once. Attention to the prompt and to the
reply's own past are merged by log-sum-exp.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vr_jax.models.common import attention_xla, layers
from vr_jax.models.common import slots as slots_lib


def step(
  query: Float[Array, "slots heads head_dim"],
  prompt: Int[Array, "slots"],
  group_index: Int[Array, "slots"],
  prefix_key: Float[Array, "prompts kv_heads head_dim prefix"],
  prefix_value: Float[Array, "prompts kv_heads prefix head_dim"],
  prefix_valid: Bool[Array, "prompts prefix"],
  *pasts: Array,
  group: int,
  seen: Bool[Array, "prompts group prefix"] | None = None,
) -> Float[Array, "slots heads head_dim"]:
  """Attention of the new token of each slot.

  prompt, group_index: as in `slots.DecodeSlots`.
  pasts: key [slots, kv_heads, head_dim, length], value [slots, kv_heads, length, head_dim] and
    valid [length] or [slots, length], of one block or more.
  seen: which keys of its prompt each reply attends to; None: all valid ones.
  """
  slots, heads, head_dim = query.shape
  kv_heads = prefix_key.shape[1]
  query = (query * head_dim**-0.5).reshape(slots, kv_heads, heads // kv_heads, head_dim)
  grouped = slots_lib.slots_to_groups(query, prompt, group_index, (prefix_key.shape[0], group))
  valid = prefix_valid[:, None, None, None] if seen is None else seen[:, None, :, None]
  to_prefix = _to_prefix(grouped, prefix_key, prefix_value, valid)
  to_prefix = attention_xla.Partial(
    *(slots_lib.groups_to_slots(part, prompt, group_index) for part in to_prefix)
  )
  to_pasts = [_to_past(query, *pasts[i : i + 3]) for i in range(0, len(pasts), 3)]
  merged = attention_xla.merge_partials((to_prefix, *to_pasts))
  return merged.reshape(slots, heads, head_dim).astype(prefix_value.dtype)


def forgetting_step(
  query: Float[Array, "slots heads head_dim"],
  forgets: Bool[Array, "slots"],
  prompt: Int[Array, "slots"],
  group_index: Int[Array, "slots"],
  prefix_key: Float[Array, "prompts kv_heads head_dim prefix"],
  prefix_value: Float[Array, "prompts kv_heads prefix head_dim"],
  prefix_valid: Bool[Array, "prompts prefix"],
  *pasts: Array,
  group: int,
  kept: int,
) -> Float[Array, "slots heads head_dim"]:
  """Like `step`; slots that forget attend to only the first `kept` tokens of their prompt."""
  grouped = slots_lib.slots_to_groups(forgets, prompt, group_index, (len(prefix_valid), group))
  first = jnp.arange(prefix_valid.shape[1]) < kept
  seen = prefix_valid[:, None] & (~grouped[..., None] | first)
  shared = prefix_key, prefix_value, prefix_valid
  return step(query, prompt, group_index, *shared, *pasts, group=group, seen=seen)


def prefill_observation(
  query: Float[Array, "rows time heads head_dim"],
  key: Float[Array, "rows time kv_heads head_dim"],
  value: Float[Array, "rows time kv_heads head_dim"],
  valid: Bool[Array, "rows time"],
  prompt: Int[Array, "rows"],
  cache_slot: Int[Array, "rows"],
  written: Int[Array, "rows"],
  prefix_key: Float[Array, "prompts prefix kv_heads head_dim"],
  prefix_value: Float[Array, "prompts prefix kv_heads head_dim"],
  prefix_valid: Bool[Array, "prompts prefix"],
  past_key: Float[Array, "cache_slots kv_heads head_dim length"],
  past_value: Float[Array, "cache_slots kv_heads length head_dim"],
  *more: Array,
  attend: Callable[..., Array] = attention_xla.attend_appended,
  logits: int,
) -> Float[Array, "rows time heads head_dim"]:
  """Attention of appended tokens to their prompt, to their reply's cache and to themselves.

  Rows run one after the other, so that no prompt or cache is copied for all rows at once.

  attend: the attention of one row.
  logits: see `attention_xla`.
  """

  def attend_row(inputs: tuple[Array, ...]) -> Array:
    prompt, cache_slot, written, *own = inputs
    prefix = (prefix_key, prefix_value, prefix_valid)
    prompt_keys = (jnp.take(x, prompt, 0, mode="clip") for x in prefix)
    past = (jnp.take(x, cache_slot, 0, mode="clip") for x in (past_key, past_value))
    return attend(*own, *prompt_keys, *past, written, logits=logits)

  return jax.lax.map(attend_row, (prompt, cache_slot, written, query, key, value, valid, *more))


def _to_prefix(
  query: Float[Array, "prompts group kv_heads queries head_dim"],
  key: Float[Array, "prompts kv_heads head_dim prefix"],
  value: Float[Array, "prompts kv_heads prefix head_dim"],
  valid: Bool[Array, "prompts 1 #group 1 prefix"],
) -> attention_xla.Partial:
  logits = _dot("pgkrd,pkds->pkgrs", query, key)
  logits = jnp.where(valid, logits, layers.MASKED)
  share, total, top = _shares(logits)
  mixed = _dot("pkgrs,pksd->pkgrd", share.astype(value.dtype), value)
  return attention_xla.Partial(*(x.swapaxes(1, 2) for x in (mixed, total, top)))


def _to_past(
  query: Float[Array, "slots kv_heads queries head_dim"],
  key: Float[Array, "slots kv_heads head_dim length"],
  value: Float[Array, "slots kv_heads length head_dim"],
  valid: Bool[Array, "*slots length"],
) -> attention_xla.Partial:
  logits = _dot("nkrd,nkdl->nkrl", query, key)
  share, total, top = _shares(jnp.where(valid[..., None, None, :], logits, layers.MASKED))
  return attention_xla.Partial(
    _dot("nkrl,nkld->nkrd", share.astype(value.dtype), value), total, top
  )


def _shares(logits: Float[Array, "*batch keys"]) -> tuple[Array, Array, Array]:
  top = logits.max(axis=-1)
  share = jnp.exp(logits - top[..., None])
  return share, share.sum(axis=-1), top


def _dot(equation: str, left: Array, right: Array) -> Float[Array, "..."]:
  return jnp.einsum(
    equation,
    left,
    right,
    precision=layers.precision(left.dtype),
    preferred_element_type=jnp.float32,
  )
