"""The policy loss against formulas written out in NumPy, with the settings of papers and of TRL."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vr_jax.rl import loss as loss_lib

SHAPE = (2, 3, 5)


@pytest.fixture
def batch():
  rng = np.random.default_rng(1)
  log_probs = rng.normal(-1, 0.3, SHAPE).astype(np.float32)
  lengths = np.array([[5, 3, 1], [4, 0, 2]])
  return {
    "log_probs": log_probs,
    "old": log_probs + rng.normal(0, 0.3, SHAPE).astype(np.float32),
    "sampler": log_probs + rng.normal(0, 0.5, SHAPE).astype(np.float32),
    "reference": log_probs + rng.normal(0, 0.3, SHAPE).astype(np.float32),
    "advantages": rng.normal(size=SHAPE).astype(np.float32),
    "mask": np.arange(SHAPE[2]) < lengths[..., None],
  }


def _loss(batch, aggregation: loss_lib.Aggregation = "sequence_mean", **options):
  settings = {"clip_epsilon_low": 0.2, "clip_epsilon_high": 0.2, **options}
  weights = loss_lib.token_weights(jnp.asarray(batch["mask"]), aggregation, constant_length=7)
  return loss_lib.policy_loss(
    jnp.asarray(batch["log_probs"]),
    jnp.asarray(batch["old"]),
    jnp.asarray(batch["advantages"]),
    weights,
    **settings,
  )


def _token_terms(batch, low=0.2, high=0.2):
  ratio = np.exp(batch["log_probs"] - batch["old"])
  clipped = np.clip(ratio, 1 - low, 1 + high)
  return -np.minimum(ratio * batch["advantages"], clipped * batch["advantages"])


def _aggregate(terms, mask, aggregation):
  lengths = mask.sum(-1)
  if aggregation == "sequence_mean":
    means = [terms[i][mask[i]].mean() for i in np.ndindex(lengths.shape) if lengths[i]]
    return np.mean(means)
  if aggregation == "token_mean":
    return terms[mask].mean()
  return (terms * mask).sum() / 7 / (lengths > 0).sum()


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean", "constant_length"])
def test_the_clipped_loss_is_the_formula_in_every_aggregation(batch, aggregation):
  expected = _aggregate(_token_terms(batch), batch["mask"], aggregation)
  np.testing.assert_allclose(_loss(batch, aggregation)[0], expected, rtol=1e-5)


def test_lower_and_upper_clip_are_apart(batch):
  expected = _aggregate(_token_terms(batch, 0.1, 0.4), batch["mask"], "token_mean")
  actual = _loss(batch, "token_mean", clip_epsilon_low=0.1, clip_epsilon_high=0.4)[0]
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_kl_term_is_that_of_its_estimator(batch, estimator):
  x = batch["log_probs"] - batch["reference"]
  kl = {"k1": x, "k2": x**2 / 2, "k3": np.exp(-x) + x - 1}[estimator]
  expected = _aggregate(_token_terms(batch) + 0.3 * kl, batch["mask"], "sequence_mean")
  actual, sums = _loss(
    batch,
    reference_log_probs=jnp.asarray(batch["reference"]),
    kl_weight=0.3,
    kl_estimator=estimator,
  )
  np.testing.assert_allclose(actual, expected, rtol=1e-5)
  np.testing.assert_allclose(sums["kl"], kl[batch["mask"]].sum(), rtol=1e-5)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_a_token_beyond_the_clamp_of_the_kl_term_counts_with_the_bound_and_has_no_gradient(
  batch, estimator
):
  x = batch["log_probs"] - batch["reference"]
  kl = {"k1": x, "k3": np.exp(-x) + x - 1}[estimator]
  bound = 1.01 * float(np.median(np.abs(kl[batch["mask"]])))
  beyond = np.abs(kl) > bound

  def term(log_probs, **clamp):
    made = {**batch, "log_probs": log_probs, "advantages": np.zeros_like(x)}
    reference = jnp.asarray(batch["reference"])
    return _loss(
      made, reference_log_probs=reference, kl_weight=0.3, kl_estimator=estimator, **clamp
    )

  loss, sums = term(batch["log_probs"], kl_clamp=bound)
  clamped = np.clip(kl, -bound, bound)
  np.testing.assert_allclose(
    loss, _aggregate(0.3 * clamped, batch["mask"], "sequence_mean"), rtol=1e-5
  )
  np.testing.assert_allclose(sums["kl"], clamped[batch["mask"]].sum(), rtol=1e-5)
  at = jnp.asarray(batch["log_probs"])
  clamp, free = (jax.grad(lambda p, c=c: term(p, kl_clamp=c)[0])(at) for c in (bound, None))
  np.testing.assert_allclose(clamp, np.where(beyond, 0, free), rtol=1e-6)
  assert 0 < (beyond & batch["mask"]).sum() < batch["mask"].sum()


def test_the_sampler_is_corrected_by_a_truncated_weight_without_gradient(batch):
  weight = np.minimum(np.exp(batch["old"] - batch["sampler"]), 1.5)
  expected = _aggregate(weight * _token_terms(batch), batch["mask"], "token_mean")
  actual, sums = _loss(
    batch, "token_mean", sampler_log_probs=jnp.asarray(batch["sampler"]), tis_cap=1.5
  )
  np.testing.assert_allclose(actual, expected, rtol=1e-5)
  over = np.exp(batch["old"] - batch["sampler"]) > 1.5
  assert sums["sampling/tis_capped"] == (over & batch["mask"]).sum()


def test_on_policy_the_gradient_is_that_of_the_plain_policy_gradient(batch):
  weights = loss_lib.token_weights(jnp.asarray(batch["mask"]), "token_mean")

  def loss(log_probs):
    old = jax.lax.stop_gradient(log_probs)
    return loss_lib.policy_loss(
      log_probs,
      old,
      jnp.asarray(batch["advantages"]),
      weights,
      clip_epsilon_low=0.2,
      clip_epsilon_high=0.2,
    )[0]

  gradient = jax.grad(loss)(jnp.asarray(batch["log_probs"]))
  np.testing.assert_allclose(gradient, -batch["advantages"] * weights, atol=1e-7)


def test_what_is_not_in_the_mask_reaches_neither_loss_nor_gradient(batch):
  poisoned = {**batch, "log_probs": np.where(batch["mask"], batch["log_probs"], np.nan)}
  value, sums = _loss(poisoned)
  np.testing.assert_allclose(value, _loss(batch)[0], rtol=1e-6)
  assert all(np.isfinite(total) for total in sums.values())


def test_no_sampled_token_at_all_gives_zero_loss(batch):
  assert _loss({**batch, "mask": np.zeros(SHAPE, bool)})[0] == 0


def test_the_loss_equals_that_of_trl_in_its_common_settings(batch):
  """The loss of TRL's GRPOTrainer, loss_type "grpo", beta 0.04 (trl 1.16, _compute_loss)."""
  coef_1 = np.exp(batch["log_probs"] - batch["old"])
  coef_2 = np.clip(coef_1, 1 - 0.2, 1 + 0.2)
  per_token = -np.minimum(coef_1 * batch["advantages"], coef_2 * batch["advantages"])
  x = batch["reference"] - batch["log_probs"]
  per_token = per_token + 0.04 * (np.exp(x) - x - 1)
  mask = batch["mask"].reshape(-1, SHAPE[2])
  per_token = per_token.reshape(-1, SHAPE[2])
  rows = mask.any(-1)  # TRL never sees an empty reply
  expected = ((per_token * mask).sum(-1) / np.maximum(mask.sum(-1), 1))[rows].mean()
  actual = _loss(batch, reference_log_probs=jnp.asarray(batch["reference"]), kl_weight=0.04)[0]
  np.testing.assert_allclose(actual, expected, rtol=1e-5)
