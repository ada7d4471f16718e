"""Attention tile by tile: at any prompt length, no more logits at once than caches hold.

The forward pass runs over tiles of keys for each tile of queries, with a running maximum and sum;
it keeps only the output and the logarithm of the sum. The backward pass recomputes each tile's
logits once, and runs over tiles of queries for each tile of keys. Tiles that are masked by causal
order or hold only `FILLING` are skipped, so replies of many lengths cost what their tokens cost,
although they are padded to the longest.

Source: FlashAttention, arXiv 2205.14135, and FlashAttention-2, arXiv 2307.08691.
"""

import functools
import math
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vr_jax.models.common import layers

KEYS = 512  # keys of a tile, at least
FILLING = -(
  2**31
)  # segment of padding, in queries and keys; the output at such queries is undefined
QUERIES = 128  # queries of a tile, at least; below that, rows of the batch run one after the other


class Queries(NamedTuple):
  """Queries of attention.

  segment: a query attends to keys with the same segment.
  index: positions of the queries among the keys, ascending; a query attends to keys up to it.
    None: no causal mask.
  """

  rows: Float[Array, "batch kv_heads per_key queries head_dim"]
  segment: Int[Array, "batch queries"]
  index: Int[Array, "queries"] | None


class Keys(NamedTuple):
  """Keys, values and segments of attention."""

  key: Float[Array, "batch kv_heads keys head_dim"]
  value: Float[Array, "batch kv_heads keys head_dim"]
  segment: Int[Array, "batch keys"]


