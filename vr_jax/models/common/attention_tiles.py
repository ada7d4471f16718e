"""Attention tile by tile: no more logits at once than caches hold, forward and backward, however long the prompt.

The forward pass goes over tiles of keys for each tile of queries, with running maximum and sum; of all that only the output and
the logarithm of the sum is kept. The backward pass makes each tile's logits again, once, and goes over tiles of queries for each
tile of keys. Tiles that causal order hides are skipped, and those that hold nothing but `FILLING`: so replies of many lengths cost
what their tokens cost, though their shapes are those of the longest.

Source: FlashAttention, arXiv 2205.14135, and FlashAttention-2, arXiv 2307.08691.
"""

import functools
import math
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vr_jax.models.common import layers

KEYS = 512  # of a tile, at least
FILLING = -(
  2**31
)  # the segment of what is none: padding of queries, whose result means nothing, and of keys
QUERIES = 128  # of a tile, at least; for less, rows of the batch are computed one after the other


class Queries(NamedTuple):
  """segment: whose keys each may see; index: its place among the keys, in ascending order, of which it sees those up to it.

  index None: it sees all.
  """

  rows: Float[Array, "batch kv_heads per_key queries head_dim"]
  segment: Int[Array, "batch queries"]
  index: Int[Array, "queries"] | None


class Keys(NamedTuple):
  """With their values."""

  key: Float[Array, "batch kv_heads keys head_dim"]
  value: Float[Array, "batch kv_heads keys head_dim"]
  segment: Int[Array, "batch keys"]


def attend(
  queries: Queries, keys: Keys, *, logits: int, sides: tuple[int, int] | None = None
) -> tuple[
  Float[Array, "batch kv_heads per_key queries head_dim"],
  Float[Array, "batch kv_heads per_key queries"],
]:
  """(softmax attention, logarithm of the sum of exponentials of its logits), float32; both carry gradients.

  Its rows are scaled already. A query that sees no key gets 0, and the logarithm `layers.MASKED`. logits: how many numbers may be
  made at once. sides: queries and keys of a tile, at most; where much is filling, small tiles skip more of it.
  """
  batch, kv_heads, per_key, count, _ = queries.rows.shape
  length = keys.key.shape[2]
  heads = kv_heads * per_key
  most = sides or (count, length)
  of_keys = _even(length, min(most[1], max(KEYS, math.isqrt(logits // (batch * heads)))))
  of_queries = min(most[0], logits // (batch * heads * of_keys))
  if batch > 1 and of_queries < min(count, QUERIES):
    rows, segment, index = queries

    def of_row(row: tuple) -> tuple[Array, Array]:
      rows, segment, key, value, key_segment = (x[None] for x in row)
      some, others = Queries(rows, segment, index), Keys(key, value, key_segment)
      out, total = attend(some, others, logits=logits, sides=sides)
      return out[0], total[0]

    return jax.lax.map(of_row, (rows, segment, *keys))
  tile = (_even(count, of_queries), of_keys)
  padded = _padded(queries, keys, tile)
  out, total = cast(tuple[Array, Array], _attend(*padded, tile))
  return out[:, :, :, :count], total[:, :, :, :count]


def _even(length: int, most: int) -> int:
  """The size of a tile, so that few of about the same size, none much larger than `most`, make the whole."""
  tiles = -(-length // max(most // 8 * 8, 8))
  size = -(-length // tiles)
  return size if tiles == 1 else -(-size // 8) * 8


def _padded(queries: Queries, keys: Keys, tile: tuple[int, int]) -> tuple[Queries, Keys]:
  """To whole tiles. What is added sees what is added, and lies behind all that is causal."""
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
  dtype, asked, told = (
    keys.value.dtype,
    _filled(queries.segment, tile[0]),
    _filled(keys.segment, tile[1]),
  )
  last = jnp.max(jnp.where(told, jnp.arange(len(told)) + 1, 0))

  def of_queries(number: Array) -> tuple[Array, Array]:
    some = _queries(queries, number, tile)
    seen = last if some.index is None else jnp.minimum(last, some.index.max() // tile[1] + 1)
    seen = jnp.where(asked[number], seen, 0)

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

  out = jax.lax.map(of_queries, jnp.arange(queries.rows.shape[3] // tile[0]))
  out, total = (jnp.moveaxis(x, 0, 3) for x in out)
  out = out.reshape(queries.rows.shape)
  total = total.reshape(out.shape[:-1])
  return (out, total), (queries, keys, out, total)


def _backward(tile: tuple[int, int], kept: tuple, given: tuple[Array, Array]) -> tuple:
  queries, keys, out, total = kept
  d_out, d_total = given
  # What every logit's gradient has taken off: the mean over its query's shares.
  centre = (d_out * out).sum(axis=-1) - d_total
  dtype, tiles = keys.value.dtype, queries.rows.shape[3] // tile[0]
  asked, told = _filled(queries.segment, tile[0]), _filled(keys.segment, tile[1])
  (numbers,) = jnp.nonzero(asked, size=tiles, fill_value=0)
  last = None if queries.index is None else queries.index.reshape(tiles, tile[0]).max(axis=-1)

  def of_keys(d_rows: Array, place: Array) -> tuple[Array, tuple[Array, Array]]:
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
    begin = 0 if last is None else (asked & (last < first)).sum()
    end = jnp.where(told[place], asked.sum(), 0)
    d_rows, d_key, d_value = jax.lax.fori_loop(begin, end, add, (d_rows, zero, zero))
    return d_rows, (d_key, d_value)

  zero = jnp.zeros(queries.rows.shape, jnp.float32)
  places = jnp.arange(keys.key.shape[2] // tile[1])
  d_rows, of_tiles = jax.lax.scan(of_keys, zero, places)
  d_key, d_value = (jnp.moveaxis(x, 0, 2).reshape(keys.key.shape).astype(dtype) for x in of_tiles)
  integer: Any = cast(Any, None)  # integers have no gradient
  d_queries = Queries(d_rows.astype(queries.rows.dtype), integer, integer)
  return d_queries, Keys(d_key, d_value, integer)


_attend.defvjp(_forward, _backward)


def _logits(queries: Queries, keys: Keys, first: Array) -> Float[Array, "..."]:
  """[batch, kv_heads, per_key, queries, keys] of tiles; first: the place of the first key."""
  logits = _dot("bkqd,bksd->bkqs", _flat(queries.rows), keys.key)
  mask = queries.segment[:, :, None] == keys.segment[:, None]
  if queries.index is not None:
    mask &= first + jnp.arange(keys.key.shape[2]) <= queries.index[:, None]
  logits = logits.reshape(*queries.rows.shape[:-1], -1)
  return jnp.where(mask[:, None, None], logits, layers.MASKED)


def _filled(segment: Int[Array, "batch length"], size: int) -> Bool[Array, "tiles"]:
  """Which tiles hold more than filling."""
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
  """The queries of all heads that share keys as rows of one matrix: [batch, kv_heads, rows, last]."""
  return x.reshape(*x.shape[:2], -1, x.shape[-1])


def _dot(equation: str, left: Array, right: Array) -> Float[Array, "..."]:
  precision = layers.precision(left.dtype)
  return jnp.einsum(equation, left, right, precision=precision, preferred_element_type=jnp.float32)
