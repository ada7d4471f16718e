"""Attention as plain products: any platform, any dtype, one exact softmax with float32 logits.

Too many logits are computed tile by tile (attention_tiles), and recomputed in the backward pass:
never [heads, queries, keys] of a long prompt at once.

Every product is a batched matrix product, [batch, rows, columns], and logits are not transposed: on
CPU a product with several free axes is a slow loop, and transposing logits costs more than
computing them.
"""

from collections.abc import Callable, Sequence
import math
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vr_jax.models.common import attention_tiles, layers

LOGITS = 2**27  # held at once: half a gigabyte
CACHED_LOGITS = 2**19  # the same on CPU, as many as its caches hold
ROWS = 8  # chunks are multiples of this many queries
SIDE = 96  # largest side of tiles of replies, of which much may be padding
SHOWN = 288  # largest side of tiles of an observation, which is padded only at its end


class Partial(NamedTuple):
  """Softmax over some of the keys, to be merged with the others.

  mixed: values weighted by exp(logit - top).
  total: sum of these weights.
  top: guards the exponential against overflow. It cancels out, so it carries no gradient.
  """

  mixed: Float[Array, "*rows head_dim"]
  total: Float[Array, "*rows"]
  top: Float[Array, "*rows"]


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
  logits: int = LOGITS,
) -> Float[Array, "batch queries heads head_dim"]:
  """Attention of each query to the keys of its segment; if `causal`, only to keys up to `index`.

  If `causal`, segments are 1 for valid tokens and 0 for padding, where the output is meaningless.

  index: positions of the queries among the keys, rising. As many causal queries as keys are in
    order.
  folded: whether they are those of two blocks in zigzag order.
  logits: how many logits may be held at once.
  """
  del folded  # the index says it
  batch, queries, heads, _ = query.shape
  keys = key.shape[1]
  if not causal and heads * queries * keys <= logits:

    def attend_rows(query, key, value, query_segment, key_segment):
      return softmax(query, key, value, query_segment[:, :, None] == key_segment[:, None])

    inputs = (query, key, value, query_segment, key_segment)
    return in_chunks(attend_rows, inputs, (0,) * 5, logits // (heads * queries * keys))
  if batch * heads * queries * keys <= logits:
    mask = query_segment[:, :, None] == key_segment[:, None]
    mask = mask & (jnp.arange(keys) <= index[:, None]) if causal else mask
    return softmax(query, key, value, mask)
  # [batch, kv_heads, per_key, queries, head_dim]
  rows = _grouped(query, key.shape[2]).transpose(0, 2, 3, 1, 4)
  if causal:  # a prompt: the output at its padding is not used
    query_segment, key_segment = (_segments(x != 0) for x in (query_segment, key_segment))
  some_queries = attention_tiles.Queries(rows, query_segment, index if causal else None)
  some_keys = attention_tiles.Keys(key.swapaxes(1, 2), value.swapaxes(1, 2), key_segment)
  mixed, _ = attention_tiles.attend(some_queries, some_keys, logits=logits)
  return mixed.transpose(0, 3, 1, 2, 4).reshape(query.shape).astype(value.dtype)


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
  logits: int = LOGITS,
) -> Float[Array, "batch group time heads head_dim"]:
  """Attention of replies to their prompt and, causally, to themselves.

  index: position of each query in its reply.
  """
  query_valid = jnp.take(own_valid, index, axis=2)
  prefix = prefix_key.swapaxes(1, 2), prefix_value.swapaxes(1, 2), prefix_valid
  own = own_key.swapaxes(2, 3), own_value.swapaxes(2, 3), own_valid
  sides = _part_of(query.shape[2]), prefix_key.shape[1]
  parts = (
    _to_prefix(query, query_valid, *prefix, logits, sides),
    _to_own(query, query_valid, *own, index, logits, SIDE),
  )
  return merge_partials(parts).reshape(query.shape).astype(own_value.dtype)


def observation_to_prompt(
  query: Float[Array, "rows time heads head_dim"],
  query_valid: Bool[Array, "rows time"],
  key: Float[Array, "rows prefix kv_heads head_dim"],
  value: Float[Array, "rows prefix kv_heads head_dim"],
  valid: Bool[Array, "rows prefix"],
  *,
  logits: int = LOGITS,
) -> Partial:
  """Attention of observations to their prompt, or to a part of it, for `attend_appended`.

  Returns arrays [rows, time, kv_heads, per_key, …].
  """
  keys, values = key.swapaxes(1, 2), value.swapaxes(1, 2)
  sides = query.shape[1], key.shape[1]
  found = _to_prefix(query[:, None], query_valid[:, None], keys, values, valid, logits, sides)
  return Partial(*(x[:, 0] for x in found))