def attend(
  queries: Queries, keys: Keys, *, logits: int, sides: tuple[int, int] | None = None
) -> tuple[
  Float[Array, "batch kv_heads per_key queries head_dim"],
  Float[Array, "batch kv_heads per_key queries"],
]:
  """Computes attention and the log-sum-exp of its logits, float32; both carry gradients.

  Queries are already scaled. A query without keys gets 0, and log-sum-exp `layers.MASKED`.

  logits: how many logits may be held at once.
  sides: largest numbers of queries and keys of a tile; smaller tiles skip more padding.
  """
  batch, kv_heads, per_key, count, _ = queries.rows.shape
  length = keys.key.shape[2]
  heads = kv_heads * per_key
  most = sides or (count, length)
  tile_keys = _even(length, min(most[1], max(KEYS, math.isqrt(logits // (batch * heads)))))
  tile_queries = min(most[0], logits // (batch * heads * tile_keys))
  if batch > 1 and tile_queries < min(count, QUERIES):
    rows, segment, index = queries

    def attend_row(row: tuple) -> tuple[Array, Array]:
      rows, segment, key, value, key_segment = (x[None] for x in row)
      some, others = Queries(rows, segment, index), Keys(key, value, key_segment)
      out, total = attend(some, others, logits=logits, sides=sides)
      return out[0], total[0]

    return jax.lax.map(attend_row, (rows, segment, *keys))
  tile = (_even(count, tile_queries), tile_keys)
  padded = _padded(queries, keys, tile)
  out, total = cast(tuple[Array, Array], _attend(*padded, tile))
  return out[:, :, :, :count], total[:, :, :, :count]


def _even(length: int, most: int) -> int:
  """A tile size that splits `length` evenly into few tiles, none much larger than `most`."""
  tiles = -(-length // max(most // 8 * 8, 8))
  size = -(-length // tiles)
  return size if tiles == 1 else -(-size // 8) * 8


def _padded(queries: Queries, keys: Keys, tile: tuple[int, int]) -> tuple[Queries, Keys]:
  """Pads to whole tiles. Padding attends to padding only, and comes after all other positions."""
  more, more_keys = -queries.rows.shape[3] % tile[0], -keys.key.shape[2] % tile[1]

  def fill(x: Array, axis: int, count: int, value: int = 0) -> Array:
    widths = [(0, count if i == axis else 0) for i in range(x.ndim)]
    return jnp.pad(x, widths, constant_values=value)

  index = queries.index
  return (
    Queries(
      fill(queries.rows, 3, more),
      fill(queries.segment, 1, more, FILLING),
      None if index is None else jnp.pad(index, (0, more), mode="edge"),
    ),
    Keys(
      fill(keys.key, 2, more_keys),
      fill(keys.value, 2, more_keys),
      fill(keys.segment, 1, more_keys, FILLING),
    ),
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _attend(queries: Queries, keys: Keys, tile: tuple[int, int]) -> tuple[Array, Array]:
  return _forward(queries, keys, tile)[0]


def _forward(queries: Queries, keys: Keys, tile: tuple[int, int]) -> tuple[tuple, tuple]:
  dtype = keys.value.dtype
  query_tiles, key_tiles = _filled(queries.segment, tile[0]), _filled(keys.segment, tile[1])
  last = jnp.max(jnp.where(key_tiles, jnp.arange(len(key_tiles)) + 1, 0))

  def attend_queries(number: Array) -> tuple[Array, Array]:
    some = _queries(queries, number, tile)
    seen = last if some.index is None else jnp.minimum(last, some.index.max() // tile[1] + 1)
    seen = jnp.where(query_tiles[number], seen, 0)

    def add(place: Array, carried: tuple) -> tuple:
      mixed, total, top = carried
      others = _keys(keys, place, tile)
      logits = _logits(some, others, place * tile[1])
      higher = jnp.maximum(top, logits.max(axis=-1))
      share, scale = jnp.exp(logits - higher[..., None]), jnp.exp(top - higher)
      more = _dot("bkqs,bksd->bkqd", _flat(share).astype(dtype), others.value)
      mixed = mixed * scale[..., None] + more.reshape(mixed.shape)
      return mixed, total * scale + share.sum(axis=-1), higher

    zero = jnp.zeros(some.rows.shape[:-1], jnp.float32)
    start = (jnp.zeros(some.rows.shape, jnp.float32), zero, zero + layers.MASKED)
    mixed, total, top = jax.lax.fori_loop(0, seen, add, start)
    total = jnp.where(total > 0, total, 1)
    return mixed / total[..., None], top + jnp.log(total)

  out = jax.lax.map(attend_queries, jnp.arange(queries.rows.shape[3] // tile[0]))
  out, total = (jnp.moveaxis(x, 0, 3) for x in out)
  out = out.reshape(queries.rows.shape)
  total = total.reshape(out.shape[:-1])
  return (out, total), (queries, keys, out, total)


def _backward(tile: tuple[int, int], kept: tuple, given: tuple[Array, Array]) -> tuple:
  queries, keys, out, total = kept
  d_out, d_total = given
  # Subtracted from the gradient of every logit: the mean of the gradients over the softmax.
  centre = (d_out * out).sum(axis=-1) - d_total
  dtype, tiles = keys.value.dtype, queries.rows.shape[3] // tile[0]
  query_tiles, key_tiles = _filled(queries.segment, tile[0]), _filled(keys.segment, tile[1])
  (numbers,) = jnp.nonzero(query_tiles, size=tiles, fill_value=0)
  last = None if queries.index is None else queries.index.reshape(tiles, tile[0]).max(axis=-1)

  def attend_keys(d_rows: Array, place: Array) -> tuple[Array, tuple[Array, Array]]:
    some, first = _keys(keys, place, tile), place * tile[1]

    def add(turn: Array, carried: tuple) -> tuple:
      number, (d_rows, d_key, d_value) = numbers[turn], carried
      others = _queries(queries, number, tile)
      d_mixed, total_here, centre_here = (
        _cut(x, number, tile[0], 3) for x in (d_out, total, centre)
      )
      share = _flat(jnp.exp(_logits(others, some, first) - total_here[..., None]))
      d_mixed = _flat(d_mixed).astype(dtype)
      d_share = _dot("bkqd,bksd->bkqs", d_mixed, some.value)
      d_logits = (share * (d_share - _flat(centre_here[..., None]))).astype(dtype)
      d_value += _dot("bkqs,bkqd->bksd", share.astype(dtype), d_mixed)
      d_key += _dot("bkqs,bkqd->bksd", d_logits, _flat(others.rows))
      more = _dot("bkqs,bksd->bkqd", d_logits, some.key).reshape(others.rows.shape)
      so_far = _cut(d_rows, number, tile[0], 3)
      d_rows = jax.lax.dynamic_update_slice_in_dim(d_rows, so_far + more, number * tile[0], 3)
      return d_rows, d_key, d_value

    zero = jnp.zeros(some.key.shape, jnp.float32)
    begin = 0 if last is None else (query_tiles & (last < first)).sum()
    end = jnp.where(key_tiles[place], query_tiles.sum(), 0)
    d_rows, d_key, d_value = jax.lax.fori_loop(begin, end, add, (d_rows, zero, zero))
    return d_rows, (d_key, d_value)

  zero = jnp.zeros(queries.rows.shape, jnp.float32)
  places = jnp.arange(keys.key.shape[2] // tile[1])
  d_rows, d_tiles = jax.lax.scan(attend_keys, zero, places)
  d_key, d_value = (jnp.moveaxis(x, 0, 2).reshape(keys.key.shape).astype(dtype) for x in d_tiles)
  integer: Any = cast(Any, None)  # integers have no gradient
  d_queries = Queries(d_rows.astype(queries.rows.dtype), integer, integer)
  return d_queries, Keys(d_key, d_value, integer)


_attend.defvjp(_forward, _backward)


def _logits(queries: Queries, keys: Keys, first: Array) -> Float[Array, "..."]:
  """Logits [batch, kv_heads, per_key, queries, keys] of a tile. first: index of its first key."""
  logits = _dot("bkqd,bksd->bkqs", _flat(queries.rows), keys.key)
  mask = queries.segment[:, :, None] == keys.segment[:, None]
  if queries.index is not None:
    mask &= first + jnp.arange(keys.key.shape[2]) <= queries.index[:, None]
  logits = logits.reshape(*queries.rows.shape[:-1], -1)
  return jnp.where(mask[:, None, None], logits, layers.MASKED)


def _filled(segment: Int[Array, "batch length"], size: int) -> Bool[Array, "tiles"]:
  """Which tiles hold anything but padding."""
  return (segment != FILLING).reshape(len(segment), -1, size).any(axis=(0, 2))


def _queries(queries: Queries, number: Array, tile: tuple[int, int]) -> Queries:
  rows, segment, index = queries
  return Queries(
    _cut(rows, number, tile[0], 3),
    _cut(segment, number, tile[0], 1),
    None if index is None else _cut(index, number, tile[0], 0),
  )


def _keys(keys: Keys, place: Array, tile: tuple[int, int]) -> Keys:
  key, value, segment = keys
  return Keys(
    _cut(key, place, tile[1], 2),
    _cut(value, place, tile[1], 2),
    _cut(segment, place, tile[1], 1),
  )


def _cut(x: Array, number: Array, size: int, axis: int) -> Array:
  return jax.lax.dynamic_slice_in_dim(x, number * size, size, axis)


def _flat(x: Float[Array, "batch kv_heads per_key queries last"]) -> Float[Array, "..."]:
  """Merges the queries of heads that share keys into one matrix: [batch, kv_heads, rows, last]."""
  return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _dot(equation: str, left: Array, right: Array) -> Float[Array, "..."]:
  precision = layers.precision(left.dtype)
  return jnp.einsum(equation, left, right, precision=precision, preferred_element_type=jnp.float32)
