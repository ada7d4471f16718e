"""Attention by the Pallas splash kernel of TPUs: no logits in memory, masked blocks are skipped.

Segments express what depends on data: padding, windows of the vision tower. A static mask expresses
what depends on shapes: causal order, which reply a token belongs to. The replies of a group are one
row of queries: each attends to the whole prefix and, causally, to itself. So the prefix is neither
copied for each reply nor merged with it afterwards.

Where devices have parts of the queries, all run one kernel. It computes its mask from a number for
each query, and which blocks it skips is looked up by the number of the part.

Queries and keys are padded to whole blocks, the prefix apart from the replies, so that few blocks
of replies are masked in part.

Source: jax.experimental.pallas.ops.tpu.splash_attention.
"""

import dataclasses
import functools
from typing import Any, cast

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel_lib
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as mask_lib
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask_info as mask_info_lib,
)
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

from vr_jax.models.common import zigzag

# Queries or keys in a block; vector memory allows these.
BLOCKS = (512, 256, 128)
# Larger blocks are used where filling up the last ones adds at most this fraction, or no more than
# filling up the smallest.
PADDING = 1 / 16
UNSEEN = -(2**30)  # segment of the keys that pad the last block
KEPT = "attention"  # name by which a rematerialisation policy keeps what the backward kernel needs


@dataclasses.dataclass(frozen=True)
class RepliesMask(mask_lib.Mask):
  """Mask [group x time, prefix + group x time]: each reply sees the prefix and, causally, itself.

  A causal prompt is one reply without a prefix.

  time: tokens of a reply.
  fill: numbers of queries and keys added at the end as padding.
  """

  group: int
  time: int
  prefix: int = 0
  fill: tuple[int, int] = (0, 0)

  @property
  def shape(self) -> tuple[int, int]:
    """Shape of the whole mask, padding included."""
    rows = self.group * self.time
    return rows + self.fill[0], self.prefix + rows + self.fill[1]

  @functools.cached_property
  def _own(self) -> tuple[Int[np.ndarray, "rows"], Int[np.ndarray, "rows"]]:
    """The first and the last key of its own reply that each query sees; both ascend."""
    rows = np.minimum(np.arange(self.shape[0]), self.group * self.time - 1)
    reply, place = np.divmod(rows, self.time)
    start = self.prefix + reply * self.time
    return start, start + place

  def __getitem__(self, where: tuple[slice, slice]) -> Bool[np.ndarray, "rows columns"]:
    """Computes the part of the mask that the kernel asks for.

    [1, 1] for a part that is all true or all false: of most blocks the kernel only asks whether
    they are, and a long prompt has too many pairs to compute each.
    """
    (first, end, _), (left, right, _) = (
      part.indices(size) for part, size in zip(where, self.shape, strict=True)
    )
    start, last = self._own
    own = max(left, self.prefix)  # keys from here on are not the prefix's
    if own >= right or (start[end - 1] <= own and last[first] >= right - 1):
      return np.ones((1, 1), bool)
    if left >= self.prefix and (start[first] >= right or last[end - 1] < left):
      return np.zeros((1, 1), bool)
    columns = np.arange(left, right)
    after, before = start[first:end, None] <= columns, last[first:end, None] >= columns
    return (columns < self.prefix) | (after & before)


