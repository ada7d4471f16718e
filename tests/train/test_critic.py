"""The critic: its values, and its step against a plain computation."""

import dataclasses
from typing import Any, cast

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from tests.train import nano
from vr_jax import records
from vr_jax.models import layout as layout_lib
from vr_jax.models.common import packing
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rollout import encoder
from vr_jax.train import checkpoints, critic, initialization
from vr_jax.train import train_state as train_state_lib

TOLERANCE = 1e-5
LENGTHS = np.array([[16, 1, 3, 0], [2, 2, 5, 1], [0, 0, 0, 0], [7, 1, 1, 4]])
TIME, CLIP = 16, 0.5
MASK = np.arange(TIME) < LENGTHS[..., None]


@pytest.fixture(scope="module")
def context(data):
  return nano.build(data)


@pytest.fixture(scope="module")
def params(context):
  """The parameters of a critic whose head is not zero."""
  made = critic.init_critic_params(
    initialization.fresh_params(context), embed=context.model.text.hidden_size
  )
  weight = 0.1 * jax.random.normal(jax.random.key(1), made["head"].weight.shape)
  head = dataclasses.replace(made["head"], weight=made["head"].weight.replace(weight))
  return {**made, "head": head}


@pytest.fixture(scope="module")
def batch(context):
  """Returns (prompts, replies)."""
  tokens = np.where(MASK, np.random.default_rng(1).integers(60, 300, MASK.shape), 0)
  rollout = records.Rollout(
    tokens=jnp.asarray(tokens, jnp.int32),
    log_probs=jnp.zeros(MASK.shape),
    kind=jnp.where(MASK, int(records.Kind.MODEL), int(records.Kind.PAD)),
    turn=jnp.zeros(MASK.shape, jnp.int32),
  )
  return context.builder.prompt(context.builder.batch(nano.ragged_items(context, 4))), rollout


@pytest.fixture(scope="module")
def targets():
  """Returns (values before the update, returns), some on each side of the clip."""
  old, returns = np.random.default_rng(2).normal(size=(2, *MASK.shape)).astype(np.float32)
  return jnp.asarray(old), jnp.asarray(returns)


def _plain_values(context, params, batch):
  prompt, rollout = batch
  model = nano.merge(context, params["model"])
  prefix = model.prefill(prompt)
  hidden = model.forward_replies(prefix, rollout.tokens, jnp.asarray(MASK))
  first = jnp.broadcast_to(prefix.hidden[:, None, None], hidden[:, :, :1].shape)
  before = jnp.concatenate([first, hidden[:, :, :-1]], axis=2)
  return jnp.where(MASK, before @ params["head"].weight[...] + params["head"].bias[...], 0)


@pytest.fixture(scope="module")
def plain(context, params, batch, targets):
  """Computes (loss, values, gradients) in the plain way."""
  old, returns = targets

  @jax.jit
  def loss(params):
    values = _plain_values(context, params, batch)
    near = jnp.minimum(jnp.maximum(values, old - CLIP), old + CLIP)
    worse = jnp.maximum((values - returns) ** 2, (near - returns) ** 2)
    return 0.5 * (worse * MASK).sum() / MASK.sum(), values

  (value, values), gradients = jax.value_and_grad(loss, has_aux=True)(params)
  return float(value), np.asarray(values), _leaves(gradients)


def _leaves(tree):
  return {
    jax.tree_util.keystr(path): np.array(leaf) for path, leaf in jax.tree.leaves_with_path(tree)
  }


def _start(context, params, *, frozen=(), microbatches=1):
  """Makes a state from a copy of the parameters, and a step."""
  section = nano.config(sft__max_grad_norm=1e9, sft__warmup_steps=0, sft__weight_decay=0.0).sft
  section.learning_rate, section.steps = 2e-3, 100
  frozen = critic.frozen_names(frozen)
  optimizer = train_state_lib.make_optimizer(section, params, frozen)
  state = train_state_lib.create(jax.tree.map(jnp.copy, params), optimizer, context.mesh)
  step = critic.make_critic_step(
    context.graphdef, optimizer, clip=CLIP, microbatches=microbatches, frozen=frozen
  )
  return state, step


def _gradients(state):
  """Adam's first moment after one step is 1 - b1 = 0.1 times the gradient."""
  moments = optax.tree_utils.tree_get(state.optimizer_state, "mu")
  return {name: 10 * moment for name, moment in _leaves(moments).items()}


def test_values_begin_at_zero_and_share_no_buffer_with_the_policy(context, batch):
  policy = initialization.fresh_params(context)
  made = critic.init_critic_params(policy, embed=context.model.text.hidden_size)
  values = critic.make_value_fn(context.graphdef)(made, *batch)
  np.testing.assert_array_equal(values, np.zeros(MASK.shape))
  copies = zip(jax.tree.leaves(policy), jax.tree.leaves(made["model"]), strict=True)
  for held, copied in copies:
    np.testing.assert_array_equal(held, copied)
    assert held.unsafe_buffer_pointer() != copied.unsafe_buffer_pointer()


def test_values_are_of_the_state_before_each_token_packed_or_not(context, params, batch, plain):
  size = packing.size_of(layout_lib.OneDevice(), LENGTHS[None], TIME, ratio=1.1)
  assert size is not None
  assert size < 0.7 * MASK.size
  for microbatches, packed in ((1, None), (1, size), (2, None)):
    value = critic.make_value_fn(context.graphdef, microbatches=microbatches)
    values = value(params, *batch, packed_length=packed)
    np.testing.assert_allclose(values, plain[1], rtol=0, atol=TOLERANCE)
  assert np.abs(plain[1][MASK]).max() > 0.1


