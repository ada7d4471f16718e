"""Advantages of groups and segments against the formulas in plain NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from vr_jax.rl import advantages as advantages_lib


def _everyone(rewards):
  return jnp.ones(rewards.shape, bool)


@pytest.mark.parametrize("segments", [1, 2])
def test_advantages_are_rewards_centred_and_scaled_over_the_group(segments):
  rewards = np.random.default_rng(0).normal(size=(3, 8, segments)).astype(np.float32)
  expected = (rewards - rewards.mean(1, keepdims=True)) / rewards.std(1, keepdims=True)
  actual = advantages_lib.group_advantages(jnp.asarray(rewards), _everyone(rewards))
  np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_without_normalisation_the_scale_of_the_rewards_stays():
  rewards = jnp.array([[[1.0], [3.0]]])
  actual = advantages_lib.group_advantages(rewards, _everyone(rewards), normalise=False)
  np.testing.assert_allclose(actual[0, :, 0], [-1, 1])


def test_a_reply_without_reward_leaves_the_others_as_they_were():
  rewards = jnp.array([[[1.0], [0.0], [9.0]]])
  valid = jnp.array([[[True], [True], [False]]])
  np.testing.assert_allclose(advantages_lib.group_advantages(rewards, valid)[0, :, 0], [1, -1, 0])


@pytest.mark.parametrize("normalise", [True, False])
def test_a_group_of_equal_rewards_has_no_signal_and_no_advantage(normalise):
  rewards = jnp.array([[[0.1], [0.1], [0.1]], [[0.0], [1.0], [0.0]]])
  everyone = _everyone(rewards)
  advantages = advantages_lib.group_advantages(rewards, everyone, normalise=normalise)
  np.testing.assert_array_equal(advantages[0], 0)
  np.testing.assert_array_equal(advantages_lib.has_signal(rewards, everyone)[:, 0], [False, True])


def test_a_group_in_which_nothing_is_valid_gives_zeros_and_no_nan():
  rewards = jnp.full((1, 4, 1), jnp.nan)
  nobody = jnp.zeros((1, 4, 1), bool)
  np.testing.assert_array_equal(advantages_lib.group_advantages(rewards, nobody), 0)


def test_tokens_take_the_advantage_of_their_segment():
  advantages = jnp.array([[[2.0, -1.0]]])
  segment = jnp.array([[[0, 0, 1, 1, -1]]])
  np.testing.assert_allclose(
    advantages_lib.token_advantages(advantages, segment)[0, 0], [2, 2, -1, -1, 0]
  )
