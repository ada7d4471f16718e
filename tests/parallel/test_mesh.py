"""Meshes: valid shapes, the sharding of arrays, and steps that equal the step on one device."""

import dataclasses
import functools
import itertools
from typing import cast

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from tests.train import nano
from vr_jax import errors, records
from vr_jax.parallel import data_parts
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rollout import encoder, sampler
from vr_jax.train import batching, initialization, train_step
from vr_jax.train import train_state as train_state_lib

MESHES = ((8, 1, 1, 1), (1, 8, 1, 1), (1, 1, 8, 1), (2, 2, 1, 2), (1, 2, 4, 1), (1, 2, 2, 2))
RUNS = {
  "all": {},
  "all but the tower": {"model__freeze_vision": True},
  "adapters": {"model__lora__rank": 2, "model__lora__text": ("query", "down")},
  **{size: {"size": size, **nano.ROOM[size]} for size in ("tiny_qwen3vl", "tiny_phi2")},
}
TOLERANCE = 1e-4  # relative; of gradients: relative to the largest of a parameter


@pytest.mark.parametrize(
  ("shape", "sizes"),
  [
    ((-1, 1, 1, 1), (8, 1, 1, 1)),
    ((2, -1, 1, 2), (2, 2, 1, 2)),
    ((1, 2, -1, 1), (1, 2, 4, 1)),
    ((1, 8, 1, 1), (1, 8, 1, 1)),
  ],
)
def test_a_mesh_uses_every_device_and_minus_one_is_what_is_left(shape, sizes):
  mesh = mesh_lib.make_mesh(shape)
  assert tuple(mesh.shape.values()) == sizes
  assert tuple(mesh.shape) == ("data", "fsdp", "sequence", "tensor")


@pytest.mark.parametrize(
  "shape",
  [
    (3, 1, 1, 1),
    (1, 1, 1, 1),
    (-1, -1, 1, 1),
    (8, 1, 1),
    (0, 1, 1, 1),
    (-2, 1, 1, 1),
    (16, 1, 1, 1),
    (-1, 1, 3, 1),
  ],
)
def test_an_impossible_mesh_is_named(shape):
  with pytest.raises(errors.InputError, match=r"config\.mesh"):
    mesh_lib.make_mesh(shape)


@pytest.mark.parametrize(("prompts", "parts"), [(6, 1), (8, 4), (4, 2), (0, 1), (8, 3)])
def test_a_batch_that_can_not_be_split_is_named_by_its_flag(prompts, parts):
  mesh = mesh_lib.make_mesh((2, 2, 1, 2))
  with pytest.raises(errors.InputError, match=f"config.rl.batch_size={prompts}: not a multiple"):
    mesh_lib.check_batch(prompts, mesh, "config.rl.batch_size", parts=parts)
  mesh_lib.check_batch(8, mesh, "config.rl.batch_size", parts=2)


def test_a_mesh_that_does_not_divide_the_heads_is_named(data):
  with pytest.raises(errors.InputError, match="tensor=4 does not divide kv_heads=2"):
    _ = nano.build(data, mesh=(2, 1, 1, 4)).abstract_params


def _leaves(tree):
  return {
    jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(tree)
  }


@pytest.fixture(scope="module")
def updated(data):
  """Maps (mesh, stage, run) to (context, state, metrics) after one SFT or RL step."""
  return functools.cache(functools.partial(_updated, data))


def _updated(data, shape, stage, run="all"):
  fields = {f"{stage}__max_grad_norm": 1e9, f"{stage}__warmup_steps": 0, **RUNS[run]}
  context = nano.build(
    data, mesh=shape, rl__batch_size=8, rl__num_generations=2, rl__kl_weight=0.1, **fields
  )
  section = context.config[stage]
  optimizer = train_state_lib.make_optimizer(section, context.abstract_params, context.frozen)
  state = train_state_lib.create(
    _without_zeros(initialization.fresh_params(context)), optimizer, context.mesh
  )
  items = nano.ragged_items(context, 8)
  prompt = context.builder.prompt(context.builder.batch(items))
  if context.tower_frozen:
    prompt = encoder.encode(context.graphdef, state.params, prompt)
  take = {"sft": _supervised, "rl": _reinforced}[stage]
  return context, *take(context, optimizer, state, prompt, items)


