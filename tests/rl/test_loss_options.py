"""Sequence-level ratios, CISPO and dual clip against loops in NumPy.

Compared are values, counts, gradients and micro-batches.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rl import batches, plain_loss
from vr_jax.rl import loss as loss_lib
from vr_jax.rl import update

# Of `policy_loss`, and the same of `plain_loss.token_losses`.
OPTIONS = {
  "none": ({}, {}),
  "sequence": ({"importance_sampling_level": "sequence"}, {"level": "sequence"}),
  "cispo": ({"objective": "cispo"}, {"objective": "cispo"}),
  "dual": ({"dual_clip": 1.6}, {"dual": 1.6}),
  "sequence and dual": (
    {"importance_sampling_level": "sequence", "dual_clip": 1.3},
    {"level": "sequence", "dual": 1.3},
  ),
}
AGGREGATIONS = ("sequence_mean", "token_mean", "constant_length")


def computed(
  batch, options, aggregation: loss_lib.Aggregation = "sequence_mean", *, log_probs=None, **more
):
  mask = jnp.asarray(batch["mask"])
  weights = loss_lib.token_weights(mask, aggregation, constant_length=7)
  return loss_lib.policy_loss(
    jnp.asarray(batch["log_probs"] if log_probs is None else log_probs),
    jnp.asarray(batch["old"]),
    jnp.asarray(batch["advantages"]),
    weights,
    **{"clip_epsilon_low": 0.2, "clip_epsilon_high": 0.2, **options, **more},
  )


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("shape", batches.SHAPES)
@pytest.mark.parametrize("name", OPTIONS)
def test_the_loss_is_that_of_the_formula_token_by_token(name, shape, aggregation):
  options, plain = OPTIONS[name]
  for seed in range(3):
    batch = batches.batch(shape, seed=seed)
    terms = plain_loss.token_losses(
      batch["log_probs"], batch["old"], batch["advantages"], batch["mask"], **plain
    )
    expected = plain_loss.aggregated(terms, batch["mask"], aggregation)
    np.testing.assert_allclose(
      computed(batch, options, aggregation)[0], expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_has_its_own_clips_and_its_own_loss(name):
  options, plain = OPTIONS[name]
  batch = batches.batch("odd", spread=1.5)
  low, high = 0.1, 0.5
  terms = plain_loss.token_losses(
    *(batch[key] for key in ("log_probs", "old", "advantages", "mask")), low=low, high=high, **plain
  )
  value = computed(batch, options, clip_epsilon_low=low, clip_epsilon_high=high)[0]
  expected = plain_loss.aggregated(terms, batch["mask"], "sequence_mean")
  np.testing.assert_allclose(value, expected, rtol=1e-5)
  others = [computed(batch, other)[0] for n, (other, _) in OPTIONS.items() if n != name]
  assert all(abs(float(other - computed(batch, options)[0])) > 1e-4 for other in others)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_what_is_clipped_is_counted_by_the_ratio_that_clips(level):
  batch = batches.batch("odd")
  mask, advantages = batch["mask"], batch["advantages"]
  ratio = np.exp(plain_loss.log_ratios(batch["log_probs"], batch["old"], mask, level))
  _, sums = computed(batch, {"importance_sampling_level": level, "dual_clip": 1.3})
  expected = {
    "mask": mask.sum(),
    "policy_ratio": ratio[mask].sum(),
    "clip_ratio/low": (mask & (ratio < 0.8) & (advantages < 0)).sum(),
    "clip_ratio/high": (mask & (ratio > 1.2) & (advantages > 0)).sum(),
    "clip_ratio/dual": (mask & (ratio > 1.3) & (advantages < 0)).sum(),
  }
  assert min(expected.values()) > 0
  assert {name: float(total) for name, total in sums.items()} == pytest.approx(expected, rel=1e-5)
  assert "clip_ratio/dual" not in computed(batch, {})[1]


def test_cispo_counts_every_weight_that_is_clipped_whatever_the_advantage():
  batch = batches.batch("odd")
  mask = batch["mask"]
  ratio = np.exp(plain_loss.log_ratios(batch["log_probs"], batch["old"], mask, "token"))
  _, sums = computed(batch, OPTIONS["cispo"][0])
  assert sums["clip_ratio/low"] == (mask & (ratio < 0.8)).sum() > 0
  assert sums["clip_ratio/high"] == (mask & (ratio > 1.2)).sum() > 0


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("name", OPTIONS)
def test_the_gradient_is_that_of_finite_differences_of_the_formula(name, aggregation):
  """All tokens of a reply have one advantage, as in GSPO; CISPO's weights stay constant."""
  options, plain = OPTIONS[name]
  batch = batches.batch("odd", seed=4, by_reply=True)

  def formula(log_probs):
    terms = plain_loss.token_losses(
      log_probs,
      batch["old"],
      batch["advantages"],
      batch["mask"],
      weights_at=batch["log_probs"],
      **plain,
    )
    return plain_loss.aggregated(terms, batch["mask"], aggregation)

  expected = plain_loss.numerical_gradient(formula, batch["log_probs"])
  gradient = jax.grad(lambda x: computed(batch, options, aggregation, log_probs=x)[0])(
    jnp.asarray(batch["log_probs"])
  )
  assert (abs(expected) > 1e-3).any()
  np.testing.assert_allclose(gradient, expected, atol=2e-6)


