"""Updates: micro-batches add up to the batch, and a non-finite gradient changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vr_jax.rl import update


def _loss(params, part):
  error = part["x"] @ params["w"] - part["y"]
  return (part["weight"] * error**2).sum(), {"count": part["weight"].sum()}


@pytest.fixture
def problem():
  rng = np.random.default_rng(0)
  batch = {
    "x": rng.normal(size=(12, 4)).astype(np.float32),
    "y": rng.normal(size=12).astype(np.float32),
    "weight": np.full(12, 1 / 12, np.float32),
  }
  return {"w": jnp.ones(4)}, batch


@pytest.mark.parametrize("parts", [1, 2, 3, 12])
def test_micro_batches_add_up_to_the_whole_batch(problem, parts):
  params, batch = problem
  (expected, _), gradients = jax.value_and_grad(_loss, has_aux=True)(params, batch)
  split = jax.tree.map(lambda x: x.reshape(parts, 12 // parts, *x.shape[1:]), batch)
  value, sums, actual = update.accumulated_gradients(_loss, params, split)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  np.testing.assert_allclose(actual["w"], gradients["w"], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(sums["count"], 1, rtol=1e-6)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(bad):
  params = {"w": jnp.ones(3)}
  optimizer = optax.adam(0.1)
  state = optimizer.init(params)
  gradients = {"w": jnp.array([0.0, bad, 1.0])}
  moved, stepped, applied, _ = update.guarded_update(
    optimizer, gradients, state, params, jnp.float32(1)
  )
  assert not applied
  np.testing.assert_array_equal(moved["w"], params["w"])
  assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), stepped, state))


def test_a_loss_that_is_not_finite_changes_nothing_though_its_gradient_is():
  params, optimizer = {"w": jnp.ones(3)}, optax.sgd(0.1)
  state = optimizer.init(params)
  moved, _, applied, _ = update.guarded_update(
    optimizer, {"w": jnp.ones(3)}, state, params, jnp.float32(jnp.nan)
  )
  assert not applied
  np.testing.assert_array_equal(moved["w"], 1)


def test_a_finite_gradient_moves_the_parameters_as_the_optimizer_says():
  params, optimizer = {"w": jnp.ones(3)}, optax.sgd(0.1)
  gradients = {"w": jnp.array([3.0, 4.0, 0.0])}
  moved, _, applied, norm = update.guarded_update(
    optimizer, gradients, optimizer.init(params), params, jnp.float32(1)
  )
  assert applied
  np.testing.assert_allclose(norm, 5)
  np.testing.assert_allclose(moved["w"], [0.7, 0.6, 1.0], rtol=1e-6)


@pytest.mark.parametrize("device", [0, 3])
def test_a_gradient_that_is_not_finite_on_one_device_changes_nothing_on_any(problem, device):
  params, batch = problem
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("data",))
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
  everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  optimizer = optax.adam(0.1)

  @jax.jit
  def step(params, state, batch):
    parts = jax.tree.map(lambda x: x[None], batch)
    value, _, gradients = update.accumulated_gradients(_loss, params, parts)
    return update.guarded_update(optimizer, gradients, state, params, value)

  bad = {**batch, "x": batch["x"].copy()}
  bad["x"][3 * device, 1] = np.nan  # three rows a device
  for given, is_applied in ((batch, True), (bad, False)):
    placed = jax.device_put(params, everywhere)
    moved, _, applied, _ = step(placed, optimizer.init(placed), jax.device_put(given, rows))
    for copy in moved["w"].addressable_shards:
      assert (np.asarray(copy.data) == np.asarray(params["w"])).all() != is_applied
    assert all(bool(copy.data) == is_applied for copy in applied.addressable_shards)