@jax.jit
def _without_zeros(params):
  """Replaces all-zero parameters (biases, adapters): with them some gradients would be zero too."""

  def fill(x):
    return jnp.where(x.any(), x, 0.1 * jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape))

  return jax.tree.map(fill, params)


def _supervised(context, optimizer, state, prompt, items):
  step = train_step.make_sft_step(
    context.update_graphdef,
    optimizer,
    context.allowed_tokens,
    microbatches=1,
    frozen=context.frozen,
  )
  return step(state, prompt, *mesh_lib.put_batch(batching.reply_arrays(items, 80), context.mesh))


def _reinforced(context, optimizer, state, prompt, items):
  rollout = _rollout(context, items)
  advantages = jnp.where(train_step.action_mask(rollout), jnp.array([1.0, -0.5])[None, :, None], 0)
  signal = mesh_lib.put_batch(np.ones(8, bool), context.mesh)
  step = train_step.make_rl_step(
    context.update_graphdef,
    optimizer,
    context.allowed_tokens,
    context.config.rl,
    frozen=context.frozen,
  )
  return step(state, prompt, rollout, advantages, signal, None, rollout.log_probs)


def _rollout(context, items):
  """Replies of lengths 1 to 16, the same on every mesh."""
  rng = np.random.default_rng(0)
  length = rng.integers(1, 17, (len(items), 2, 1))
  model = np.arange(16) < length
  allowed_tokens = np.flatnonzero(np.asarray(context.allowed_tokens))
  tokens = np.where(model, rng.choice(allowed_tokens, model.shape), 0).astype(np.int32)
  fields = {
    "tokens": tokens,
    "log_probs": np.where(model, -6.0, 0).astype(np.float32),
    "kind": np.where(model, 4, 0).astype(np.int32),
    "turn": np.zeros_like(tokens),
  }
  return mesh_lib.put_batch(records.Rollout(**fields), context.mesh)


@pytest.mark.parametrize(
  ("shape", "stage", "run"),
  [
    *itertools.product(MESHES, ("sft", "rl"), ("all",)),
    *itertools.product(((1, 2, 2, 2),), ("sft",), ("all but the tower", "adapters")),
    *itertools.product(((1, 2, 2, 2),), ("sft", "rl"), ("tiny_qwen3vl", "tiny_phi2")),
  ],
)
def test_a_step_on_a_mesh_is_the_step_on_one_device(updated, shape, stage, run):
  _, expected, expected_metrics = updated((1, 1, 1, 1), stage, run)
  _, actual, metrics = updated(shape, stage, run)
  assert {k: float(v) for k, v in metrics.items()} == pytest.approx(
    {k: float(v) for k, v in expected_metrics.items()}, rel=TOLERANCE, abs=1e-6
  )
  gradients = nano.largest_difference(_gradients(actual), _gradients(expected))
  assert gradients.value < TOLERANCE, gradients


@pytest.mark.parametrize(
  ("shape", "stage", "once"),
  [
    *(((8, 1, 1, 1), "sft", True), ((2, 2, 2, 1), "rl", True), ((2, 1, 2, 2), "sft", True)),
    *(((8, 1, 1, 1), "sft", False), ((2, 2, 1, 2), "rl", False)),  # as on TPUs within a slice
  ],
)
def test_a_step_is_that_on_one_device_whether_its_sums_are_exchanged_once_or_by_the_partitioner(
  data, updated, monkeypatch, shape, stage, once
):
  monkeypatch.setattr(data_parts, "pay", lambda devices: once)
  _, expected, expected_metrics = updated((1, 1, 1, 1), stage)
  context, actual, metrics = _updated(data, shape, stage)
  assert (context.update_graphdef != context.graphdef) == once
  assert {k: float(v) for k, v in metrics.items()} == pytest.approx(
    {k: float(v) for k, v in expected_metrics.items()}, rel=TOLERANCE, abs=1e-6
  )
  gradients = nano.largest_difference(_gradients(actual), _gradients(expected))
  assert gradients.value < TOLERANCE, gradients


