"""The decode kernel, emulated: against a softmax in float64, and against plain products."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vr_jax.models.common import attention_decode, attention_decode_kernel, attention_decode_plan

LAYERS, LAYER = 2, 1
# Of values with standard deviation 1: float32 adds up in another order; bfloat16 rounds the result
# and each weight.
TOLERANCE = {"float32": 2e-6, "bfloat16": 2**-6}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  """So small that the sizes here need several, and that the last ones are not full."""
  monkeypatch.setattr(attention_decode_plan, "LANES", 16)
  monkeypatch.setattr(attention_decode_plan, "MOST_KEYS", 32)
  monkeypatch.setattr(attention_decode_plan, "REPLY_BYTES", 1)


def draw(
  *,
  prompts=3,
  group=4,
  kv_heads=2,
  per_key=2,
  head_dim=16,
  prefix=70,
  lengths=(37,),
  empty=2,
  dtype="float32",
  missing=(),
):
  """Arguments of a step in mixed slots, some of them empty, and what lies nowhere is not a number.

  missing: (prompt, reply) that have no slot.
  """
  rng = np.random.default_rng(0)
  replies = [at for at in itertools.product(range(prompts), range(group)) if at not in missing]
  replies += [(prompts, 0)] * empty
  slots = len(replies)
  prompt, group_index = np.array(replies, np.int32)[rng.permutation(slots)].T

  def normal(*shape, valid=True):
    x = np.where(valid, rng.standard_normal(shape), np.nan)
    return jnp.asarray(x, dtype)

  longest = rng.integers(1, prefix + 1, prompts)
  longest[0] = prefix
  seen = np.arange(prefix) < longest[:, None, None, None]
  query = normal(slots, kv_heads * per_key, head_dim)
  new = [normal(slots, kv_heads, head_dim) for _ in range(2)]
  stacks = [
    normal(LAYERS, prompts, kv_heads, head_dim, prefix, valid=seen),
    normal(LAYERS, prompts, kv_heads, prefix, head_dim, valid=seen.swapaxes(-1, -2)),
  ]
  pasts = []
  for length in lengths:
    end = rng.integers(0, length + 1, slots)
    end[:2] = 0, length
    seen = np.arange(length) < end[:, None, None, None]
    pasts += [
      normal(LAYERS, slots, kv_heads, head_dim, length, valid=seen),
      normal(LAYERS, slots, kv_heads, length, head_dim, valid=seen.swapaxes(-1, -2)),
      jnp.zeros(slots, jnp.int32),
      jnp.asarray(end, jnp.int32),
    ]
  at = [jnp.asarray(x) for x in (prompt, group_index)]
  return [query, *new, *at, jnp.int32(LAYER), *stacks, jnp.asarray(longest, jnp.int32), *pasts]


def in_kernel(arguments, *, group, **forgetting):
  def step(query, key, value, prompt, group_index, layer, *rest):
    prefix_key, prefix_value, longest, *pasts = rest
    caches = [pasts[i : i + 2] for i in range(0, len(pasts), 4)]
    ranges = [x for i in range(2, len(pasts), 4) for x in pasts[i : i + 2]]
    sizes = attention_decode_plan.KernelSizes.choose(
      [x.shape for x in (prefix_key, *(keys for keys, _ in caches))],
      prefix_key.dtype.itemsize,
      slots=len(query),
      group=group,
      per_key=query.shape[1] // key.shape[1],
    )
    at = prompt, group_index, longest
    plan = attention_decode_plan.make_plan(sizes, *at, *ranges, **forgetting)
    stacks = [prefix_key, prefix_value, *(x for cache in caches for x in cache)]
    return attention_decode_kernel.step(
      query, key, value, plan, layer, *stacks, group=group, interpret=True
    )

  return jax.jit(step)(*arguments)


def in_float64(arguments, *, forgets=None, kept=0):
  """The softmax of each slot over its keys, gathered one after the other."""
  query, key, value, prompt, _, layer, prefix_key, prefix_value, longest, *pasts = (
    np.asarray(x, np.float64 if jnp.issubdtype(x.dtype, jnp.floating) else None) for x in arguments
  )
  results = np.full(query.shape, np.nan)
  for slot, of in enumerate(prompt):
    if of == len(longest):
      continue
    most = min(longest[of], kept) if forgets is not None and forgets[slot] else longest[of]
    keys, values = [key[slot][:, None]], [value[slot][:, None]]
    keys.append(prefix_key[layer, of].swapaxes(1, 2)[:, :most])
    values.append(prefix_value[layer, of][:, :most])
    for first in range(0, len(pasts), 4):
      past_key, past_value, begin, end = pasts[first : first + 4]
      keys.append(past_key[layer, slot].swapaxes(1, 2)[:, begin[slot] : end[slot]])
      values.append(past_value[layer, slot][:, begin[slot] : end[slot]])
    keys, values = (np.concatenate(x, axis=1) for x in (keys, values))
    per_key = query.shape[1] // len(keys)
    for head in range(query.shape[1]):
      logits = keys[head // per_key] @ query[slot, head] / np.sqrt(query.shape[-1])
      weights = np.exp(logits - logits.max())
      results[slot, head] = weights @ values[head // per_key] / weights.sum()
  return results


def assert_same(arguments, *, options=None, **forgetting):
  options = options or {}
  found = np.asarray(in_kernel(arguments, **options, **forgetting), np.float64)
  expected = in_float64(arguments, **forgetting)
  is_live = ~np.isnan(expected)
  tolerance = TOLERANCE[arguments[0].dtype.name]
  np.testing.assert_allclose(found[is_live], expected[is_live], atol=tolerance, rtol=0)


SHAPES = {
  "7b": {"per_key": 7, "head_dim": 128, "dtype": "bfloat16"},
  "many heads of 80": {"kv_heads": 12, "per_key": 1, "head_dim": 80, "group": 2},
  "heads of 64": {"per_key": 7, "head_dim": 64, "prompts": 2},
  "no more than a block": {"prefix": 20, "lengths": (7,), "dtype": "bfloat16"},
  "more queries of a key than rows": {"per_key": 10, "head_dim": 64, "prompts": 2},
  "one reply": {"group": 1, "kv_heads": 1, "prompts": 5, "head_dim": 128},
  "two caches": {"lengths": (37, 50), "head_dim": 80, "per_key": 1, "dtype": "bfloat16"},
  "no cache": {"lengths": ()},
  "replies without a slot": {"missing": ((0, 0), (0, 2), (2, 3)), "prefix": 64, "lengths": (32,)},
  "prompts without a reply": {"group": 2, "missing": tuple((p, g) for p in (0, 2) for g in (0, 1))},
}


@pytest.mark.parametrize("name", SHAPES)
def test_each_slot_attends_to_its_prompt_to_its_reply_and_to_itself(name):
  arguments = draw(**SHAPES[name])
  assert_same(arguments, options={"group": SHAPES[name].get("group", 4)})


def test_replies_forget_all_but_the_first_tokens_of_their_prompt_and_their_own_first_turns():
  arguments = draw(group=3, lengths=(50, 20), empty=0)
  arguments[8] = arguments[8].at[1].set(0)  # a prompt without tokens
  slots = len(arguments[0])
  arguments[11] = jnp.minimum(jnp.arange(slots) * 7 % 50, arguments[12])  # begin of the first cache
  forgets = jnp.arange(slots) % 4 != 0
  assert_same(arguments, options={"group": 3}, forgets=forgets, kept=21)
  everything = jnp.ones(slots, bool)
  assert_same(arguments, options={"group": 3}, forgets=everything, kept=0)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_the_kernel_computes_what_plain_products_compute(dtype):
  arguments = draw(dtype=dtype, head_dim=64, per_key=7)
  query, key, value, *at, layer, prefix_key, prefix_value, longest = arguments[:9]
  past_key, past_value, _, end = arguments[9:]

  def mask(x, ends):
    return jnp.arange(x.shape[-1]) < ends[:, None]

  def plain(x):
    return jnp.nan_to_num(x[layer])  # it multiplies what it masks

  expected = jax.jit(functools.partial(attention_decode.step, group=4))(
    *(query, *at, plain(prefix_key), plain(prefix_value), mask(prefix_key, longest)),
    *(plain(past_key), plain(past_value), mask(past_key, end)),
    *(key[..., None], value[:, :, None], jnp.ones(1, bool)),
  )
  found = in_kernel(arguments, group=4)
  is_live = np.asarray(at[0]) < len(longest)
  np.testing.assert_allclose(
    *(np.asarray(x, np.float32)[is_live] for x in (found, expected)), atol=TOLERANCE[dtype], rtol=0
  )


def test_each_block_is_read_once_and_none_behind_the_end_of_a_prompt_or_a_reply():
  """The kernel copies a block where its index is not that of the step before."""
  prompts, group, heads, head_dim = 4, 2, 2, 16
  longest = np.array([70, 90, 10, 33])
  end = np.array([[0, 37], [9, 9], [5, 32], [37, 37]])
  is_live = np.array([[1, 1], [0, 0], [1, 1], [1, 0]], bool)
  slot = np.array([[3, 0], [0, 0], [4, 2], [1, 0]])
  shapes = [(1, prompts, heads, head_dim, 90), (1, 5, heads, head_dim, 37)]
  sizes = attention_decode_plan.KernelSizes.choose(shapes, 4, slots=5, group=group, per_key=2)
  assert sizes.blocks == (32, 16)
  slots = [np.flatnonzero((slot == n) & is_live) for n in range(5)]
  prompt, group_index = np.divmod([n[0] if len(n) else prompts * group for n in slots], group)
  ends = np.zeros(5, int)
  ends[slot[is_live]] = end[is_live]
  plan = attention_decode_plan.make_plan(
    sizes, *map(jnp.asarray, (prompt, group_index, longest, np.zeros(5, int), ends))
  )
  scalars = jnp.zeros(1, jnp.int32), plan
  steps = int(sizes.array(plan, "starts")[-1])
  grid = np.array(list(itertools.product(range(prompts), range(steps))))

  def blocks_read(part, *, axis):
    index_map = attention_decode_kernel.make_specs(sizes, part, head_dim)[axis].index_map
    places = jax.jit(jax.vmap(lambda p, s: index_map(p, jnp.int32(0), s, *scalars)))(*grid.T)
    row, block = np.asarray(places[1]), np.asarray(places[4 - axis])
    return [at for at, _ in itertools.groupby(zip(row.tolist(), block.tolist(), strict=True))]

  of_prompts = [(p, b) for p in (0, 2, 3) for b in range(-(-longest[p] // 32))]
  replies = zip(*(x[is_live].tolist() for x in (slot, end)), strict=True)
  of_replies = [(row, b) for row, size in replies for b in range(-(-size // 16))]
  for axis in (0, 1):
    assert blocks_read(0, axis=axis) == of_prompts
    assert blocks_read(1, axis=axis) == of_replies
