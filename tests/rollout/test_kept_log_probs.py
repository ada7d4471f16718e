"""Log-probs among the tokens that are kept: the distribution that tokens are really drawn from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rollout import bigram, plain_limits
from vr_jax import records
from vr_jax.rl import loss as loss_lib
from vr_jax.rl import sampler_mismatch
from vr_jax.rollout import forward, inverse_cdf, likely_tokens, refill_sampler, sampler

LIMITS = ({"top_p": 0.6}, {"top_k": 5}, {"min_p": 0.2}, {"top_p": 0.7, "top_k": 9, "min_p": 0.05})
DRAWS = 2**15


def decoding(**changes):
  fields = {"group": 32, "max_new_tokens": 8, "temperature": 0.8, "top_p": 1.0}
  return sampler.Decoding(**{**fields, "kept_log_probs": True, **changes}, stop_tokens=(0,))


def logits(vocab, rows=1):
  rng = np.random.default_rng(vocab)
  return jnp.asarray(np.repeat(rng.normal(0, 2, (1, vocab)), rows, axis=0), jnp.float32)


def kept_log_probs(weights, **limits):
  """Log-probs of the kept tokens in float64, -inf for the others."""
  weights = np.asarray(weights, np.float64)
  kept = np.where(plain_limits.kept(weights, **limits), weights, 0)
  with np.errstate(divide="ignore"):
    return np.log(kept / kept.sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("vocab", [7, 50, 300])
def test_log_probs_are_those_of_the_renormalised_kept_tokens(vocab, limits):
  scores = logits(vocab, rows=2048)
  keys = jax.random.split(jax.random.key(0), len(scores))
  tokens, log_probs = sampler.sample_token(scores, keys, jnp.int32(0), decoding(**limits))
  expected = kept_log_probs(jax.nn.softmax(scores[0]), **limits)
  np.testing.assert_allclose(log_probs, expected[np.asarray(tokens)], atol=2e-6)
  assert set(np.flatnonzero(expected > -4)) <= set(np.unique(tokens).tolist())


@pytest.mark.parametrize("limits", LIMITS)
def test_they_are_the_frequencies_of_all_draws(limits):
  """One draw for each of equally spaced fractions; each end of a token costs a draw at most."""
  weights = jax.nn.softmax(logits(50))
  kept = likely_tokens.keep_likely(weights, **{"top_p": 1.0, **limits})
  fractions = (jnp.arange(DRAWS) + 0.5) / DRAWS
  drawn = inverse_cdf.sample(jnp.broadcast_to(kept, (DRAWS, 50)), fractions)
  frequency = np.bincount(np.asarray(drawn), minlength=50) / DRAWS
  expected = np.exp(kept_log_probs(weights[0], **limits))
  np.testing.assert_allclose(frequency, expected, atol=2 / DRAWS)


@pytest.mark.parametrize("greedy", [False, True])
def test_where_nothing_is_left_out_they_are_those_of_all_tokens(greedy):
  scores = logits(50, rows=64)
  keys = jax.random.split(jax.random.key(1), len(scores))
  changes = {"temperature": 0.0, "top_p": 0.5} if greedy else {}
  kept, every = (
    sampler.sample_token(scores, keys, jnp.int32(0), decoding(kept_log_probs=is_kept, **changes))
    for is_kept in (True, False)
  )
  np.testing.assert_array_equal(kept[0], every[0])
  np.testing.assert_array_equal(kept[1], every[1])


@pytest.mark.parametrize("slots", [0, 6])
def test_a_rollout_has_them_and_the_trainers_ratio_is_the_mass_that_is_kept(slots):
  table = np.random.default_rng(2).normal(0, 2, (12, 12)).astype(np.float32)
  graphdef, params = bigram.split(table)
  prompt = bigram.prompts((1, 2, 3), (4,))
  how = decoding(top_p=0.6, slots=slots)
  sample = refill_sampler.sample_counting if slots else sampler.sample_counting
  rollout, _ = sample(graphdef, params, prompt, jnp.ones(12, bool), jax.random.key(0), decoding=how)
  sampled = np.asarray(rollout.kind) == records.Kind.MODEL
  trainer, _ = forward.reply_log_probs(
    bigram.Bigram(table), prompt, rollout.tokens, jnp.asarray(sampled), jnp.ones(12, bool), 0.8
  )
  start = np.broadcast_to(np.array([3, 4])[:, None, None], (2, 32, 1))
  last = np.concatenate([start, np.asarray(rollout.tokens)[..., :-1]], axis=-1)
  weights = np.asarray(jax.nn.softmax(jnp.asarray(table) / 0.8))
  expected = kept_log_probs(weights, top_p=0.6)[last, np.asarray(rollout.tokens)]
  np.testing.assert_allclose(np.asarray(rollout.log_probs)[sampled], expected[sampled], atol=1e-5)
  mass = np.where(plain_limits.kept(weights, top_p=0.6), weights, 0).sum(axis=-1)[last]
  ratio = np.exp(np.asarray(trainer) - np.asarray(rollout.log_probs))
  np.testing.assert_allclose(ratio[sampled], mass[sampled], rtol=1e-5)
  sums = sampler_mismatch.mismatch_sums(trainer, rollout.log_probs, jnp.asarray(sampled))
  metrics = sampler_mismatch.mismatch_metrics(sums)
  mean = metrics["sampling/importance_sampling_ratio/mean"]
  assert float(mean) == pytest.approx(mass[sampled].mean(), rel=1e-5)
  assert 0.6 <= float(mean) < 0.95


@pytest.mark.parametrize("is_kept", [True, False])
def test_the_expected_gradient_weighs_kept_tokens_by_the_policy_or_by_what_was_drawn(is_kept):
  """All kept tokens as one batch, each as often as it is drawn."""
  scores = jnp.asarray(logits(9)[0])
  policy = np.asarray(jax.nn.softmax(scores), np.float64)
  drawn = np.exp(kept_log_probs(policy[None], top_p=0.6)[0])
  advantages = np.random.default_rng(4).normal(size=9)
  tokens = np.flatnonzero(drawn)
  sampler_log_probs = np.log((drawn if is_kept else policy)[tokens])

  def loss(scores):
    log_probs = jax.nn.log_softmax(scores)[tokens][None, None]
    old = jax.lax.stop_gradient(log_probs)
    return loss_lib.policy_loss(
      log_probs,
      old,
      jnp.asarray(advantages[tokens], jnp.float32)[None, None],
      jnp.asarray(drawn[tokens], jnp.float32)[None, None],
      clip_epsilon_low=0.2,
      clip_epsilon_high=0.2,
      sampler_log_probs=jnp.asarray(sampler_log_probs, jnp.float32)[None, None],
      tis_cap=2.0,
    )[0]

  weight = np.where(drawn > 0, policy if is_kept else drawn, 0) * advantages
  expected = -(weight - weight.sum() * policy)  # of the logits
  np.testing.assert_allclose(jax.grad(loss)(scores), expected, atol=1e-6)