def test_of_prompts_that_bring_features_no_tower_of_the_critic_runs(context, params, batch, plain):
  prompt, rollout = batch
  encoded = encoder.encode(context.graphdef, params["model"], prompt)
  broken = jax.tree.map(lambda x: x, params)
  broken["model"]["vision"] = jax.tree.map(lambda x: x * jnp.nan, broken["model"]["vision"])
  value = critic.make_value_fn(context.graphdef)
  np.testing.assert_allclose(value(broken, encoded, rollout), plain[1], rtol=0, atol=TOLERANCE)
  assert np.isnan(value(broken, prompt, rollout)).any()


@pytest.mark.parametrize("count", [1, 2])
def test_loss_and_gradients_are_those_written_out_in_any_number_of_micro_batches(
  context, params, batch, targets, plain, count
):
  state, step = _start(context, params, microbatches=count)
  state, metrics = step(state, *batch, *targets)
  loss, values, gradients = plain
  assert float(metrics["critic/loss"]) == pytest.approx(loss, rel=TOLERANCE)
  assert nano.largest_difference(_gradients(state), gradients).value < 1e-4
  returns, rest = np.asarray(targets[1])[MASK], (np.asarray(targets[1]) - values)[MASK]
  expected = {"value": values[MASK].mean(), "return": returns.mean()}
  expected["explained_variance"] = 1 - rest.var() / returns.var()
  found = {name: float(metrics[f"critic/{name}"]) for name in expected}
  assert found == pytest.approx(expected, rel=1e-4, abs=TOLERANCE)
  assert 0 < float(metrics["critic/value_clip_ratio"]) < 1


def test_steps_towards_fixed_returns_lower_the_loss_until_values_have_moved_by_the_clip(
  context, params, batch, plain
):
  old, step = jnp.asarray(plain[1]), _start(context, params)[1]
  for distance, clipped in ((0.2, False), (3.0, True)):
    state, losses, share = _start(context, params)[0], [], 0.0
    for _ in range(24):
      state, metrics = step(state, *batch, old, old + distance)
      losses.append(float(metrics["critic/loss"]))
      share = max(share, float(metrics["critic/value_clip_ratio"]))
    floor = 0.5 * max(distance - CLIP, 0) ** 2
    assert losses[0] == pytest.approx(0.5 * distance**2, rel=1e-3)
    assert floor - TOLERANCE < min(losses) < floor + 0.3 * (losses[0] - floor)
    assert (share > 0.5) == clipped
  _, metrics = step(state, *batch, old, jnp.full(MASK.shape, 0.5))
  assert np.isnan(metrics["critic/explained_variance"])  # all returns are the same


def test_a_frozen_tower_gets_no_gradient_and_stays(context, params, batch, targets):
  state, step = _start(context, params, frozen=("vision",))
  state, _ = step(state, *batch, *targets)
  before, after = _leaves(params), _leaves(state.params)
  assert not [name for name in _gradients(state) if "vision" in name]
  for name in before:
    assert np.array_equal(before[name], after[name]) == ("vision" in name), name


def test_on_a_mesh_of_two_by_two_numbers_are_those_of_one_device(
  data, context, params, batch, targets, plain
):
  split = nano.build(data, mesh=(2, 2, 1, 1))
  state, step = _start(split, params)
  assert state.params["head"].weight[...].sharding.is_fully_replicated
  prompt = split.builder.prompt(split.builder.batch(nano.ragged_items(context, 4)))
  rollout, old, returns = mesh_lib.put_batch(jax.device_get((batch[1], *targets)), split.mesh)
  values = critic.make_value_fn(split.graphdef)(state.params, prompt, rollout)
  np.testing.assert_allclose(values, plain[1], rtol=0, atol=TOLERANCE)
  state, metrics = step(state, prompt, rollout, old, returns)
  assert float(metrics["critic/loss"]) == pytest.approx(plain[0], rel=TOLERANCE)
  assert nano.largest_difference(_gradients(state), plain[2]).value < 1e-4


def test_a_checkpoint_holds_policy_and_critic_and_parameters_can_be_read_alone(
  context, params, tmp_path
):
  rl = context.config.rl
  optimizer = train_state_lib.make_optimizer(rl, context.abstract_params, ())
  policy = train_state_lib.create(initialization.fresh_params(context), optimizer, context.mesh)
  fresh = {**vars(policy), "critic": _start(context, params)[0]}
  saved = {**vars(policy), "critic": jax.tree.map(lambda x: x + 1, fresh["critic"])}
  store = checkpoints.Checkpoints(tmp_path, architecture=context.architecture)
  store.save(3, saved, {})
  store.wait()
  restored, alone = (
    store.restore(fresh).tree,
    store.restore({"params": context.abstract_params}).tree,
  )
  store.close()
  for tree, expected in ((restored, saved), (alone, {"params": policy.params})):
    found, expected = _leaves(tree), _leaves(expected)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
      np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_the_optimizer_counts_the_updates_of_the_section_rl(context, params):
  critics = {**context.config.sft.to_dict(), "schedule": "cosine", "learning_rate": 0.5}
  config = ml_collections.ConfigDict({"rl": {"steps": 4, "num_iterations": 3}, "critic": critics})
  config.critic.warmup_steps, config.critic.steps = 0, 1
  optimizer = critic.make_optimizer(config, params["head"], ())
  state, zero = optimizer.init(params["head"]), jax.tree.map(jnp.zeros_like, params["head"])
  moved = []
  for _ in range(13):
    gradient = jax.tree.map(jnp.ones_like, zero)
    update, state = optimizer.update(gradient, state, zero)
    moved.append(-float(cast(Any, update).bias[...]))
  assert moved[0] == pytest.approx(0.5, rel=1e-3)
  assert moved[11] > 1e-3
  assert moved[12] == pytest.approx(0, abs=1e-6)