def _gradients(state):
  """Adam's first moments after one step without clipping: the gradients up to a factor."""
  moments = {name: x for name, x in _leaves(state.optimizer_state).items() if ".mu" in name}
  assert all(moment.any() for moment in moments.values())
  # Of SigLIP's keys rounding alone: all keys moved alike leave a softmax as it was.
  return {name: x for name, x in moments.items() if "['blocks']['key_bias']" not in name}


@pytest.mark.parametrize("shape", MESHES)
def test_parameters_and_moments_lie_on_the_mesh_as_the_rules_say_also_after_a_step(updated, shape):
  context, state, _ = updated(shape, "sft")
  wanted = jax.tree.leaves(jax.tree.map(lambda x: x.sharding, context.abstract_params))
  moments = [leaf for leaf in jax.tree.leaves(state.optimizer_state) if leaf.ndim > 0]
  assert len(moments) == 2 * len(wanted)
  for leaves in (jax.tree.leaves(state.params), moments[: len(wanted)], moments[len(wanted) :]):
    for leaf, sharding in zip(leaves, wanted, strict=True):
      assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
  embedding = state.params["text"]["embedding"][...]
  rows, columns = embedding.addressable_shards[0].data.shape
  _, fsdp, sequence, tensor = shape
  assert (rows * tensor, columns * fsdp * sequence) == embedding.shape


def test_every_logical_axis_of_the_rules_belongs_to_a_parameter_or_an_activation(data):
  context = nano.build(data)
  axes = {"prompts", "prefix", "frames", "group", "slots", "time", "hidden_slots", "draws"}
  is_variable = lambda x: hasattr(x, "get_metadata")  # noqa: E731
  for variable in jax.tree.leaves(context.abstract_params, is_leaf=is_variable):
    axes |= set(variable.get_metadata()["axes"])
  assert set(mesh_lib.RULES) <= axes


def test_an_activation_uses_a_mesh_axis_once_and_leaves_whole_what_it_does_not_divide():
  mesh = mesh_lib.make_mesh((1, 2, 2, 2))
  replies = ("prompts", "group", "time", None)
  assert mesh_lib.spec_of(replies, (4, 6, 8, 5), mesh) == PartitionSpec(
    ("data", "fsdp"), "sequence", None, None
  )
  assert mesh_lib.spec_of(replies, (4, 1, 8, 5), mesh) == PartitionSpec(
    ("data", "fsdp"), None, "sequence", None
  )
  assert mesh_lib.spec_of(replies, (3, 1, 7, 5), mesh) == PartitionSpec(None, None, None, None)


def test_a_prompt_is_split_along_its_prefix_and_its_frames(updated):
  context, _, _ = updated((1, 2, 2, 2), "sft")
  prompt = context.builder.prompt(context.builder.batch(nano.ragged_items(context, 8)))
  rows, length = prompt.tokens.shape
  assert prompt.tokens.addressable_shards[0].data.shape == (rows / 2, length / 2)
  assert prompt.positions.addressable_shards[0].data.shape == (rows / 2, length / 2, 3)
  assert prompt.next_position.addressable_shards[0].data.shape == (rows / 2,)
  frames = prompt.vision.window.shape[1]
  assert prompt.vision.window.addressable_shards[0].data.shape[:2] == (rows / 2, frames / 2)


def test_a_prefix_that_can_not_be_split_is_named():
  mesh = mesh_lib.make_mesh((1, 2, 4, 1))
  with pytest.raises(errors.InputError, match="prefix_buckets: 66 is not a multiple of 4 = sequ"):
    mesh_lib.check_prefix(66, mesh)
  mesh_lib.check_prefix(68, mesh)


@dataclasses.dataclass(frozen=True)
class _Device:
  """The attributes of a device that `process_shard` reads."""

  id: int
  process_index: int


