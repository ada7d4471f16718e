"""Decoding where prompts are split over devices: keys stay, queries and partial results move."""

import collections
import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.launch import test_programs
from tests.parallel import test_mesh
from tests.train import nano
from vr_jax.models import layout as layout_lib
from vr_jax.models.common import attention, attention_xla
from vr_jax.models.common import slots as slots_lib
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rollout import refill_sampler, sampler, turn_decode
from vr_jax.train import initialization

BLOCKS, PROMPTS, GROUP, KEPT = 2, 2, 3, 5  # prompts of a block
PREFIX, LENGTH, HEADS, KV_HEADS, HEAD_DIM = 16, 7, 4, 2, 8
TIME = 5  # tokens of an observation
SPLIT = ((1, 2, 4, 1), (2, 1, 2, 2))


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


def _observations(rows: int):
  """Random observations of up to 5 tokens, numbered over all devices; the last row is empty."""
  random = np.random.default_rng(1)
  draw = lambda *shape: random.normal(size=shape).astype(np.float32)  # noqa: E731
  lengths = random.integers(1, TIME + 1, rows)
  return {
    **_case(rows),
    "query": draw(rows, TIME, HEADS, HEAD_DIM) * 3,
    "own_key": draw(rows, TIME, KV_HEADS, HEAD_DIM),
    "own_value": draw(rows, TIME, KV_HEADS, HEAD_DIM),
    "own_valid": np.arange(TIME) < lengths[:, None],
    "written": random.integers(0, LENGTH + 1, rows),
    "visible_from": random.integers(0, 4, rows) * random.integers(0, 2, rows),
  }


def _expected_observation(case, row, cache_slot, *, forgetting):
  """Like `_expected`, of each valid token of an observation. cache_slot: over all devices."""
  prompt = row // (len(case["query"]) // BLOCKS) * PROMPTS + case["prompt"][row]
  first = case["visible_from"][row] if forgetting else 0
  seen = case["prefix_valid"][prompt] & ((np.arange(PREFIX) < KEPT) | (first == 0))
  past = slice(first, case["written"][row])
  found = []
  for token in range(case["own_valid"][row].sum()):
    for head, query in enumerate(case["query"][row, token].astype(np.float64)):
      kv = head // (HEADS // KV_HEADS)
      keys, values = (
        np.concatenate([of_prompt[seen], of_past[past], own[: token + 1]])
        for of_prompt, of_past, own in (
          (
            case["prefix_key"][prompt, kv].T,
            case["key"][cache_slot, kv].T,
            case["own_key"][row, :, kv],
          ),
          (
            case["prefix_value"][prompt, kv],
            case["value"][cache_slot, kv],
            case["own_value"][row, :, kv],
          ),
        )
      )
      logits = keys @ query / np.sqrt(HEAD_DIM)
      weights = np.exp(logits - logits.max())
      found.append(weights @ values / weights.sum())
  return np.reshape(found, (-1, HEADS, HEAD_DIM))


@pytest.mark.parametrize("forgetting", [False, True])
@pytest.mark.parametrize("logits", [2**20, 2**6], ids=["plain", "tiles"])
@pytest.mark.parametrize("shape", [*SPLIT, (1, 2, 2, 2)])
def test_observations_attend_to_parts_of_a_prompt_as_plain_numpy_does(
  shape, logits, forgetting, monkeypatch
):
  monkeypatch.setattr(attention_xla, "CACHED_LOGITS", logits)
  case, layout = _observations(24), mesh_lib.MeshLayout(mesh_lib.make_mesh(shape))
  of_device = 24 // layout.ways("slots")
  empty = case["prompt"] >= PROMPTS
  local = np.where(empty, of_device, np.arange(24)[::-1] % of_device)
  rows = slots_lib.CacheRows(
    cache_slot=jnp.asarray(local),
    prompt_slot=jnp.asarray(case["prompt"]),
    written=jnp.asarray(case["written"]),
    position=jnp.zeros(24, jnp.int32),
    visible_from=jnp.asarray(case["visible_from"]) if forgetting else None,
    kept=KEPT,
  )
  own = attention.Block(*(jnp.asarray(case[f"own_{name}"]) for name in ("key", "value", "valid")))
  prefix = attention.Block(
    *(jnp.asarray(case[f"prefix_{name}"]) for name in ("key", "value", "valid"))
  )
  prefix = prefix._replace(key=jnp.moveaxis(prefix.key, 3, 1), value=prefix.value.swapaxes(1, 2))
  attend = jax.jit(lambda *inputs: attention.Attention(layout).prefill_observation(*inputs))
  past = jnp.asarray(case["key"]), jnp.asarray(case["value"])
  actual = np.asarray(attend(jnp.asarray(case["query"]), own, rows, prefix, *past))
  assert 0 < empty.sum() < len(empty)
  for row in np.flatnonzero(~empty):
    cache_slot = row // of_device * of_device + local[row]
    expected = _expected_observation(case, row, cache_slot, forgetting=forgetting)
    np.testing.assert_allclose(actual[row, : len(expected)], expected, rtol=0, atol=3e-6)


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


class _CalledError(Exception):
  """The function whose program is looked at has been called."""


def _first_call(monkeypatch, module, name, play):
  """The arguments with which `play` calls a function first."""
  calls = []

  def stop(*arguments, **keywords):
    calls.append((arguments, keywords))
    raise _CalledError

  function = getattr(module, name)
  with monkeypatch.context() as patched, pytest.raises(_CalledError):
    patched.setattr(module, name, stop)
    play()
  return function, *calls[0]


