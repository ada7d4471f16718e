"""Attention by the Pallas splash kernel of TPUs: no logits in memory, masked blocks are skipped.

Segments express what depends on data: padding, windows of the vision tower. A static mask expresses
what depends on shapes: causal order, which reply a token belongs to. The replies of a group are one
row of queries: each attends to the whole prefix and, causally, to itself. So the prefix is neither
copied for each reply nor merged with it afterwards.

Queries and keys are padded to whole blocks, the prefix apart from the replies, so that few blocks
of replies are masked in part.

Source: jax.experimental.pallas.ops.tpu.splash_attention.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import cast

import jax
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel_lib
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as mask_lib
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int
import numpy as np

# Queries or keys in a block; vector memory allows these.
BLOCKS = (512, 256, 128)
# Larger blocks are used where filling up the last ones adds at most this fraction, or no more than
# filling up the smallest.
PADDING = 1 / 16
UNSEEN = -(2**30)  # segment of the keys that pad the last block
KEPT = "attention"  # name by which a rematerialisation policy keeps what the backward kernel needs


@dataclasses.dataclass(frozen=True)
class RepliesMask(mask_lib.Mask):
  """Mask [group x time, prefix + group x keys]: each reply sees the prefix and, causally, itself.

  A causal prompt is one reply without a prefix.

  time: queries of a reply, which are its tokens from `first` on.
  jump: by which the second half of the queries is further behind.
  fill: numbers of queries and keys added at the end as padding.
  """

  group: int
  time: int
  keys: int
  prefix: int = 0
  first: int = 0
  jump: int = 0
  fill: tuple[int, int] = (0, 0)

  @property
  def shape(self) -> tuple[int, int]:
    """Shape of the whole mask, padding included."""
    rows, columns = self.group * self.time, self.prefix + self.group * self.keys
    return rows + self.fill[0], columns + self.fill[1]

  @functools.cached_property
  def _own(self) -> tuple[Int[np.ndarray, "rows"], Int[np.ndarray, "rows"]]:
    """The first and the last key of its own reply that each query sees; both ascend."""
    rows = np.minimum(np.arange(self.shape[0]), self.group * self.time - 1)
    reply, place = np.divmod(rows, self.time)
    start = self.prefix + reply * self.keys
    return start, start + self.first + place + self.jump * (place >= self.time // 2)

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
  fused: see `make_kernel`.
  interpret: emulate the kernel, on any platform.
  """
  queries, keys = query.shape[1], key.shape[1]
  blocks = choose_block(queries), choose_block(keys)
  fill = (-queries % blocks[0], -keys % blocks[1])

  def from_place(first: int) -> Array:
    mask = mask_lib.FullMask((queries + fill[0], keys + fill[1]))
    if causal:
      jump = keys - 2 * first - queries if folded else 0
      mask = RepliesMask(group=1, time=queries, keys=keys, first=first, jump=jump, fill=fill)
    arrays = (query, key, value, query_segment, key_segment)
    return _run(*arrays, mask, blocks, fused=fused, interpret=interpret)

  runs = 2 if folded else 1  # of successive queries
  return _by_part(from_place, index, keys // queries if causal else 1, queries // runs)


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
  fused: see `make_kernel`.
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

  def from_place(first: int) -> Array:
    mask = RepliesMask(
      group=group, time=time, keys=keys, prefix=prefix + between, first=first, fill=fill
    )
    seeing = jnp.ones(rows.shape[:2], jnp.int32)
    arrays = (rows, key, value, seeing, segment)
    return _run(*arrays, mask, blocks, fused=fused, interpret=interpret)

  return _by_part(from_place, index, keys // time, time).reshape(query.shape)


def _by_part(
  from_place: Callable[[int], Array], index: Int[Array, "queries"], parts: int, length: int
) -> Array:
  """Calls `from_place` with the first position of this shard, a multiple of `length`.

  With one shard it is static; otherwise a switch over all shards selects the mask at run time.
  """
  if parts == 1:
    return from_place(0)
  branches = [functools.partial(from_place, part * length) for part in range(parts)]
  return jax.lax.switch(index[0] // length, branches)


def _run(
  query: Float[Array, "batch queries heads head_dim"],
  key: Float[Array, "batch keys kv_heads head_dim"],
  value: Float[Array, "batch keys kv_heads head_dim"],
  query_segment: Int[Array, "batch queries"],
  key_segment: Int[Array, "batch keys"],
  mask: mask_lib.Mask,
  blocks: tuple[int, int],
  *,
  fused: bool,
  interpret: bool,
) -> Float[Array, "batch queries heads head_dim"]:
  """Runs the kernel. The mask's shape is that of queries and keys padded to whole blocks."""
  length = query.shape[1]
  more, more_keys = mask.shape[0] - length, mask.shape[1] - key.shape[1]
  # A query without any key would have no softmax, so padding queries see what the last one sees.
  segments = kernel_lib.SegmentIds(
    q=jnp.pad(query_segment, ((0, 0), (0, more)), mode="edge"),
    kv=jnp.pad(key_segment, ((0, 0), (0, more_keys)), constant_values=UNSEEN),
  )
  query = query * query.shape[-1] ** -0.5
  wide = ((0, 0), (0, more), (0, 0), (0, 0)), ((0, 0), (0, more_keys), (0, 0), (0, 0))
  arrays = (jnp.pad(query, wide[0]), jnp.pad(key, wide[1]), jnp.pad(value, wide[1]))
  kernel = make_kernel(mask, query.shape[2], blocks, fused=fused, interpret=interpret)
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


def make_kernel(
  mask: mask_lib.Mask,
  heads: int,
  blocks: tuple[int, int],
  *,
  fused: bool = False,
  interpret: bool,
) -> kernel_lib.SplashAttentionKernel:
  """Makes the kernel of a mask whose sides are multiples of those of a block.

  fused: one kernel for the whole backward pass, which computes logits once: five products instead
    of seven. Gradients of queries leave it in parts, one for each block of keys, and are summed.
  """
  rows, keys = blocks
  sizes = kernel_lib.BlockSizes(
    block_q=rows,
    block_kv=keys,
    block_kv_compute=keys,
    block_q_dkv=rows,
    block_kv_dkv=keys,
    block_kv_dkv_compute=keys,
    block_q_dq=None if fused else rows,
    block_kv_dq=None if fused else keys,
    use_fused_bwd_kernel=fused,
  )
  return kernel_lib.make_splash_mha(
    mask_lib.MultiHeadMask([mask] * heads),
    block_sizes=sizes,
    head_shards=1,
    q_seq_shards=1,
    residual_checkpoint_name=KEPT,
    interpret=interpret,
  )
