"""Metrics of rewards and lengths against plain NumPy, for one segment and for several."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vr_jax import records
from vr_jax.rl import advantages, reward_metrics

# [2 prompts, 3 replies, 6 tokens]; -1: no token of the policy's.
SEGMENT = np.array(
  [
    [[0, 0, 1, 1, 1, 1], [0, 1, -1, -1, -1, -1], [0, 0, 1, -1, -1, -1]],
    [[0, 0, 0, -1, -1, -1], [-1, -1, -1, -1, -1, -1], [0, 1, 1, 1, 1, -1]],
  ]
)
TOTAL = np.array(
  [[[1.0, 0.0], [3.0, 0.0], [-1.0, 0.0]], [[2.0, 5.0], [2.0, 0.0], [2.0, 0.0]]], np.float32
)
SCORED = np.array([[[1, 1], [1, 1], [1, 1]], [[1, 0], [1, 1], [1, 1]]], bool)
SCORES = records.Scores(
  rewards={"accuracy": jnp.asarray(TOTAL / 2)}, scored=jnp.asarray(SCORED), total=jnp.asarray(TOTAL)
)
NAMES = ("seen", "thought")


def _lengths(multi_turn, segment=SEGMENT, names=NAMES):
  found = reward_metrics.length_metrics(jnp.asarray(segment), names, multi_turn, max_tokens=6)
  return {name.removeprefix("completions/"): float(value) for name, value in found.items()}


def test_lengths_are_those_of_whole_replies_and_of_each_segment():
  found = _lengths(multi_turn=False)
  assert found == {
    "mean_length": pytest.approx((6 + 2 + 3 + 3 + 0 + 5) / 6),
    "min_length": 0,
    "max_length": 6,
    "clipped_ratio": pytest.approx(1 / 5),  # of the replies that have tokens
    "seen/mean_length": pytest.approx((2 + 1 + 2 + 3 + 0 + 1) / 6),
    "thought/mean_length": pytest.approx((4 + 1 + 1 + 0 + 0 + 4) / 6),
  }


def test_of_several_turns_each_reply_may_be_clipped():
  assert _lengths(multi_turn=True)["clipped_ratio"] == 0  # no turn has six tokens
  clipped = np.where(SEGMENT[0, 0] == 0, -1, 1)  # the second turn alone, four tokens
  found = reward_metrics.length_metrics(jnp.asarray(clipped)[None, None], NAMES, True, 4)
  assert found["completions/clipped_ratio"] == 1


def test_one_segment_has_no_metrics_of_its_own():
  found = _lengths(multi_turn=False, segment=np.where(SEGMENT < 0, -1, 0), names=("reply",))
  assert found.keys() == {"mean_length", "min_length", "max_length", "clipped_ratio"}
  one = jax.tree.map(lambda x: x[..., :1], SCORES)
  found = reward_metrics.score_metrics(one, ("reply",), multi_turn=False)
  assert {name.split("/")[1] for name in found} == {"accuracy", "total"}
  np.testing.assert_allclose(found["rewards/total/mean"], TOTAL[..., 0].mean())


@pytest.mark.parametrize("multi_turn", [False, True])
def test_each_segment_has_the_mean_std_and_zeros_of_its_scored_replies(multi_turn):
  found = reward_metrics.score_metrics(SCORES, NAMES, multi_turn)
  for number, name in enumerate(NAMES):
    for reward, values in (("accuracy", TOTAL / 2), ("total", TOTAL)):
      kept = values[..., number][SCORED[..., number]]
      prefix = f"rewards/{name}/{reward}"
      np.testing.assert_allclose(found[f"{prefix}/mean"], kept.mean(), rtol=1e-6)
      np.testing.assert_allclose(found[f"{prefix}/std"], kept.std(), rtol=1e-6)
      np.testing.assert_allclose(found[f"{prefix}/zero_ratio"], (kept == 0).mean(), rtol=1e-6)
  unscored = {name: value for name, value in found.items() if name.startswith("unscored")}
  assert unscored == (
    {} if multi_turn else {"unscored_ratio/seen": 0, "unscored_ratio/thought": pytest.approx(1 / 6)}
  )


def test_a_group_has_signal_where_one_of_its_segments_has():
  """The first group differs in its first segment alone, the second in none that is scored."""
  _, signal, metrics = advantages.compute_advantages(
    SCORES,
    jnp.asarray(SEGMENT),
    segments=NAMES,
    multi_turn=False,
    estimator="segments",
    normalize_by_std=True,
    max_tokens=6,
  )
  np.testing.assert_array_equal(signal, [True, False])
  assert metrics["frac_reward_zero_std/seen"] == 0.5
  assert metrics["frac_reward_zero_std/thought"] == 1
