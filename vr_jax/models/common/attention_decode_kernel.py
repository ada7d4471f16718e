"""Attention of a decoding step as one Pallas kernel for TPUs (emulated on CPU, which is slow).

Computes what `attention_decode.step` computes, and reads less: the keys of a prompt once for all
its replies, and only as far as the prompt goes; the keys of a reply only as far as it is written.
Its operands are the keys and values of all layers as they lie in memory, and the layer is an index
into them: no layer is cut out of its stack. Logits stay in vector memory.

The queries of a prompt are the rows of one matrix: for each reply of the group in turn, the query
heads that share a key's head, padded to `ROWS`. The grid goes over prompts, over the keys' heads a
few at a time, and for these over

    blocks of the prompt | blocks of the first cache of reply 0, 1, … | blocks of the second …

Such a step multiplies one block by the rows that attend to it, and adds to a running softmax that
begins with the new token's own key. The number of steps is known at run time. Where a prompt or a
reply has less to read than another, its steps keep the block that they have: nothing is copied.
What each step reads is looked up in a table, the same for all layers (attention_decode_plan.py).

Source: arXiv 2205.14135, for the running softmax.
"""

from collections.abc import Sequence
import functools
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vr_jax.models.common import attention_decode_plan as plan_lib
from vr_jax.models.common import layers

NAME = "decode_attention"  # of the kernel in compiled programs


def step(
  query: Float[Array, "slots heads head_dim"],
  key: Float[Array, "slots kv_heads head_dim"],
  value: Float[Array, "slots kv_heads head_dim"],
  plan: Int[Array, "plan"],
  layer: Int[Array, ""],
  prefix_key: Float[Array, "layers prompts kv_heads head_dim prefix"],
  prefix_value: Float[Array, "layers prompts kv_heads prefix head_dim"],
  *pasts: Array,
  group: int,
  interpret: bool = False,
) -> Float[Array, "slots heads head_dim"]:
  """Attention of the new token of each slot to its prompt, to its reply and to itself.

  The result of an empty slot is meaningless.

  key, value: of the new tokens.
  plan: of `attention_decode_plan.make_plan`.
  layer: index into the stacks.
  pasts: key [layers, slots, kv_heads, head_dim, length] and value [layers, slots, kv_heads, length,
    head_dim], of one cache or more.
  interpret: emulate the kernel, on any platform.
  """
  slots, heads, head_dim = query.shape
  prompts, kv_heads = prefix_key.shape[1:3]
  stacks = [prefix_key, prefix_value, *pasts]
  shapes = [x.shape for x in stacks[::2]]
  per_key = heads // kv_heads
  sizes = plan_lib.KernelSizes.choose(
    shapes, prefix_key.dtype.itemsize, slots=slots, group=group, per_key=per_key
  )
  padded = sizes.rows
  rows = query.reshape(slots, kv_heads, per_key, head_dim) * head_dim**-0.5
  rows = jnp.pad(rows, ((0, 0), (0, 0), (0, padded - per_key), (0, 0)))
  new = jnp.concatenate([rows, key[:, :, None], value[:, :, None]], axis=2)
  new = jnp.pad(new, ((0, 0), (0, 0), (0, plan_lib.ROWS - 2), (0, 0)))
  new = new[sizes.array(plan, "slot")].reshape(prompts, group, *new.shape[1:])
  row_shape = (sizes.heads, group * padded)

  def group_spec(rows: int) -> pl.BlockSpec:
    block = (None, group, sizes.heads, rows, head_dim)
    return pl.BlockSpec(block, lambda prompt, heads, *_: (prompt, 0, heads, 0, 0))

  out_shape = jax.ShapeDtypeStruct((prompts, group, kv_heads, padded, head_dim), jnp.float32)
  mixed = pl.pallas_call(
    functools.partial(_kernel, sizes=sizes),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=2,
      grid=(prompts, kv_heads // sizes.heads, sizes.array(plan, "starts")[-1]),
      in_specs=[
        group_spec(padded + plan_lib.ROWS),
        *(spec for part in sizes.parts for spec in make_specs(sizes, part, head_dim)),
      ],
      out_specs=group_spec(padded),
      scratch_shapes=[
        pltpu.VMEM((*row_shape, head_dim), jnp.float32),
        pltpu.VMEM((*row_shape, plan_lib.LANES), jnp.float32),
        pltpu.VMEM((*row_shape, plan_lib.LANES), jnp.float32),
        pltpu.VMEM((*row_shape, head_dim), jnp.float32),
        pltpu.VMEM((group * padded, plan_lib.LANES), jnp.int32),
      ],
    ),
    out_shape=out_shape,
    compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
    cost_estimate=estimate_cost(
      query, group, stacks, new.nbytes + out_shape.size * out_shape.dtype.itemsize
    ),
    name=NAME,
    interpret=interpret,
  )(layer.reshape(1).astype(jnp.int32), plan, new, *stacks)
  mixed = mixed.reshape(prompts * group, kv_heads, padded, head_dim)
  mixed = jnp.take(mixed, sizes.array(plan, "reply"), axis=0, mode="clip")[:, :, :per_key]
  return mixed.reshape(query.shape).astype(value.dtype)