def attend_appended(
  query: Float[Array, "time heads head_dim"],
  own_key: Float[Array, "time kv_heads head_dim"],
  own_value: Float[Array, "time kv_heads head_dim"],
  own_valid: Bool[Array, "time"],
  to_prompt: Sequence[Partial],
  past_key: Float[Array, "kv_heads head_dim length"],
  past_value: Float[Array, "kv_heads length head_dim"],
  past_valid: Bool[Array, "length"],
  *,
  logits: int = LOGITS,
) -> Float[Array, "time heads head_dim"]:
  """Attention of an observation to the prompt, to the tokens before it, and to itself.

  to_prompt: [time, kv_heads, per_key, …], of the prompt's parts.
  past_valid: the tokens before it that it attends to.
  """
  time, queries = len(query), (query[None, None], own_valid[None, None])
  past = past_key.swapaxes(1, 2)[None], past_value[None], past_valid[None]
  own = own_key.swapaxes(0, 1)[None, None], own_value.swapaxes(0, 1)[None, None], queries[1]
  parts = (
    *(Partial(*(x[None, None] for x in part)) for part in to_prompt),
    _to_prefix(*queries, *past, logits, (time, SHOWN)),
    _to_own(*queries, *own, jnp.arange(time), logits, SHOWN),
  )
  return merge_partials(parts).reshape(query.shape).astype(own_value.dtype)


def softmax(
  query: Float[Array, "batch queries heads head_dim"],
  key: Float[Array, "batch keys kv_heads head_dim"],
  value: Float[Array, "batch keys kv_heads head_dim"],
  mask: Bool[Array, "batch queries keys"],
) -> Float[Array, "batch queries heads head_dim"]:
  """Attention with all logits at once. mask: the keys of each query, at least one."""
  # [batch, kv_heads, per_key, queries, head_dim]
  rows = _grouped(query, key.shape[2]).transpose(0, 2, 3, 1, 4)
  to_all = _partial(rows, key.swapaxes(1, 2), value.swapaxes(1, 2), mask[:, None, None])
  mixed = to_all.mixed / to_all.total[..., None]
  return mixed.transpose(0, 3, 1, 2, 4).reshape(query.shape).astype(value.dtype)


def _to_prefix(
  query: Float[Array, "batch group time heads head_dim"],
  query_valid: Bool[Array, "batch group time"],
  key: Float[Array, "batch kv_heads prefix head_dim"],
  value: Float[Array, "batch kv_heads prefix head_dim"],
  valid: Bool[Array, "batch prefix"],
  logits: int,
  sides: tuple[int, int],
) -> Partial:
  """Attention to the prompt, with the queries of all its replies as rows of one matrix.

  query_valid: the queries that are valid tokens.
  sides: largest numbers of queries and keys of a tile.

  Returns arrays [batch, group, time, kv_heads, per_key, …].
  """
  rows = _grouped(query, key.shape[1]).transpose(0, 3, 4, 1, 2, 5)
  if math.prod(query.shape[:4]) * key.shape[2] <= logits:
    found = _partial(rows, key, value, valid[:, None, None, None, None])
  else:
    flat = rows.reshape(*rows.shape[:3], -1, rows.shape[-1])
    queries = attention_tiles.Queries(
      flat, _segments(query_valid.reshape(len(query_valid), -1)), None
    )
    keys = attention_tiles.Keys(key, value, _segments(valid))
    found = _tiled(queries, keys, logits, sides, rows.shape[:-1])
  return Partial(*(x.transpose(0, 3, 4, 1, 2, *range(5, x.ndim)) for x in found))


def _to_own(
  query: Float[Array, "batch group time heads head_dim"],
  query_valid: Bool[Array, "batch group time"],
  key: Float[Array, "batch group kv_heads all_time head_dim"],
  value: Float[Array, "batch group kv_heads all_time head_dim"],
  valid: Bool[Array, "batch group all_time"],
  index: Int[Array, "time"],
  logits: int,
  side: int,
) -> Partial:
  """Like `_to_prefix`, with a matrix for each reply. side: of tiles, for queries and keys."""
  rows = _grouped(query, key.shape[2]).transpose(0, 1, 3, 4, 2, 5)
  if math.prod(query.shape[:4]) * key.shape[3] <= logits:
    mask = (jnp.arange(key.shape[3]) <= index[:, None]) & valid[:, :, None]
    found = _partial(rows, key, value, mask[:, :, None, None])
  else:
    flat = [x.reshape(-1, *x.shape[2:]) for x in (rows, query_valid, key, value, valid)]
    queries = attention_tiles.Queries(flat[0], _segments(flat[1]), index)
    keys = attention_tiles.Keys(flat[2], flat[3], _segments(flat[4]))
    found = _tiled(queries, keys, logits, (side, side), rows.shape[:-1])
  return Partial(*(x.transpose(0, 1, 4, 2, 3, *range(5, x.ndim)) for x in found))


