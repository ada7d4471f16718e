"""Attention by cuDNN's fused kernels on NVIDIA GPUs, in bfloat16 or float16.

Causal prompts padded on the right need no mask. Everything else gets a boolean mask shared by all
heads. `implementation` is passed to `jax.nn.dot_product_attention`; "xla" computes the same on any
platform.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Implementation = Literal["xla", "cudnn"]


def attend_segments(
  query: Float[Array, "batch queries heads head_dim"],
  key: Float[Array, "batch keys kv_heads head_dim"],
  value: Float[Array, "batch keys kv_heads head_dim"],
  query_segment: Int[Array, "batch queries"],
  key_segment: Int[Array, "batch keys"],
  index: Int[Array, "queries"],
  *,
  causal: bool,
  folded: bool = False,
  implementation: Implementation = "cudnn",
) -> Float[Array, "batch queries heads head_dim"]:
  """Like `attention_xla.attend_segments`; causal segments are 1 for valid tokens, then 0."""
  del folded  # the index says it
  if causal and query.shape[1] == key.shape[1]:
    valid = key_segment.sum(axis=1).astype(jnp.int32)
    return jax.nn.dot_product_attention(
      query,
      key,
      value,
      is_causal=True,
      key_value_seq_lengths=valid,
      implementation=implementation,
    )
  mask = query_segment[:, :, None] == key_segment[:, None]
  mask = mask & (jnp.arange(key.shape[1]) <= index[:, None]) if causal else mask
  return _attend_masked(query, key, value, mask, implementation)


def attend_replies(
  query: Float[Array, "batch group time heads head_dim"],
  prefix_key: Float[Array, "batch prefix kv_heads head_dim"],
  prefix_value: Float[Array, "batch prefix kv_heads head_dim"],
  prefix_valid: Bool[Array, "batch prefix"],
  own_key: Float[Array, "batch group all_time kv_heads head_dim"],
  own_value: Float[Array, "batch group all_time kv_heads head_dim"],
  own_valid: Bool[Array, "batch group all_time"],
  index: Int[Array, "time"],
  *,
  implementation: Implementation = "cudnn",
) -> Float[Array, "batch group time heads head_dim"]:
  """Like `attention_xla.attend_replies`.

  The kernel has no gradient of the softmax normaliser by which two blocks are merged. So the keys
  and values of the prompt are copied in front of those of each reply: for one layer at a time, and
  small next to its activations.

  All replies as one row of queries, as in the splash backend, would need no copy but cost more: the
  kernel skips no masked block, and reads the mask in the query's dtype, one number for each query
  and key. For the 7B model, 8 replies of 1,024 tokens and a prompt of 8,448, that would be 273 MB
  of mask instead of 155 MB of mask and 121 MB of copies, and 1.8 times the products; for a prompt
  of 1,152 and replies of 512 tokens, 3.2 times the products.
  """
  batch, group, time = query.shape[:3]
  seen = (jnp.arange(own_key.shape[2]) <= index[:, None]) & own_valid[:, :, None]

  def with_prefix(prefix: Array, own: Array, axis: int) -> Array:
    shape = (batch, group, *prefix.shape[1:])
    joined = jnp.concatenate([jnp.broadcast_to(prefix[:, None], shape), own], axis=axis)
    return joined.reshape(batch * group, *joined.shape[2:])

  rows = jnp.broadcast_to(prefix_valid[:, None], (batch, time, prefix_valid.shape[1]))
  mixed = _attend_masked(
    query.reshape(batch * group, *query.shape[2:]),
    with_prefix(prefix_key, own_key, 2),
    with_prefix(prefix_value, own_value, 2),
    with_prefix(rows, seen, 3),
    implementation,
  )
  return mixed.reshape(query.shape)


def _attend_masked(
  query: Float[Array, "batch queries heads head_dim"],
  key: Float[Array, "batch keys kv_heads head_dim"],
  value: Float[Array, "batch keys kv_heads head_dim"],
  mask: Bool[Array, "batch queries keys"],
  implementation: Implementation,
) -> Float[Array, "batch queries heads head_dim"]:
  return jax.nn.dot_product_attention(
    query, key, value, mask=mask[:, None], implementation=implementation
  )