def estimate_cost(
  query: Float[Array, "slots heads head_dim"], group: int, stacks: Sequence[Array], others: int
) -> pl.CostEstimate:
  """What one call takes on average over the tokens of a reply.

  Prompts count as long as the array has room for, caches of replies as half of that: they fill up
  from empty.

  stacks: keys and values of the prompts, then of each cache.
  others: bytes of all else that is read or written.
  """
  slots, heads, head_dim = query.shape
  prompts, prefix = stacks[0].shape[1], stacks[0].shape[-1]
  written = sum(key.shape[-1] for key in stacks[2::2]) // 2
  pairs = heads * (prompts * group * prefix + slots * written)
  layer = [x.nbytes // x.shape[0] for x in stacks]
  return pl.CostEstimate(
    flops=4 * head_dim * pairs,
    transcendentals=pairs,
    bytes_accessed=sum(layer[:2]) + sum(layer[2:]) // 2 + others,
  )


def make_specs(sizes: plan_lib.KernelSizes, part: int, head_dim: int) -> list[pl.BlockSpec]:
  """The blocks of keys and of values that each step of the grid has in memory for a part."""

  def place(prompt: Array, step: Array, layer: Any, plan: Any) -> tuple[Any, Any, Any]:
    entry = prompt * sizes.owners(part) + plan[sizes.place("owner", part) + step]
    row, low, high = (plan[sizes.place(name, part) + entry] for name in ("row", "low", "high"))
    return layer[0], row, jnp.minimum(low + plan[sizes.place("turn", part) + step], high)

  def place_keys(prompt: Array, heads: Array, step: Array, *scalars: Any) -> tuple[Any, ...]:
    layer, row, block = place(prompt, step, *scalars)
    return layer, row, heads, 0, block

  def place_values(prompt: Array, heads: Array, step: Array, *scalars: Any) -> tuple[Any, ...]:
    layer, row, block = place(prompt, step, *scalars)
    return layer, row, heads, block, 0

  block = sizes.blocks[part]
  return [
    pl.BlockSpec((None, None, sizes.heads, head_dim, block), place_keys),
    pl.BlockSpec((None, None, sizes.heads, block, head_dim), place_values),
  ]


def _kernel(layer: Any, plan: Any, new: Any, *refs: Any, sizes: plan_lib.KernelSizes) -> None:
  """The steps of the grid.

  new: [group, heads, rows, head_dim], queries of the new tokens, then their keys and values.
  refs: keys and values of each part; results; queries; running maximum, sum and mixture; tokens of
    the prompt that each row attends to.
  """
  del layer
  padded = sizes.rows
  *stacks, out, query, top, total, mixed, limit = refs
  prompt, step = pl.program_id(0), pl.program_id(2)
  starts = [plan[sizes.place("starts") + i] for i in range(len(sizes.blocks) + 1)]

  def rows_of(reply: Any) -> Any:
    return pl.ds(pl.multiple_of(reply * padded, plan_lib.ROWS), padded)

  @pl.when(step == 0)
  def begin() -> None:
    def begin_reply(reply: Any, carry: None) -> None:
      rows, reply_rows = rows_of(reply), new[reply].astype(jnp.float32)
      queries, keys, values = jnp.split(reply_rows[:, : padded + 2], [padded, padded + 1], axis=1)
      logits = (queries * keys).sum(axis=-1, keepdims=True)
      query[:, rows] = queries
      top[:, rows] = jnp.broadcast_to(logits, (sizes.heads, padded, plan_lib.LANES))
      total[:, rows] = jnp.ones((sizes.heads, padded, plan_lib.LANES), jnp.float32)
      mixed[:, rows] = jnp.broadcast_to(values, queries.shape)
      seen = plan[sizes.place("limit") + prompt * sizes.group + reply]
      limit[rows] = jnp.full((padded, plan_lib.LANES), seen, jnp.int32)
      return carry

    jax.lax.fori_loop(0, sizes.group, begin_reply, None)

  def add(rows: Any, keys: Any, values: Any, seen: Any = None, has_value: Any = None) -> None:
    """Adds a block to the softmax of some rows.

    seen: mask [#rows, keys] of what they attend to; has_value: [keys, 1], where there are values.
    """
    product = functools.partial(
      jnp.dot, precision=layers.precision(keys.dtype), preferred_element_type=jnp.float32
    )

    def add_to_head(head: Any, carry: None = None) -> None:
      at = head, rows
      logits = product(query[at].astype(keys.dtype), keys[head])
      logits = logits if seen is None else jnp.where(seen, logits, layers.MASKED)
      # Behind the end of an array a block holds anything, even what is not a number.
      value = values[head] if has_value is None else jnp.where(has_value, values[head], 0)
      before = top[at]
      after = jnp.maximum(before, logits.max(axis=-1, keepdims=True))
      share, scale = jnp.exp(logits - after[:, :1]), jnp.exp(before - after)
      total[at] = total[at] * scale + share.sum(axis=-1, keepdims=True)
      mixed[at] = mixed[at] * scale[:, :1] + product(share.astype(value.dtype), value)
      top[at] = after
      return carry

    if sizes.heads == 1:
      add_to_head(0)
    else:
      jax.lax.fori_loop(0, sizes.heads, add_to_head, None)

  for part in sizes.parts:
    keys, values = stacks[2 * part : 2 * part + 2]
    block, owner = sizes.blocks[part], plan[sizes.place("owner", part) + step]
    entry = prompt * sizes.owners(part) + owner
    low, begins, ends = (plan[sizes.place(n, part) + entry] for n in ("low", "begin", "end"))
    start = (low + plan[sizes.place("turn", part) + step]) * block
    rows = rows_of(owner) if part else slice(None)
    whole_from = begins if part else 0
    whole_to = ends if part else plan[sizes.place("shortest") + prompt]
    is_whole = (whole_from <= start) & (start + block <= whole_to)
    is_here = (starts[part] <= step) & (step < starts[part + 1])
    has_keys = is_here & (begins < ends) & (start < ends)

    @pl.when(has_keys & is_whole)
    def add_whole(rows=rows, keys=keys, values=values) -> None:
      add(rows, keys, values)

    @pl.when(has_keys & ~is_whole)
    def add_masked(
      *, rows=rows, keys=keys, values=values, part=part, start=start, begins=begins, ends=ends
    ) -> None:
      block = sizes.blocks[part]
      column = start + jax.lax.broadcasted_iota(jnp.int32, (1, block), 1)
      place = start + jax.lax.broadcasted_iota(jnp.int32, (block, 1), 0)
      seen = (column >= begins) & (column < (ends if part else limit[:, :1]))
      add(rows, keys, values, seen, place < ends)

  @pl.when(step == starts[-1] - 1)
  def finish() -> None:
    def finish_reply(reply: Any, carry: None) -> None:
      rows = rows_of(reply)
      out[reply] = mixed[:, rows] / total[:, rows, :1]
      return carry

    jax.lax.fori_loop(0, sizes.group, finish_reply, None)
