"""A group that shares its prompt gives the results of replies with a prompt of their own."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rollout import chat
from tests.train import nano
from vr_jax import records
from vr_jax.models.common import weight_mapping
from vr_jax.rl import loss as loss_lib
from vr_jax.rollout import forward, sampler

PROMPTS, TIME = 3, 12
TOLERANCE = 1e-5
GROUPS = [1, 2, 5, 16]


def _batches(group):
  """(prompts of different lengths, the same with one row for every reply)."""
  opening = chat.opening(PROMPTS)
  rows = [encoded for encoded in opening for _ in range(group)]
  return jax.tree.map(jnp.asarray, (chat.batch(opening), chat.batch(rows)))


def _replies(group):
  """Random (tokens, valid, advantages, log-probs at the start) of replies of different lengths.

  The shortest have one token, or none.
  """
  rng = np.random.default_rng(group)
  lengths = rng.integers(0, TIME + 1, (PROMPTS, group))
  lengths[0, 0], lengths[-1, -1] = TIME, 1
  shape = (PROMPTS, group, TIME)
  valid = np.arange(TIME) < lengths[..., None]
  tokens = np.where(valid, rng.integers(0, 256, shape), 0).astype(np.int32)
  advantages = rng.normal(size=shape).astype(np.float32)
  return tuple(map(jnp.asarray, (tokens, valid, advantages)))


def _loss(graphdef, params, prompt, tokens, valid, advantages):
  log_probs, entropy = forward.reply_log_probs(
    nnx.merge(graphdef, params), prompt, tokens, valid, chat.ALLOWED, 0.9
  )
  old = log_probs + 0.3 * jnp.sin(jnp.arange(TIME))  # some ratios are clipped
  value, _ = loss_lib.policy_loss(
    log_probs,
    jax.lax.stop_gradient(old),
    advantages,
    loss_lib.token_weights(valid, "token_mean"),
    clip_epsilon_low=0.2,
    clip_epsilon_high=0.2,
    sampler_log_probs=jax.lax.stop_gradient(log_probs),
    reference_log_probs=jax.lax.stop_gradient(old),
    kl_weight=0.1,
  )
  return value, (log_probs, entropy)


@pytest.mark.parametrize("group", GROUPS)
def test_log_probs_loss_and_gradients_are_those_of_replicated_prompts(group):
  graphdef, params = chat.network()
  shared, copies = _batches(group)
  replies = _replies(group)
  alone = [x.reshape(PROMPTS * group, 1, TIME) for x in replies]
  step = jax.jit(jax.value_and_grad(_loss, argnums=1, has_aux=True), static_argnums=0)
  (value, scores), gradients = step(graphdef, params, shared, *replies)
  (expected, of_copies), wanted = step(graphdef, params, copies, *alone)
  assert float(value) == pytest.approx(float(expected), rel=TOLERANCE, abs=TOLERANCE)
  for found, there in zip(scores, of_copies, strict=True):
    np.testing.assert_allclose(found, there.reshape(found.shape), rtol=0, atol=TOLERANCE)
  gradients, wanted = (
    {name: x.get_value() for name, x in weight_mapping.flat(tree).items()}
    for tree in (gradients, wanted)
  )
  difference = nano.largest_difference(gradients, wanted)
  assert difference.value <= TOLERANCE, difference


@pytest.fixture
def forgotten():
  """The sampler's programs, which hold the rule for keys, are made before and after a test."""
  programs = [x for x in vars(sampler).values() if hasattr(x, "clear_cache")]
  for program in programs:
    program.clear_cache()
  yield
  for program in programs:
    program.clear_cache()


@pytest.mark.usefixtures("forgotten")
@pytest.mark.parametrize("group", GROUPS)
def test_sampled_tokens_are_those_of_replicated_prompts_with_the_same_keys(group, monkeypatch):
  graphdef, params = chat.network()
  shared, copies = _batches(group)
  key, decoding = jax.random.key(7), chat.decoding(group=group, max_new_tokens=TIME, top_p=0.95)
  rollout = sampler.sample(graphdef, params, shared, chat.ALLOWED, key, decoding=decoding)
  keys = sampler.reply_keys
  monkeypatch.setattr(
    sampler, "reply_keys", lambda key, row, _: keys(key, row // group, row % group)
  )
  decoding = chat.decoding(group=1, max_new_tokens=TIME, top_p=0.95)
  expected = sampler.sample(graphdef, params, copies, chat.ALLOWED, key, decoding=decoding)
  for name in ("tokens", "kind"):
    wanted = getattr(expected, name).reshape(PROMPTS, group, TIME)
    np.testing.assert_array_equal(getattr(rollout, name), wanted, err_msg=name)
  wanted = expected.log_probs.reshape(PROMPTS, group, TIME)
  np.testing.assert_allclose(rollout.log_probs, wanted, rtol=0, atol=TOLERANCE)
  lengths = (np.asarray(rollout.kind) == int(records.Kind.MODEL)).sum(axis=-1)
  assert group == 1 or len(np.unique(lengths)) > 1
