"""Attention while sampling: one new token a reply, to its prompt, to the reply so far and to itself.

One query a reply has few logits, so plain products do what bandwidth allows, on every platform. The queries of a prompt's
replies read its keys and values together, once; what each reply reads of its own is merged with that by log-sum-exp.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vr_jax.models import seats as seats_lib
from vr_jax.models.qwen2_5_vl import attention_xla, layers


def step(
  query: Float[Array, "slots heads head_dim"],
  key: Float[Array, "slots kv_heads head_dim"],
  value: Float[Array, "slots kv_heads head_dim"],
  prompt: Int[Array, "slots"],
  member: Int[Array, "slots"],
  prefix_key: Float[Array, "prompts prefix kv_heads head_dim"],
  prefix_value: Float[Array, "prompts prefix kv_heads head_dim"],
  prefix_valid: Bool[Array, "prompts prefix"],
  past_key: Float[Array, "slots length kv_heads head_dim"],
  past_value: Float[Array, "slots length kv_heads head_dim"],
  past_valid: Bool[Array, "length"],
  *,
  group: int,
) -> Float[Array, "slots heads head_dim"]:
  """What the new token of each slot gathers; `prompt` and `member` as in `seats.Seats`."""
  slots, heads, head_dim = query.shape
  kv_heads = key.shape[1]
  query = (query * head_dim**-0.5).reshape(slots, kv_heads, heads // kv_heads, head_dim)
  seated = seats_lib.to_seats(query, prompt, member, (prefix_key.shape[0], group))
  to_prefix = _to_prefix(seated, prefix_key, prefix_value, prefix_valid)
  to_prefix = attention_xla.Partial(
    *(seats_lib.to_slots(part, prompt, member) for part in to_prefix)
  )
  to_past = _to_past(query, past_key, past_value, past_valid)
  to_own = attention_xla.Partial(
    mixed=jnp.broadcast_to(value[:, :, None].astype(jnp.float32), query.shape),
    total=jnp.ones(query.shape[:-1], jnp.float32),
    top=_dot("nkrd,nkd->nkr", query, key),
  )
  return (
    attention_xla.merged((to_prefix, to_past, to_own))
    .reshape(slots, heads, head_dim)
    .astype(value.dtype)
  )


def _to_prefix(
  query: Float[Array, "prompts group kv_heads queries head_dim"],
  key: Float[Array, "prompts prefix kv_heads head_dim"],
  value: Float[Array, "prompts prefix kv_heads head_dim"],
  valid: Bool[Array, "prompts prefix"],
) -> attention_xla.Partial:
  logits = _dot("pgkrd,pskd->pkgrs", query, key)
  logits = jnp.where(valid[:, None, None, None], logits, layers.MASKED)
  share, total, top = _shares(logits)
  mixed = _dot("pkgrs,pskd->pkgrd", share.astype(value.dtype), value)
  return attention_xla.Partial(*(x.swapaxes(1, 2) for x in (mixed, total, top)))


def _to_past(
  query: Float[Array, "slots kv_heads queries head_dim"],
  key: Float[Array, "slots length kv_heads head_dim"],
  value: Float[Array, "slots length kv_heads head_dim"],
  valid: Bool[Array, "length"],
) -> attention_xla.Partial:
  logits = _dot("nkrd,nlkd->nkrl", query, key)
  share, total, top = _shares(jnp.where(valid, logits, layers.MASKED))
  return attention_xla.Partial(
    _dot("nkrl,nlkd->nkrd", share.astype(value.dtype), value), total, top
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
