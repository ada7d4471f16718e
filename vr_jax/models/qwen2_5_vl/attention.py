"""Attention of prompts and of replies that share a prompt: grouped heads, one exact softmax, float32 logits."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vr_jax.models.qwen2_5_vl import layers


class Block(NamedTuple):
  """Keys, values and which of them may be seen; leading axes as the function that takes it says."""

  key: Array
  value: Array
  valid: Array


def whole(
  query: Float[Array, "prompts prefix heads head_dim"],
  key: Float[Array, "prompts prefix kv_heads head_dim"],
  value: Float[Array, "prompts prefix kv_heads head_dim"],
  mask: Bool[Array, "prompts prefix prefix"],
) -> Float[Array, "prompts prefix heads head_dim"]:
  """Every position of a prompt attends to those that its mask row allows."""
  query = _grouped(query, key)
  logits = _dot("pqkrd,pskd->pkrqs", query, key)
  logits = jnp.where(mask[:, None, None], logits, layers.MASKED)
  share = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
  mixed = _dot("pkrqs,pskd->pqkrd", share, value)
  return _ungrouped(mixed, value)


def continued(
  query: Float[Array, "prompts group time heads head_dim"], prefix: Block, own: Block
) -> Float[Array, "prompts group time heads head_dim"]:
  """Replies attend to their prompt and to themselves.

  prefix: key and value [prompts, prefix, kv_heads, head_dim], valid [prompts, prefix].
  own:    key and value [prompts, group, time, kv_heads, head_dim], valid [prompts, group, time, time].
  """
  query = _grouped(query, own.key)
  prefix_logits = _dot("pgtkrd,pskd->pkgtrs", query, prefix.key)
  prefix_logits = jnp.where(prefix.valid[:, None, None, None, None], prefix_logits, layers.MASKED)
  own_logits = _dot("pgtkrd,pgukd->pgktru", query, own.key)
  own_logits = jnp.where(own.valid[:, :, None, :, None], own_logits, layers.MASKED)
  own_logits = own_logits.transpose(0, 2, 1, 3, 4, 5)
  (to_prefix, to_own), total = _shares((prefix_logits, own_logits))
  mixed = _dot("pkgtrs,pskd->pkgtrd", to_prefix.astype(query.dtype), prefix.value)
  mixed = mixed + _dot("pkgtru,pgukd->pkgtrd", to_own.astype(query.dtype), own.value)
  return _ungrouped((mixed / total).transpose(0, 2, 3, 1, 4, 5), query)


def step(
  query: Float[Array, "prompts group heads head_dim"],
  key: Float[Array, "prompts group kv_heads head_dim"],
  value: Float[Array, "prompts group kv_heads head_dim"],
  prefix: Block,
  past: Block,
) -> Float[Array, "prompts group heads head_dim"]:
  """One new token a reply attends to its prompt, to the reply so far and to itself.

  prefix: key and value [prompts, prefix, kv_heads, head_dim], valid [prompts, prefix].
  past:   key and value [prompts, group, length, kv_heads, head_dim], valid [length].
  """
  query = _grouped(query, key)
  prefix_logits = _dot("pgkrd,pskd->pkgrs", query, prefix.key)
  prefix_logits = jnp.where(prefix.valid[:, None, None, None], prefix_logits, layers.MASKED)
  past_logits = _dot("pgkrd,pglkd->pkgrl", query, past.key)
  past_logits = jnp.where(past.valid, past_logits, layers.MASKED)
  own_logits = _dot("pgkrd,pgkd->pkgr", query, key)[..., None]
  shares, total = _shares((prefix_logits, past_logits, own_logits))
  to_prefix, to_past, to_own = (share.astype(query.dtype) for share in shares)
  mixed = _dot("pkgrs,pskd->pkgrd", to_prefix, prefix.value)
  mixed = mixed + _dot("pkgrl,pglkd->pkgrd", to_past, past.value)
  mixed = mixed + to_own * value.transpose(0, 2, 1, 3)[:, :, :, None]
  return _ungrouped((mixed / total).transpose(0, 2, 1, 3, 4), query)


def _dot(equation: str, left: Array, right: Array) -> Float[Array, "..."]:
  return jnp.einsum(
    equation,
    left,
    right,
    precision=layers.precision(left.dtype),
    preferred_element_type=jnp.float32,
  )


def _grouped(query: Float[Array, "..."], key: Float[Array, "..."]) -> Float[Array, "..."]:
  """[…, heads, head_dim] as […, kv_heads, queries, head_dim], scaled as the logits are to be."""
  *leading, heads, head_dim = query.shape
  kv_heads = key.shape[-2]
  return (query * head_dim**-0.5).reshape(*leading, kv_heads, heads // kv_heads, head_dim)


def _ungrouped(mixed: Float[Array, "..."], like: Array) -> Float[Array, "..."]:
  """[…, kv_heads, queries, head_dim] as […, heads, head_dim] in the dtype of activations."""
  *leading, kv_heads, queries, head_dim = mixed.shape
  return mixed.reshape(*leading, kv_heads * queries, head_dim).astype(like.dtype)


def _shares(blocks: Sequence[Array]) -> tuple[list[Array], Array]:
  """Numerators and the common denominator of one softmax over the last axes of several blocks.

  The blocks are never put together, which would copy them. The maximum only guards the exponential: it cancels,
  so it carries no gradient.
  """
  top = jnp.max(jnp.stack([jnp.max(block, axis=-1) for block in blocks]), axis=0)
  top = jax.lax.stop_gradient(top)[..., None]
  shares = [jnp.exp(block - top) for block in blocks]
  total = sum(jnp.sum(share, axis=-1, keepdims=True) for share in shares)
  return shares, total
