"""Advantages of groups and segments against the formulas in plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vr_jax import records
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
  actual = advantages_lib.group_advantages(rewards, _everyone(rewards), normalize_by_std=False)
  np.testing.assert_allclose(actual[0, :, 0], [-1, 1])


def test_a_reply_without_reward_leaves_the_others_as_they_were():
  rewards = jnp.array([[[1.0], [0.0], [9.0]]])
  valid = jnp.array([[[True], [True], [False]]])
  np.testing.assert_allclose(advantages_lib.group_advantages(rewards, valid)[0, :, 0], [1, -1, 0])


@pytest.mark.parametrize("normalize_by_std", [True, False])
def test_a_group_of_equal_rewards_has_no_signal_and_no_advantage(normalize_by_std):
  rewards = jnp.array([[[0.1], [0.1], [0.1]], [[0.0], [1.0], [0.0]]])
  everyone = _everyone(rewards)
  advantages = advantages_lib.group_advantages(rewards, everyone, normalize_by_std=normalize_by_std)
  np.testing.assert_array_equal(advantages[0], 0)
  np.testing.assert_array_equal(advantages_lib.has_signal(rewards, everyone)[:, 0], [False, True])


def test_a_group_in_which_nothing_is_valid_gives_zeros_and_no_nan():
  rewards = jnp.full((1, 4, 1), jnp.nan)
  nobody = jnp.zeros((1, 4, 1), bool)
  np.testing.assert_array_equal(advantages_lib.group_advantages(rewards, nobody), 0)


@pytest.mark.parametrize("estimator", ["segments", "episode"])
def test_noise_gives_replies_that_all_earn_the_same_an_advantage(estimator):
  shape, rng = (40, 50, 2), np.random.default_rng(0)
  scored = rng.random(shape) < 0.9
  if estimator == "episode":  # else the sums of rewards would differ
    scored = np.broadcast_to(scored[..., :1], shape)
  scores = records.Scores(rewards={}, scored=jnp.asarray(scored), total=jnp.ones(shape))
  options = {"segments": ("seen", "thought"), "normalize_by_std": True, "max_tokens": 4}
  segment = jnp.broadcast_to(jnp.array([0, 0, 1, -1]), (*shape[:2], 4))

  def advantages(step, noise=0.02):
    key = jax.random.fold_in(jax.random.key(0), step)
    return advantages_lib.compute_advantages(
      scores, segment, estimator=estimator, noise=noise, key=key, **options
    )

  found, signal, metrics = advantages(0)
  found = np.asarray(found)
  assert metrics["frac_reward_zero_std"] == 1 and signal.all()
  np.testing.assert_array_equal(found[..., 0], found[..., 1])  # one number a reply and segment
  assert (found[..., 1:3] != 0)[scored].all() and not found[..., 1:3][~scored].any()
  assert not found[..., 3].any()
  assert found[..., 2][scored[..., 1]].std() == pytest.approx(0.02, rel=0.1)
  assert abs(found[..., 2][scored[..., 1]].mean()) < 2e-3
  assert np.array_equal(found[..., 0], found[..., 2]) == (estimator == "episode")
  np.testing.assert_array_equal(advantages(0)[0], found)
  assert (np.asarray(advantages(1)[0]) != found).any()
  plain, signal, _ = advantages(0, noise=0.0)
  assert not np.asarray(plain).any() and not signal.any()


def test_tokens_take_the_advantage_of_their_segment():
  advantages = jnp.array([[[2.0, -1.0]]])
  segment = jnp.array([[[0, 0, 1, 1, -1]]])
  np.testing.assert_allclose(
    advantages_lib.token_advantages(advantages, segment)[0, 0], [2, 2, -1, -1, 0]
  )


@pytest.mark.parametrize("normalize_by_std", [True, False])
@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out"])
def test_a_group_whose_rewards_differ_by_less_than_the_floor_has_no_advantage(
  baseline, normalize_by_std
):
  rewards = jnp.array(
    [[[0.0], [1e-4]], [[0.0], [3e-4]]]
  )  # std 0.5e-4 and 1.5e-4; the floor is 1e-4
  everyone = _everyone(rewards)
  options = {"baseline": baseline, "normalize_by_std": normalize_by_std}
  below, above = advantages_lib.group_advantages(rewards, everyone, **options)[..., 0]
  np.testing.assert_array_equal(below, 0)
  scale = (1.5e-4 if normalize_by_std else 1) / (2 if baseline == "leave_one_out" else 1)
  np.testing.assert_allclose(above, np.array([-1.5e-4, 1.5e-4]) / scale, rtol=1e-4)
  np.testing.assert_array_equal(advantages_lib.has_signal(rewards, everyone)[:, 0], [False, True])
  lower = advantages_lib.group_advantages(rewards, everyone, **options, std_floor=2e-5)
  assert (lower != 0).all()
  assert advantages_lib.has_signal(rewards, everyone, std_floor=2e-5).all()


def _scores(seed, shape=(4, 5, 3)):
  """Random totals, some of them not valid.

  One group has no valid entry, another only one valid reply.
  """
  rng = np.random.default_rng(seed)
  total = rng.normal(size=shape).astype(np.float32)
  valid = rng.random(shape) < 0.8
  valid[1] = False
  valid[2, 1:] = False
  valid[2, 0] = True
  return records.Scores(
    rewards={"accuracy": jnp.asarray(total)}, scored=jnp.asarray(valid), total=jnp.asarray(total)
  )


def _combined(total, valid, estimator):
  """(reward, whether it is known) of each segment of a reply, as `estimator` says."""
  if estimator == "segments":
    return total, valid
  if estimator == "outcome":
    return np.full(total.shape, total[-1]), np.full(total.shape, valid[-1])
  known = valid.all() if estimator == "joint" else valid.any()
  return np.full(total.shape, total[valid].sum()), np.full(total.shape, known)


@pytest.mark.parametrize("normalize_by_std", [True, False])
@pytest.mark.parametrize("baseline", ["group_mean", "leave_one_out"])
@pytest.mark.parametrize("estimator", ["segments", "joint", "episode", "outcome", "gae"])
def test_advantages_are_rewards_that_count_together_less_their_baseline(
  estimator, baseline, normalize_by_std
):
  checked = 0
  for seed in range(3):
    scores = _scores(seed)
    actual, signal = advantages_lib.segment_advantages(
      scores, estimator=estimator, baseline=baseline, normalize_by_std=normalize_by_std
    )
    total, valid = np.asarray(scores.total, np.float64), np.asarray(scores.scored)
    for prompt, segment in np.ndindex(total.shape[0], total.shape[2]):
      pairs = [_combined(total[prompt, i], valid[prompt, i], estimator) for i in range(5)]
      known = [float(r[segment]) for r, v in pairs if v[segment]]
      differ = len(known) > 1
      found = np.asarray(signal)[prompt]
      assert found[segment if estimator == "segments" else 0] == differ
      for reply, (rewards, judged) in enumerate(pairs):
        expected = 0.0
        if judged[segment] and differ:
          others = sum(known) - rewards[segment]
          mean = others / (len(known) - 1) if baseline == "leave_one_out" else np.mean(known)
          expected = (rewards[segment] - mean) / (np.std(known) if normalize_by_std else 1)
          checked += 1
        np.testing.assert_allclose(actual[prompt, reply, segment], expected, rtol=2e-4, atol=1e-5)
  assert checked > 40


def test_leave_one_out_in_a_group_of_one_gives_zeros():
  rewards = jnp.array([[[3.0]]])
  found = advantages_lib.group_advantages(rewards, _everyone(rewards), baseline="leave_one_out")
  np.testing.assert_array_equal(found, 0)


@pytest.mark.parametrize("estimator", ["joint", "outcome"])
def test_all_tokens_of_a_reply_share_a_joint_advantage_and_metrics_stay_by_segment(estimator):
  total = np.array([[[1, 5], [3, 5], [2, 2]]], np.float32)
  segment = np.array([[[0, 1, -1], [0, 0, 1], [1, 1, 1]]], np.int32)
  scores = records.Scores(
    rewards={"accuracy": jnp.asarray(total)},
    scored=jnp.ones(total.shape, bool),
    total=jnp.asarray(total),
  )
  found, signal, metrics = advantages_lib.compute_advantages(
    scores,
    jnp.asarray(segment),
    segments=("seen", "thought"),
    estimator=estimator,
    normalize_by_std=False,
    max_tokens=3,
  )
  each = {"joint": [0, 2, -2], "outcome": [1, 1, -2]}[estimator]
  np.testing.assert_allclose(found[0], np.where(segment[0] >= 0, np.array(each)[:, None], 0))
  assert signal.all() and metrics["frac_reward_zero_std"] == 0
  assert metrics["rewards/seen/total/mean"] == pytest.approx(2)
  assert metrics["rewards/thought/total/mean"] == pytest.approx(4)
  assert metrics["completions/clipped_ratio"] == pytest.approx(2 / 3)
  assert not any(name.startswith("frac_reward_zero_std/") for name in metrics)
