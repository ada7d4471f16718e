"""Decoding where prompts are split over devices: keys stay, queries and partial results move."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parallel import test_mesh
from tests.train import nano
from vr_jax.models import layout as layout_lib
from vr_jax.models.common import attention
from vr_jax.models.common import slots as slots_lib
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rollout import sampler
from vr_jax.train import initialization

BLOCKS, PROMPTS, GROUP, KEPT = 2, 2, 3, 5  # prompts of a block
PREFIX, LENGTH, HEADS, KV_HEADS, HEAD_DIM = 16, 7, 4, 2, 8
SPLIT = ((1, 2, 4, 1), (2, 1, 2, 2))
KINDS = {"f64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "pred": 1}  # bytes


@functools.cache
def _case(slots: int):
  """Random arrays, numbered over all blocks: 8 slots for the 6 replies of a block."""
  random = np.random.default_rng(0)
  draw = lambda *shape: random.normal(size=shape).astype(np.float32)  # noqa: E731
  reply = np.minimum(np.arange(slots) % (slots // BLOCKS), PROMPTS * GROUP)
  return {
    "query": draw(slots, HEADS, HEAD_DIM) * 3,
    "prompt": reply // GROUP,
    "group_index": reply % GROUP,
    "forgets": random.random(slots) < 0.5,
    "prefix_key": draw(BLOCKS * PROMPTS, KV_HEADS, HEAD_DIM, PREFIX),
    "prefix_value": draw(BLOCKS * PROMPTS, KV_HEADS, PREFIX, HEAD_DIM),
    "prefix_valid": np.arange(PREFIX) < np.array([16, 3, 9, 1])[:, None],  # whole parts are padding
    "key": draw(slots, KV_HEADS, HEAD_DIM, LENGTH),
    "value": draw(slots, KV_HEADS, LENGTH, HEAD_DIM),
    "valid": random.random((slots, LENGTH)) < 0.6,
  }


def _expected(case, slot, *, forgetting):
  """Attention of one slot, one head after the other, in plain NumPy and float64."""
  prompt = slot // (len(case["query"]) // BLOCKS) * PROMPTS + case["prompt"][slot]
  seen = case["prefix_valid"][prompt]
  if forgetting and case["forgets"][slot]:
    seen = seen & (np.arange(PREFIX) < KEPT)
  seen = np.concatenate([seen, case["valid"][slot]])
  rows = []
  for head, query in enumerate(case["query"][slot].astype(np.float64)):
    kv = head // (HEADS // KV_HEADS)
    keys = np.concatenate([case["prefix_key"][prompt, kv].T, case["key"][slot, kv].T])[seen]
    values = np.concatenate([case["prefix_value"][prompt, kv], case["value"][slot, kv]])[seen]
    logits = keys @ query / np.sqrt(HEAD_DIM)
    weights = np.exp(logits - logits.max())
    rows.append(weights @ values / weights.sum())
  return np.stack(rows)


@pytest.mark.parametrize("forgetting", [False, True])
@pytest.mark.parametrize("shape", [*SPLIT, (1, 2, 2, 2)])
def test_attention_to_parts_of_a_prompt_is_that_of_plain_numpy(shape, forgetting):
  case = _case(16)
  layout = mesh_lib.MeshLayout(mesh_lib.make_mesh(shape))
  slots = slots_lib.DecodeSlots(
    prompt=jnp.asarray(case["prompt"]),
    group_index=jnp.asarray(case["group_index"]),
    group=GROUP,
    forgets=jnp.asarray(case["forgets"]) if forgetting else None,
    kept=KEPT,
  )
  blocks = [
    attention.Block(*(jnp.asarray(case[f"{kind}{name}"]) for name in ("key", "value", "valid")))
    for kind in ("prefix_", "")
  ]
  step = jax.jit(lambda *inputs: attention.Attention(layout).step(*inputs))
  actual = np.asarray(step(jnp.asarray(case["query"]), slots, *blocks))
  full = np.flatnonzero(case["prompt"] < PROMPTS)
  assert len(full) == BLOCKS * PROMPTS * GROUP
  for slot in full:
    expected = _expected(case, slot, forgetting=forgetting)
    np.testing.assert_allclose(actual[slot], expected, rtol=0, atol=2e-6)


def test_rows_of_one_device_are_gathered_and_exchanged_with_nobody():
  x = jnp.arange(6).reshape(3, 2)
  for layout in (layout_lib.OneDevice(), mesh_lib.MeshLayout(mesh_lib.make_mesh((8, 1, 1, 1)))):
    np.testing.assert_array_equal(layout.gather_shards(x, "prefix"), x)
    np.testing.assert_array_equal(layout.exchange_shards(x, "prefix"), x[None])


@pytest.mark.parametrize("shape", SPLIT)
def test_greedy_replies_to_split_prompts_are_those_of_one_device(data, shape):
  replies, _ = test_mesh.replies(data, shape, 4, temperature=0.0)
  expected, _ = test_mesh.replies(data, (1, 1, 1, 1), 4, temperature=0.0)
  np.testing.assert_array_equal(replies, expected)
  assert len(np.unique(replies)) > 5


@pytest.mark.parametrize("shape", [(1, 2, 4, 1), (1, 4, 2, 1)])
def test_no_step_of_decoding_moves_the_keys_of_a_prompt(data, shape):
  context = nano.build(data, mesh=shape)
  decoding = context.decoding(group=3, max_new_tokens=8)
  prompt = context.builder.prompt(context.builder.batch(nano.ragged_items(context, 4)))
  params = sampler.decoding_params(context.graphdef, initialization.fresh_params(context))
  prefix, state = sampler._start(
    context.graphdef, params, prompt, jax.random.key(0), decoding=decoding
  )
  program = sampler._decode.lower(
    context.graphdef,
    params,
    prefix,
    state,
    context.allowed_tokens,
    jnp.int32(0),
    decoding=decoding,
  ).compile()
  part = prefix.keys.sharding.shard_shape(prefix.keys.shape)
  assert part[2] == prefix.keys.shape[2] / shape[2]  # prefilled keys lie split
  moved = _moved(program.as_text() or "")
  assert any(name == "all-to-all" for name, _ in moved)
  whole = math.prod(part[1:]) * shape[2] * 4
  assert max(size for name, size in moved if name == "all-gather") < whole / 4, (whole, moved)
  assert max(size for _, size in moved) < whole / 2, (whole, moved)


def _moved(program: str) -> list[tuple[str, int]]:
  """The collectives of a compiled program: their names, and the bytes of their results."""
  names = "all-gather|all-to-all|all-reduce|collective-permute|reduce-scatter"
  found = []
  for result, name in re.findall(rf"= (.+?) ({names})(?:-start)?\(", program):
    shapes = re.findall(r"(\w+)\[([\d,]*)\]", result)
    sizes = [
      KINDS[kind] * math.prod(map(int, filter(None, dims.split(",")))) for kind, dims in shapes
    ]
    found.append((name, sum(sizes)))
  return found
