"""Attention as plain products: runs on every platform, in any dtype, one exact softmax with float32 logits.

Logits of many queries are made in turn, a chunk of queries after the other, and again in the backward pass: never
[heads, queries, keys] of a long prompt at once.
"""

from collections.abc import Callable, Sequence
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vr_jax.models.qwen2_5_vl import layers

LOGITS = 2**27  # at once: half a gigabyte


def within(
  query: Float[Array, "batch queries heads head_dim"],
  key: Float[Array, "batch keys kv_heads head_dim"],
  value: Float[Array, "batch keys kv_heads head_dim"],
  query_segment: Int[Array, "batch queries"],
  key_segment: Int[Array, "batch keys"],
  index: Int[Array, "queries"],
  *,
  causal: bool,
  logits: int = LOGITS,
) -> Float[Array, "batch queries heads head_dim"]:
  """Each query attends to the keys of its segment, if `causal` to those up to `index`, its own place among the keys.

  logits: how many numbers may be made at once.
  """
  places = jnp.arange(key.shape[1])
  one_query = query.shape[0] * query.shape[2] * key.shape[1]

  def of_chunk(query: Array, segment: Array, index: Array) -> Array:
    mask = segment[:, :, None] == key_segment[:, None]
    mask = mask & (places <= index[:, None]) if causal else mask
    return _softmax(query, key, value, mask)

  return _in_chunks(of_chunk, (query, query_segment, index), (1, 1, 0), logits // one_query)


def continued(
  query: Float[Array, "batch group time heads head_dim"],
  prefix_key: Float[Array, "batch prefix kv_heads head_dim"],
  prefix_value: Float[Array, "batch prefix kv_heads head_dim"],
  prefix_valid: Bool[Array, "batch prefix"],
  own_key: Float[Array, "batch group all_time kv_heads head_dim"],
  own_value: Float[Array, "batch group all_time kv_heads head_dim"],
  own_valid: Bool[Array, "batch group all_time"],
  index: Int[Array, "time"],
  *,
  logits: int = LOGITS,
) -> Float[Array, "batch group time heads head_dim"]:
  """Replies attend to their prompt and to themselves up to `index`, the place of each query in its reply."""
  keys = prefix_key.shape[1] + own_key.shape[2]
  one_time = math.prod(query.shape[:2]) * query.shape[3] * keys

  def of_chunk(query: Array, index: Array) -> Array:
    seen = jnp.arange(own_key.shape[2]) <= index[:, None]
    mask = seen & own_valid[:, :, None]
    return _two_blocks(query, prefix_key, prefix_value, prefix_valid, own_key, own_value, mask)

  return _in_chunks(of_chunk, (query, index), (2, 0), logits // one_time)


def _softmax(
  query: Float[Array, "batch queries heads head_dim"],
  key: Float[Array, "batch keys kv_heads head_dim"],
  value: Float[Array, "batch keys kv_heads head_dim"],
  mask: Bool[Array, "batch queries keys"],
) -> Float[Array, "batch queries heads head_dim"]:
  query = _grouped(query, key)
  logits = _dot("pqkrd,pskd->pkrqs", query, key)
  logits = jnp.where(mask[:, None, None], logits, layers.MASKED)
  share = jax.nn.softmax(logits, axis=-1).astype(value.dtype)
  mixed = _dot("pkrqs,pskd->pqkrd", share, value)
  return _ungrouped(mixed, value)


def _two_blocks(
  query: Float[Array, "batch group time heads head_dim"],
  prefix_key: Float[Array, "batch prefix kv_heads head_dim"],
  prefix_value: Float[Array, "batch prefix kv_heads head_dim"],
  prefix_valid: Bool[Array, "batch prefix"],
  own_key: Float[Array, "batch group all_time kv_heads head_dim"],
  own_value: Float[Array, "batch group all_time kv_heads head_dim"],
  own_mask: Bool[Array, "batch group time all_time"],
) -> Float[Array, "batch group time heads head_dim"]:
  query = _grouped(query, own_key)
  prefix_logits = _dot("pgtkrd,pskd->pkgtrs", query, prefix_key)
  prefix_logits = jnp.where(prefix_valid[:, None, None, None, None], prefix_logits, layers.MASKED)
  own_logits = _dot("pgtkrd,pgukd->pgktru", query, own_key)
  own_logits = jnp.where(own_mask[:, :, None, :, None], own_logits, layers.MASKED)
  own_logits = own_logits.transpose(0, 2, 1, 3, 4, 5)
  (to_prefix, to_own), total = _shares((prefix_logits, own_logits))
  mixed = _dot("pkgtrs,pskd->pkgtrd", to_prefix.astype(query.dtype), prefix_value)
  mixed = mixed + _dot("pkgtru,pgukd->pkgtrd", to_own.astype(query.dtype), own_value)
  return _ungrouped((mixed / total).transpose(0, 2, 3, 1, 4, 5), query)


def _in_chunks(
  function: Callable[..., Array], inputs: Sequence[Array], axes: Sequence[int], size: int
) -> Array:
  """`function` of `inputs`, at most about `size` positions at a time; `axes`: where each input has them.

  The result has them where the first input has. A chunk is computed again in the backward pass.
  """
  length = inputs[0].shape[axes[0]]
  if length <= max(size, 1):
    return function(*inputs)
  chunk = 2 ** int(math.log2(max(size, 1)))
  count = -(-length // chunk)

  def split(x: Array, axis: int) -> Array:
    widths = [(0, count * chunk - length if i == axis else 0) for i in range(x.ndim)]
    shape = (*x.shape[:axis], count, chunk, *x.shape[axis + 1 :])
    return jnp.moveaxis(jnp.pad(x, widths).reshape(shape), axis, 0)

  chunks = tuple(split(x, axis) for x, axis in zip(inputs, axes, strict=True))
  compute = jax.checkpoint(function)
  _, parts = jax.lax.scan(lambda _, chunk: (None, compute(*chunk)), None, chunks)
  axis = axes[0]
  whole = jnp.moveaxis(parts, 0, axis)
  whole = whole.reshape(*whole.shape[:axis], count * chunk, *whole.shape[axis + 2 :])
  return jax.lax.slice_in_dim(whole, 0, length, axis=axis)


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