def test_with_a_ratio_of_the_reply_every_token_still_learns_by_its_own_advantage():
  """GSPO-token, arXiv 2507.18071, eq. 17: where nothing is clipped, -weight * s * A_t."""
  batch = batches.batch("odd", spread=0.05)
  level = {"importance_sampling_level": "sequence"}
  gradient = jax.grad(lambda x: computed(batch, level, "token_mean", log_probs=x)[0])(
    jnp.asarray(batch["log_probs"])
  )
  mask = batch["mask"]
  ratio = np.exp(plain_loss.log_ratios(batch["log_probs"], batch["old"], mask, "sequence"))
  assert (abs(ratio - 1) < 0.2).all() and (abs(ratio[mask] - 1) > 1e-4).any()
  expected = np.where(mask, -ratio * batch["advantages"] / mask.sum(), 0)
  np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", OPTIONS)
def test_on_policy_every_option_has_the_plain_policy_gradient(name):
  batch = batches.batch("odd")
  weights = loss_lib.token_weights(jnp.asarray(batch["mask"]), "token_mean")

  def loss(log_probs):
    old = jax.lax.stop_gradient(log_probs)
    advantages = jnp.asarray(batch["advantages"])
    clips = {"clip_epsilon_low": 0.2, "clip_epsilon_high": 0.2}
    return loss_lib.policy_loss(log_probs, old, advantages, weights, **clips, **OPTIONS[name][0])[0]

  gradient = jax.grad(loss)(jnp.asarray(batch["log_probs"]))
  np.testing.assert_allclose(gradient, -batch["advantages"] * weights, atol=1e-7)


@pytest.mark.parametrize("name", OPTIONS)
def test_what_stands_outside_the_mask_reaches_neither_loss_nor_gradient(name):
  options, batch = OPTIONS[name][0], batches.batch("odd")
  poisoned = {**batch}
  for key in ("log_probs", "old"):
    poisoned[key] = np.where(batch["mask"], batch[key], np.nan).astype(np.float32)
  value_and_grad = jax.value_and_grad(
    lambda x, arrays: computed(arrays, options, log_probs=x)[0], argnums=0
  )
  value, gradient = value_and_grad(jnp.asarray(poisoned["log_probs"]), poisoned)
  expected, clean = value_and_grad(jnp.asarray(batch["log_probs"]), batch)
  np.testing.assert_array_equal(value, expected)
  np.testing.assert_array_equal(np.where(batch["mask"], gradient, 0), clean)


@pytest.mark.parametrize("name", OPTIONS)
def test_kl_and_sampler_correction_are_added_to_every_option(name):
  options, plain = OPTIONS[name]
  batch = batches.batch("odd")
  terms = plain_loss.token_losses(
    *(batch[key] for key in ("log_probs", "old", "advantages", "mask")), **plain
  )
  gap = np.minimum(np.exp(batch["old"] - batch["sampler"]), 1.5)
  x = batch["log_probs"] - batch["reference"]
  terms = terms * gap + 0.3 * (np.exp(-x) + x - 1)
  actual = computed(
    batch,
    options,
    sampler_log_probs=jnp.asarray(batch["sampler"]),
    tis_cap=1.5,
    reference_log_probs=jnp.asarray(batch["reference"]),
    kl_weight=0.3,
  )[0]
  expected = plain_loss.aggregated(terms, batch["mask"], "sequence_mean")
  np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("name", OPTIONS)
def test_the_sum_over_micro_batches_is_the_loss_of_the_batch(name, aggregation):
  batch = batches.batch("odd")
  weights = loss_lib.token_weights(jnp.asarray(batch["mask"]), aggregation, constant_length=7)
  arrays = {key: jnp.asarray(batch[key]) for key in ("log_probs", "old", "advantages")}
  arrays["weights"] = weights

  def loss(shift, part, options):
    return loss_lib.policy_loss(
      part["log_probs"] + shift * jnp.sin(part["log_probs"] * 9),
      part["old"],
      part["advantages"],
      part["weights"],
      clip_epsilon_low=0.2,
      clip_epsilon_high=0.2,
      **options,
    )

  of_options = functools.partial(loss, options=OPTIONS[name][0])
  whole, parts = (
    update.accumulated_gradients(
      of_options,
      jnp.float32(0.1),
      jax.tree.map(lambda x, n=n: x.reshape(n, -1, *x.shape[1:]), arrays),
    )
    for n in (1, 3)
  )
  for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
    np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-7)
