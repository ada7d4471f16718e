"""The difference of sampler and trainer, against NumPy in float64, over parts and devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rl import batches
from vr_jax.rl import sampler_mismatch

NAMES = ("sampling/sampling_logp_difference/", "sampling/reply_logp_difference/")


def _reference(old, sampler, mask):
  """The metrics in float64, with exact percentiles."""
  d = np.where(mask, old.astype(np.float64) - sampler, 0)
  found = {"sampling/importance_sampling_ratio/mean": np.exp(d[mask]).mean() if mask.any() else 0}
  of_replies = d.sum(-1)[mask.any(-1)]
  for name, k3, values in zip(NAMES, ("k3", "reply_k3"), (d[mask], of_replies), strict=True):
    absolute, capped = np.sort(np.abs(values)), np.minimum(values, 20)
    at = len(values) - 1 - len(values) // 100  # so many are not above it
    found[f"{name}mean"] = absolute.mean() if len(values) else 0
    found[f"{name}p99"] = absolute[at] if len(values) else 0
    found[f"sampling/{k3}"] = (np.exp(capped) - 1 - capped).mean() if len(values) else 0
  return found


def _check(actual, expected):
  assert actual.keys() == expected.keys()
  for name, value in expected.items():
    if name.endswith("p99"):
      assert value * (1 - 1e-5) <= actual[name] <= value * 2 ** (1 / 8) + 2.0**-24, name
    else:
      np.testing.assert_allclose(actual[name], value, rtol=2e-4, atol=1e-11, err_msg=name)


@pytest.mark.parametrize("spread", [1e-4, 0.6, 6.0])
@pytest.mark.parametrize("name", batches.SHAPES)
def test_the_metrics_are_those_of_numpy(name, spread):
  batch = batches.batch(name, spread=spread)
  arrays = batch["old"], batch["sampler"], batch["mask"]
  sums = sampler_mismatch.mismatch_sums(*(jnp.asarray(x) for x in arrays))
  _check(sampler_mismatch.mismatch_metrics(sums), _reference(*arrays))


def _many(seed=0):
  """8 prompts of 6 replies of up to 40 tokens; rare differences are large."""
  rng = np.random.default_rng(seed)
  shape = 8, 6, 40
  sampler = rng.normal(-2, 1, shape).astype(np.float32)
  rare = (rng.random(shape) < 0.012) * rng.normal(0, 3, shape)
  old = (sampler + rng.normal(0, 1e-2, shape) + rare).astype(np.float32)
  lengths = rng.integers(0, 41, shape[:2])
  mask = np.arange(40) < lengths[..., None]
  return np.where(mask, old, 99.0).astype(np.float32), sampler, mask


@pytest.mark.parametrize("parts", [1, 2, 8])
def test_sums_over_micro_batches_and_devices_give_the_metrics_of_the_whole_batch(parts):
  arrays = _many()
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("data", "sequence"))
  spec = jax.sharding.PartitionSpec("data" if parts <= 2 else None, None, "sequence")
  rows = jax.sharding.NamedSharding(mesh, spec)
  whole = None
  for part in range(parts):
    placed = [jax.device_put(x[part::parts], rows) for x in arrays]
    sums = jax.jit(sampler_mismatch.mismatch_sums)(*placed)
    whole = sums if whole is None else jax.tree.map(jnp.add, whole, sums)
  assert whole is not None
  exact = sampler_mismatch.mismatch_sums(*(jnp.asarray(x) for x in arrays))
  for kind, found in whole.items():  # counts of tokens do not depend on the order of sums
    np.testing.assert_array_equal(found["count"], exact[kind]["count"])
  np.testing.assert_array_equal(whole["tokens"]["above"], exact["tokens"]["above"])
  _check(sampler_mismatch.mismatch_metrics(whole), _reference(*arrays))


def test_padding_does_not_count_whatever_stands_there():
  old, sampler, mask = _many()
  other = np.where(mask, sampler, np.nan).astype(np.float32)
  found = [
    sampler_mismatch.mismatch_metrics(
      sampler_mismatch.mismatch_sums(jnp.asarray(old), jnp.asarray(x), jnp.asarray(mask))
    )
    for x in (sampler, other)
  ]
  assert {k: float(v) for k, v in found[0].items()} == {k: float(v) for k, v in found[1].items()}


def test_the_ratio_hides_a_difference_that_the_others_show():
  rng = np.random.default_rng(3)
  sampler = jax.nn.log_softmax(jnp.asarray(rng.normal(0, 1.5, 50).astype(np.float32)))
  trainer = jax.nn.log_softmax(sampler + jnp.asarray(rng.normal(0, 0.5, 50).astype(np.float32)))
  p = np.exp(np.asarray(sampler, np.float64))
  tokens = rng.choice(50, (64, 8, 40), p=p / p.sum())
  found = sampler_mismatch.mismatch_metrics(
    sampler_mismatch.mismatch_sums(trainer[tokens], sampler[tokens], jnp.ones(tokens.shape, bool))
  )
  assert abs(found["sampling/importance_sampling_ratio/mean"] - 1) < 0.02
  assert found["sampling/sampling_logp_difference/mean"] > 0.2
  kl = float((jnp.exp(sampler) * (sampler - trainer)).sum())
  np.testing.assert_allclose(found["sampling/k3"], kl, rtol=0.1)


def test_a_difference_that_is_not_finite_lies_above_every_edge():
  one = jnp.full((1, 1, 4), jnp.nan)
  sums = sampler_mismatch.mismatch_sums(one, jnp.zeros_like(one), jnp.ones(one.shape, bool))
  np.testing.assert_array_equal(sums["tokens"]["above"], 4)
  p99 = sampler_mismatch.mismatch_metrics(sums)["sampling/sampling_logp_difference/p99"]
  assert np.isnan(p99)