def _processes(owners, shape, monkeypatch, mine=0):
  """A mesh whose devices belong to these processes."""
  devices = np.array([_Device(index, owner) for index, owner in enumerate(owners)])
  monkeypatch.setattr(jax, "process_index", lambda: mine)
  return jax.sharding.Mesh(devices.reshape(shape), mesh_lib.AXES)


def test_processes_that_split_rows_between_them_read_the_same_ones(monkeypatch):
  owners = [0, 0, 1, 1, 2, 2, 3, 3]
  share = lambda shape, mine: mesh_lib.process_shard(_processes(owners, shape, monkeypatch, mine))  # noqa: E731
  assert [share((2, 4, 1, 1), mine) for mine in range(4)] == [(0, 4), (1, 4), (2, 4), (3, 4)]
  assert [share((2, 1, 4, 1), mine) for mine in range(4)] == [(0, 2), (0, 2), (1, 2), (1, 2)]
  assert [share((1, 1, 4, 2), mine) for mine in range(4)] == [(0, 1)] * 4


def test_processes_know_who_has_the_same_rows(monkeypatch):
  owners = [0, 0, 1, 1, 2, 2, 3, 3]
  readers = lambda shape, mine: mesh_lib.readers(_processes(owners, shape, monkeypatch, mine))  # noqa: E731
  assert [readers((2, 4, 1, 1), mine) for mine in range(4)] == [(0,), (1,), (2,), (3,)]
  assert [readers((2, 1, 4, 1), mine) for mine in range(4)] == [(0, 1)] * 2 + [(2, 3)] * 2
  assert [readers((1, 1, 4, 2), mine) for mine in range(4)] == [(0, 1, 2, 3)] * 4


def test_a_process_with_parts_of_several_shares_of_the_rows_is_an_error(monkeypatch):
  mesh = _processes([0, 0, 0, 0, 1, 1, 1, 1, 1], (3, 1, 3, 1), monkeypatch)
  with pytest.raises(errors.InputError, match="sequence x tensor=3 does not fit the devices"):
    mesh_lib.process_shard(mesh)


def test_rows_of_a_split_batch_come_back_in_order():
  mesh = mesh_lib.make_mesh((2, 2, 1, 2))
  values = np.arange(24).reshape(8, 3)
  placed = mesh_lib.put_batch({"x": values}, mesh)["x"]
  assert placed.sharding.spec == PartitionSpec(("data", "fsdp"), None)
  assert placed.addressable_shards[0].data.shape == (2, 3)
  np.testing.assert_array_equal(mesh_lib.local_rows(placed), values)


def replies(data, shape, prompts, **changes):
  """Sampled tokens of an untrained network on a mesh, and how many were computed."""
  context = nano.build(data, mesh=shape)
  # Stop tokens that are likely for an untrained network: replies end early and move to fewer slots.
  stops = (*context.processor.stop_tokens, *range(60, 240))
  rollout, computed = sampler.sample_counting(
    context.graphdef,
    nano.sharpened(initialization.fresh_params(context)),
    context.builder.prompt(context.builder.batch(nano.ragged_items(context, prompts))),
    context.allowed_tokens,
    jax.random.key(3),
    decoding=context.decoding(
      group=3, max_new_tokens=8, stop_tokens=stops, slot_fractions=(0.7, 0.4), **changes
    ),
  )
  return mesh_lib.local_rows(cast(jax.Array, rollout.tokens)), computed


# In the last case a device has more slots than replies.
@pytest.mark.parametrize(
  ("shape", "prompts"), [((2, 2, 1, 2), 8), ((1, 2, 2, 2), 8), ((2, 1, 4, 1), 4)]
)
def test_the_same_keys_draw_the_same_replies_on_a_mesh(data, shape, prompts):
  sampled, computed = replies(data, shape, prompts)
  np.testing.assert_array_equal(sampled, replies(data, (1, 1, 1, 1), prompts)[0])
  assert computed < 3 * prompts * 8