def _sampling(data, shape, kind, monkeypatch, **changes):
  """The program of decoding, and its arguments, when replies of one turn are drawn."""
  context = nano.build(data, mesh=shape, rl__decode_layout=kind, model__prefix_buckets=(512,))
  prompt = context.builder.prompt(context.builder.batch(nano.ragged_items(context, 4)))
  arguments = (
    *(context.graphdef, initialization.fresh_params(context), prompt, context.allowed_tokens),
    jax.random.key(0),
  )
  decoding = context.decoding(group=4, max_new_tokens=8, **changes)
  source, called = (refill_sampler, turn_decode) if decoding.slots else (sampler, sampler)
  play = functools.partial(source.sample_counting, *arguments, decoding=decoding)
  return _first_call(monkeypatch, called, "decode" if decoding.slots else "_decode", play)


def _of_turns(shape, kind, name):
  """A program of episodes of several turns, and its abstract arguments."""
  found, *_ = test_programs.of_turns(
    shape,
    rl__decode_layout=kind,
    model__prefix_buckets=(8192,),
    model__architecture__text_config__max_position_embeddings=16384,
  )
  (program,) = (program for program in found if program.name == name)
  return program.function, program.arguments, program.keywords


@pytest.mark.parametrize(
  ("source", "shape", "kind"),
  [
    ("sampler", (1, 2, 4, 1), "replicated"),
    ("sampler", (1, 4, 2, 1), "tensor"),
    ("refill", (1, 4, 2, 1), "replicated"),
    ("refill", (1, 2, 4, 1), "tensor"),
    ("turns", (1, 2, 4, 1), "replicated"),
    ("turns", (1, 4, 2, 1), "tensor"),
  ],
)
def test_a_decode_program_gathers_queries_and_no_key_or_value(
  data, source, shape, kind, monkeypatch
):
  if source == "turns":
    function, arguments, keywords = _of_turns(shape, kind, "decode")
  else:
    more = {"slots": 8} if source == "refill" else {}
    function, arguments, keywords = _sampling(data, shape, kind, monkeypatch, **more)
  _, _, prefix, state, *_ = arguments
  program = function.lower(*arguments, **keywords).compile()
  depth, _, part, kv_heads, head_dim = prefix.keys.sharding.shard_shape(prefix.keys.shape)
  assert part == prefix.keys.shape[2] / shape[2]  # prefilled keys lie split
  slots, embed = state.hidden.shape
  asking = state.hidden.sharding.shard_shape(state.hidden.shape)[0] * shape[2]
  gathered = _gathered(program)
  heads = HEADS // KV_HEADS
  queries = {(asking, kv_heads, heads, head_dim): depth, (asking, 2): 1}  # and whose they are
  for dims, count in queries.items():
    assert gathered.pop(dims) == count
  results = {(slots, keywords["chunk"]): 2, (slots,): 2} if "chunk" in keywords else {}
  if kind == "replicated":
    assert gathered == results
  for dims in gathered:  # of tensor hidden states, too, and single numbers of slots
    hidden = dims[0] <= slots and dims[1:] == (embed,)
    assert dims in results or hidden or math.prod(dims) <= slots, gathered
  _assert_keys_stay(program, prefix)


@pytest.mark.parametrize(
  ("shape", "kind"), [((1, 2, 4, 1), "replicated"), ((1, 4, 2, 1), "tensor")]
)
def test_observations_are_appended_without_moving_a_key_or_value_of_a_prompt(shape, kind):
  function, arguments, keywords = _of_turns(shape, kind, "append observations")
  prefix, shown = arguments[2], arguments[4]
  program = function.lower(*arguments, **keywords).compile()
  depth, _, _, kv_heads, head_dim = prefix.keys.sharding.shard_shape(prefix.keys.shape)
  gathered = _gathered(program)
  time, heads = shown.tokens.shape[1], kv_heads * HEADS // KV_HEADS
  assert gathered[shape[2], time, heads, head_dim] == depth  # one row of each device
  assert gathered[shape[2], time + 1] == depth
  _assert_keys_stay(program, prefix)


def _assert_keys_stay(program, prefix):
  """Every collective is smaller than one prompt's keys of a layer, of the heads of a device."""
  *_, kv_heads, head_dim = prefix.keys.sharding.shard_shape(prefix.keys.shape)
  whole = prefix.keys.shape[2] * kv_heads * head_dim
  moved = _moved(program)
  assert any(name == "all-to-all" for name, _ in moved)
  assert max(sum(map(math.prod, shapes)) for _, shapes in moved) < whole


def _gathered(program: jax.stages.Compiled) -> collections.Counter[tuple[int, ...]]:
  """The shapes of what a program gathers."""
  return collections.Counter(
    dims for name, shapes in _moved(program) if name == "all-gather" for dims in shapes
  )


def _moved(program: jax.stages.Compiled) -> list[tuple[str, list[tuple[int, ...]]]]:
  """The collectives of a program, and the shapes of their results."""
  names = "all-gather|all-to-all|all-reduce|collective-permute|reduce-scatter"
  found = []
  for result, name in re.findall(rf"= (.+?) ({names})(?:-start)?\(", program.as_text() or ""):
    shapes = re.findall(r"\w+\[([\d,]*)\]", result)
    found.append((name, [tuple(map(int, filter(None, dims.split(",")))) for dims in shapes]))
  return found