@dataclasses.dataclass(frozen=True)
class SeenKeys:
  """The same mask for a part of the queries, each of which has a number.

  keys: tokens of a reply.
  """

  group: int
  keys: int
  prefix: int = 0

  @property
  def _bits(self) -> int:
    """Bits for the token in its reply; those above are for the reply."""
    return (self.keys - 1).bit_length()

  def number(
    self, reply: int | Int[np.ndarray, "..."], token: Int[np.ndarray, "..."]
  ) -> Int[np.ndarray, "..."]:
    """The numbers of queries. token: index in the reply."""
    return ((reply << self._bits) + token).astype(np.int32)

  def own(self, query: Array | np.ndarray) -> tuple[Any, Any]:
    """The first and the last key of its own reply that each query sees. query: its number."""
    start = self.prefix + (query >> self._bits) * self.keys
    return start, start + (query & 2**self._bits - 1)

  def __call__(self, query: Array | np.ndarray, key: Array | np.ndarray) -> Any:
    """Whether queries see keys. The kernel calls it on blocks of numbers and of indices of keys."""
    if self.group == 1:
      return key <= self.prefix + query
    start, last = self.own(query)
    return (key < self.prefix) | ((key >= start) & (key <= last))

  def blocks(
    self, numbers: Int[np.ndarray, "parts queries"], keys: int, sides: tuple[int, int]
  ) -> Bool[np.ndarray, "parts query_blocks key_blocks"]:
    """The blocks in which any query sees any of `keys` keys. sides: queries and keys of a block."""
    left = np.arange(0, keys, sides[1])

    def of_part(numbers: Int[np.ndarray, "queries"]) -> Bool[np.ndarray, "query_blocks key_blocks"]:
      start, last = (x[:, None] for x in self.own(numbers))
      own = np.maximum(start, left) <= np.minimum(last, left + sides[1] - 1)
      seen = np.asarray((left < self.prefix) | own)
      return np.any(seen.reshape(-1, sides[0], len(left)), axis=1)

    return np.stack([of_part(part) for part in numbers])


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
  fused: bool = False,
  interpret: bool = False,
) -> Float[Array, "batch queries heads head_dim"]:
  """Like `attention_xla.attend_segments`.

  index: positions of the queries among the keys; the queries are one of several equal shards, or,
    if `folded`, two of twice as many, an early and a late one (zigzag.py).
  fused: see `Options`.
  interpret: emulate the kernel, on any platform.
  """
  queries, keys = query.shape[1], key.shape[1]
  blocks = choose_block(queries), choose_block(keys)
  fill = (-queries % blocks[0], -keys % blocks[1])
  options = Options(query.shape[2], blocks, fused=fused, interpret=interpret)
  parts = keys // queries if causal else 1
  if parts > 1:
    seen, runs = SeenKeys(group=1, keys=keys), 2 if folded else 1  # of successive queries
    places = zigzag.order(keys, parts) if folded else np.arange(keys)
    numbers = seen.number(0, places.reshape(parts, queries))
    part = index[0] // (queries // runs)
    kernel = make_part_kernel(seen, numbers, part, keys + fill[1], options)
  elif causal:
    kernel = make_kernel(RepliesMask(group=1, time=queries, fill=fill), options)
  else:
    kernel = make_kernel(mask_lib.FullMask((queries + fill[0], keys + fill[1])), options)
  return _run(query, key, value, query_segment, key_segment, kernel, fill)


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
  fused: bool = False,
  interpret: bool = False,
) -> Float[Array, "batch group time heads head_dim"]:
  """Like `attention_xla.attend_replies`.

  index: positions of the queries in their reply; they are one of several equal shards of it.
  fused: see `Options`.
  """
  batch, group, time = query.shape[:3]
  rows = query.reshape(batch, group * time, *query.shape[3:])
  prefix, keys = prefix_key.shape[1], own_key.shape[2]
  blocks = choose_block(group * time), choose_block(prefix, group * keys)
  fill = (-group * time % blocks[0], -group * keys % blocks[1])
  between = -prefix % blocks[1]  # so that replies begin with a block

  def join(prefix: Array, own: Array) -> Array:
    padded = jnp.pad(prefix, ((0, 0), (0, between), *[(0, 0)] * (prefix.ndim - 2)))
    return jnp.concatenate([padded, own.reshape(batch, -1, *own.shape[3:])], axis=1)

  key, value = join(prefix_key, own_key), join(prefix_value, own_value)
  segment = join(prefix_valid.astype(jnp.int32), own_valid.astype(jnp.int32))

  seeing = jnp.ones(rows.shape[:2], jnp.int32)
  options = Options(query.shape[3], blocks, fused=fused, interpret=interpret)
  parts, begin = keys // time, prefix + between
  if parts > 1:
    seen = SeenKeys(group=group, keys=keys, prefix=begin)
    tokens = np.arange(keys).reshape(parts, 1, time)
    numbers = seen.number(np.arange(group)[:, None], tokens).reshape(parts, group * time)
    columns = key.shape[1] + fill[1]
    kernel = make_part_kernel(seen, numbers, index[0] // time, columns, options)
  else:
    kernel = make_kernel(RepliesMask(group=group, time=time, prefix=begin, fill=fill), options)
  return _run(rows, key, value, seeing, segment, kernel, fill).reshape(query.shape)


def _run(
  query: Float[Array, "batch queries heads head_dim"],
  key: Float[Array, "batch keys kv_heads head_dim"],
  value: Float[Array, "batch keys kv_heads head_dim"],
  query_segment: Int[Array, "batch queries"],
  key_segment: Int[Array, "batch keys"],
  kernel: kernel_lib.SplashAttentionKernel,
  fill: tuple[int, int],
) -> Float[Array, "batch queries heads head_dim"]:
  """Runs the kernel. fill: numbers of queries and keys that are added up to whole blocks."""
  length, (more, more_keys) = query.shape[1], fill
  # A query without any key would have no softmax, so padding queries see what the last one sees.
  segments = kernel_lib.SegmentIds(
    q=jnp.pad(query_segment, ((0, 0), (0, more)), mode="edge"),
    kv=jnp.pad(key_segment, ((0, 0), (0, more_keys)), constant_values=UNSEEN),
  )
  query = query * query.shape[-1] ** -0.5
  wide = ((0, 0), (0, more), (0, 0), (0, 0)), ((0, 0), (0, more_keys), (0, 0), (0, 0))
  arrays = (jnp.pad(query, wide[0]), jnp.pad(key, wide[1]), jnp.pad(value, wide[1]))
  # Without residuals the kernel returns one array.
  mixed = cast(Array, jax.vmap(kernel)(*(x.swapaxes(1, 2) for x in arrays), segments))
  return mixed.swapaxes(1, 2)[:, :length].astype(value.dtype)


def choose_block(*parts: int) -> int:
  """The largest block for queries or keys that takes little padding.

  parts: numbers of queries or keys, of which each is padded to whole blocks.
  """

  def padding(block: int) -> int:
    return sum(-part % block for part in parts)

  most = max(padding(BLOCKS[-1]), PADDING * sum(parts))
  return next(block for block in BLOCKS if padding(block) <= most)


@dataclasses.dataclass(frozen=True)
class Options:
  """What a kernel needs besides its mask.

  blocks: queries and keys of a block.
  fused: one kernel for the whole backward pass, which computes logits once: five products instead
    of seven. Gradients of queries leave it in parts, one for each block of keys, and are summed.
  interpret: emulate the kernel, on any platform.
  """

  heads: int
  blocks: tuple[int, int]
  fused: bool = False
  interpret: bool = False

  @property
  def sizes(self) -> kernel_lib.BlockSizes:
    """The sides of the blocks in each pass."""
    rows, keys = self.blocks
    return kernel_lib.BlockSizes(
      block_q=rows,
      block_kv=keys,
      block_kv_compute=keys,
      block_q_dkv=rows,
      block_kv_dkv=keys,
      block_kv_dkv_compute=keys,
      block_q_dq=None if self.fused else rows,
      block_kv_dq=None if self.fused else keys,
      use_fused_bwd_kernel=self.fused,
    )


def make_kernel(mask: mask_lib.Mask, options: Options) -> kernel_lib.SplashAttentionKernel:
  """Makes the kernel of a mask whose sides are multiples of those of a block."""
  return kernel_lib.make_splash_mha(
    mask_lib.MultiHeadMask([mask] * options.heads),
    block_sizes=options.sizes,
    head_shards=1,
    q_seq_shards=1,
    residual_checkpoint_name=KEPT,
    interpret=options.interpret,
  )


def make_part_kernel(
  seen: SeenKeys,
  numbers: Int[np.ndarray, "parts queries"],
  part: Int[Array, ""],
  keys: int,
  options: Options,
) -> kernel_lib.SplashAttentionKernel:
  """Makes the kernel of one part of the queries.

  numbers: of the queries of all parts; padding queries see what the last one sees.
  keys: their number, a multiple of a block's.
  """
  numbers = np.pad(numbers, ((0, 0), (0, -numbers.shape[1] % options.blocks[0])), mode="edge")
  blocks = seen.blocks(numbers, keys, options.blocks)

  def of_part(x: np.ndarray) -> Array:
    return jax.lax.dynamic_slice_in_dim(jnp.asarray(x), part, 1)

  def info(next_block: np.ndarray) -> mask_info_lib.MaskInfo:
    return mask_info_lib.MaskInfo(
      data_next=of_part(next_block),
      mask_next=None,
      block_mask=of_part(blocks.astype(np.int8)),
      partial_mask_blocks=None,
      q_sequence=cast(Any, of_part(numbers)[0]),
    )

  by_query = info(_next_blocks(blocks))
  return kernel_lib.SplashAttentionKernel(
    by_query,
    None if options.fused else by_query,
    info(_next_blocks(blocks.swapaxes(1, 2)).swapaxes(1, 2)),
    block_sizes=options.sizes,
    is_mqa=False,
    save_residuals=False,
    mask_value=kernel_lib.DEFAULT_MASK_VALUE,
    attn_logits_soft_cap=None,
    residual_checkpoint_name=KEPT,
    mask_function=seen,
    interpret=options.interpret,
  )


def _next_blocks(
  blocks: Bool[np.ndarray, "parts outer inner"],
) -> Int[np.ndarray, "parts outer inner"]:
  """At each block, the inner index of the next one that is computed, itself included.

  The kernel loads it ahead. After the last one, the first.
  """
  flat = blocks.reshape(len(blocks), -1)
  count = flat.shape[1]
  places = np.where(flat, np.arange(count), count)
  following = np.minimum.accumulate(places[:, ::-1], axis=1)[:, ::-1]
  following = np.where(following == count, following[:, :1], following)
  return (following % blocks.shape[2]).reshape(blocks.shape).astype(np.int16)