def _tiled(
  queries: attention_tiles.Queries,
  keys: attention_tiles.Keys,
  logits: int,
  sides: tuple[int, int],
  leading: tuple[int, ...],
) -> Partial:
  """Attention by tiles, with results reshaped to `leading`."""
  mixed, total = attention_tiles.attend(queries, keys, logits=logits, sides=sides)
  mixed, total = mixed.reshape(*leading, -1), total.reshape(leading)
  top = jax.lax.stop_gradient(total)
  total = jnp.exp(total - top)  # 1, and what carries the gradient
  return Partial(mixed * total[..., None], total, top)


def _segments(valid: Bool[Array, "*batch"]) -> Int[Array, "*batch"]:
  return jnp.where(valid, 1, attention_tiles.FILLING).astype(jnp.int32)


def _part_of(time: int) -> int:
  """A tile side near `SIDE` that divides replies of this length, if any: one reply a tile."""
  sides = range(min(SIDE, time), SIDE // 2, -1)
  return next((side for side in sides if time % side == 0), min(SIDE, time))


def _partial(
  rows: Float[Array, "*batch head_dim"],
  key: Float[Array, "*stack keys head_dim"],
  value: Float[Array, "*stack keys head_dim"],
  mask: Bool[Array, "..."],
) -> Partial:
  """Attention of queries whose leading axes are those of the keys' stack, followed by any others.

  mask: [*batch, keys] like the logits, or broadcastable to it.
  """
  leading = rows.shape[:-1]
  key, value = (x.reshape(-1, *x.shape[-2:]) for x in (key, value))
  flat = rows.reshape(key.shape[0], -1, rows.shape[-1])
  logits = _dot("nqd,nsd->nqs", flat, key).reshape(*leading, -1)
  logits = jnp.where(mask, logits, layers.MASKED)
  top = jax.lax.stop_gradient(logits.max(axis=-1))
  share = jnp.exp(logits - top[..., None])
  total = share.sum(axis=-1)
  share = share.astype(value.dtype).reshape(*flat.shape[:2], -1)
  return Partial(_dot("nqs,nsd->nqd", share, value).reshape(rows.shape), total, top)


def merge_partials(parts: Sequence[Partial]) -> Float[Array, "*rows head_dim"]:
  """Merges parts into the softmax over all their keys."""
  top = jnp.max(jnp.stack([part.top for part in parts]), axis=0)
  scales = [jnp.exp(part.top - top) for part in parts]
  total = cast(Array, sum(scale * part.total for scale, part in zip(scales, parts, strict=True)))
  mixed = sum(scale[..., None] * part.mixed for scale, part in zip(scales, parts, strict=True))
  return mixed / total[..., None]


def in_chunks(
  function: Callable[..., Array],
  inputs: Sequence[Array],
  axes: Sequence[int],
  size: int,
) -> Array:
  """Calls `function` on chunks of at most about `size` positions, recomputed in the backward pass.

  axes: the axis of positions in each input; in the result it is that of the first input.
  """
  length = inputs[0].shape[axes[0]]
  if length <= max(size, 1):
    return function(*inputs)
  count = -(-length // max(size, 1))
  chunk = _round_up(-(-length // count))
  count = -(-length // chunk)

  def split(x: Array, axis: int) -> Array:
    widths = [(0, count * chunk - length if i == axis else 0) for i in range(x.ndim)]
    shape = (*x.shape[:axis], count, chunk, *x.shape[axis + 1 :])
    return jnp.moveaxis(jnp.pad(x, widths, mode="edge").reshape(shape), axis, 0)

  chunks = tuple(split(x, axis) for x, axis in zip(inputs, axes, strict=True))
  _, parts = jax.lax.scan(lambda _, chunk: (None, jax.checkpoint(function)(*chunk)), None, chunks)
  axis = axes[0]
  whole = jnp.moveaxis(parts, 0, axis)
  whole = whole.reshape(*whole.shape[:axis], count * chunk, *whole.shape[axis + 2 :])
  return jax.lax.slice_in_dim(whole, 0, length, axis=axis)


def _round_up(positions: int) -> int:
  """Rounds up to a multiple of `ROWS`, unless there are fewer."""
  return -(-positions // ROWS) * ROWS if positions > ROWS else positions


def _dot(equation: str, left: Array, right: Array) -> Float[Array, "..."]:
  return jnp.einsum(
    equation,
    left,
    right,
    precision=layers.precision(left.dtype),
    preferred_element_type=jnp.float32,
  )


def _grouped(query: Float[Array, "..."], kv_heads: int) -> Float[Array, "..."]:
  """Reshapes […, heads, head_dim] to […, kv_heads, per_key, head_dim], with the logits' scale."""
  *leading, heads, head_dim = query.shape
  return (query * head_dim**-0.5).reshape(*leading, kv_heads, heads // kv_heads, head_dim)
