"""Attention while sampling: of one new token a reply, or of an observation appended to it.

One query a reply has few logits, so plain products reach the memory bandwidth on every platform.
All replies of a prompt read its keys and values together, once. Attention to the prompt and to the
reply's own past are merged by log-sum-exp.

Where devices hold parts of a prompt (mesh axis `sequence`), its keys stay there: the devices gather
their queries, each answers all of them with its part, and sends the partial results back.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from vr_jax.models import layout as layout_lib
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
  split_by: layout_lib.Layout | None = None,
  forgets: Bool[Array, "slots"] | None = None,
  remembered: Bool[Array, "prefix"] | None = None,
) -> Float[Array, "slots heads head_dim"]:
  """Attention of the new token of each slot.

  prompt, group_index: as in `slots.DecodeSlots`.
  prefix_key, prefix_value, prefix_valid: of whole prompts or of this device's part, see `split_by`.
  pasts: key [slots, kv_heads, head_dim, length], value [slots, kv_heads, length, head_dim] and
    valid [length] or [slots, length], of one block or more.
  split_by: the layout whose devices hold parts of each prompt; None: this device holds whole ones.
  forgets: slots that attend to only the `remembered` tokens of their prompt; None: no slot does.
  """
  slots, heads, head_dim = query.shape
  kv_heads = prefix_key.shape[1]
  query = (query * head_dim**-0.5).reshape(slots, kv_heads, heads // kv_heads, head_dim)

  def attend_prefix(
    query: Array, prompt: Array, group_index: Array, forgets: Array | None = None
  ) -> attention_xla.Partial:
    at = prompt, group_index
    shape = prefix_key.shape[0], group
    valid = prefix_valid[:, None, None, None]
    if forgets is not None and remembered is not None:
      forgets = slots_lib.slots_to_groups(forgets, *at, shape)
      valid &= (~forgets[..., None] | remembered)[:, None, :, None]
    grouped = slots_lib.slots_to_groups(query, *at, shape)
    partial = _to_prefix(grouped, prefix_key, prefix_value, valid)
    return attention_xla.Partial(*(slots_lib.groups_to_slots(part, *at) for part in partial))

  asked = (prompt, group_index) if forgets is None else (prompt, group_index, forgets)
  to_prefix = _attend_parts(attend_prefix, query, asked, split_by)
  to_pasts = [_to_past(query, *pasts[i : i + 3]) for i in range(0, len(pasts), 3)]
  merged = attention_xla.merge_partials((*to_prefix, *to_pasts))
  return merged.reshape(slots, heads, head_dim).astype(prefix_value.dtype)


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
  visible_from: Int[Array, "rows"] | None = None,
  remembered: Bool[Array, "prefix"] | None = None,
  *,
  split_by: layout_lib.Layout | None = None,
  logits: int,
) -> Float[Array, "rows time heads head_dim"]:
  """Attention of appended tokens to their prompt, to their reply's cache and to themselves.

  Rows run one after the other, so that no prompt or cache is copied for all rows at once. Devices
  with parts of the same prompts run one row of each together.

  prefix_key, prefix_value, prefix_valid, split_by: as in `step`.
  visible_from: the first written token that a row attends to. Where it is above 0, the row attends
    to only the `remembered` tokens of its prompt; None: rows attend to all tokens.
  logits: see `attention_xla`.
  """

  def attend_prompt(
    query: Array, valid: Array, prompt: Array, visible_from: Array | None = None
  ) -> attention_xla.Partial:
    arrays = prefix_key, prefix_value, prefix_valid
    key, value, seen = (jnp.take(x, prompt, 0, mode="clip") for x in arrays)
    if visible_from is not None and remembered is not None:
      seen &= (visible_from == 0)[:, None] | remembered
    return attention_xla.observation_to_prompt(query, valid, key, value, seen, logits=logits)

  def attend_row(inputs: tuple[Array, ...]) -> Array:
    query, key, value, valid, prompt, cache_slot, written, *first = inputs
    asked = tuple(x[None] for x in (valid, prompt, *first))
    to_prompt = _attend_parts(attend_prompt, query[None], asked, split_by)
    key_past, value_past = (jnp.take(x, cache_slot, 0, mode="clip") for x in (past_key, past_value))
    places = jnp.arange(past_key.shape[-1])
    seen = places < written
    if first:
      seen &= places >= first[0]
    of_row = [attention_xla.Partial(*(x[0] for x in part)) for part in to_prompt]
    own = query, key, value, valid
    past = key_past, value_past, seen
    return attention_xla.attend_appended(*own, of_row, *past, logits=logits)

  first = () if visible_from is None else (visible_from,)
  rows = query, key, value, valid, prompt, cache_slot, written, *first
  return jax.lax.map(attend_row, rows)


def _attend_parts(
  attend: Callable[..., attention_xla.Partial],
  query: Float[Array, "rows ..."],
  others: tuple[Array, ...],
  split_by: layout_lib.Layout | None,
) -> list[attention_xla.Partial]:
  """Attention of a device's rows to their prompts, of which other devices may hold parts.

  Devices with parts of the same prompts exchange queries (gathered) and partial results.

  attend: attention of rows to this device's part, `attend(query, *others)`.
  others: integers or booleans [rows, …].
  split_by: as in `step`.
  Returns one partial result a part.
  """
  if split_by is None:
    return [attend(query, *others)]
  columns = [x.reshape(len(x), -1).astype(jnp.int32) for x in others]
  table = split_by.gather_shards(jnp.concatenate(columns, axis=1), "prefix")
  ends = np.cumsum([x.shape[1] for x in columns])[:-1]
  gathered = (
    column.reshape(-1, *x.shape[1:]).astype(x.dtype)
    for column, x in zip(jnp.split(table, ends, axis=1), others, strict=True)
  )
  found = attend(split_by.gather_shards(query, "prefix"), *gathered)
  packed = jnp.concatenate([found.mixed, found.total[..., None], found.top[..., None]], axis=-1)
  parts = split_by.exchange_shards(packed, "prefix")
  return [attention_xla.Partial(x[..., :-2], x[..., -2], x[..., -1]) for x in parts]


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
