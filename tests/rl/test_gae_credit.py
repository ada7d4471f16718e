"""Advantages by bi-level GAE from scores, rollout and values, against loops in NumPy."""

import jax
import ml_collections
import numpy as np
import pytest

from tests.rl import plain_gae
from vr_jax import records
from vr_jax.rl import gae

TOLERANCE = 1e-5


def _episodes(seed=0, turns=3):
  """(scores, rollout, values, reference) of episodes; some turns are not scored."""
  rng, shape = np.random.default_rng(seed), (3, 4, 29)
  turn, mask = plain_gae.episodes(rng, shape, turns)
  accuracy, total = rng.normal(size=(2, *shape[:2], turns)).astype(np.float32)
  valid = rng.random(accuracy.shape) < 0.8
  log_probs, reference, values = rng.normal(size=(3, *shape)).astype(np.float32)
  rollout = records.Rollout(
    tokens=np.zeros(shape, np.int32),
    log_probs=log_probs,
    kind=np.where(mask, int(records.Kind.MODEL), int(records.Kind.ENVIRONMENT)),
    turn=turn,
  )
  scores = records.Scores(
    rewards={"accuracy": np.where(valid, accuracy, np.nan)}, scored=valid, total=total
  )
  return scores, rollout, values, reference


@pytest.mark.parametrize("placement", ["every", "last"])
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_credit_is_bi_level_gae_of_the_scores_and_the_penalty_and_skips_turns_without_a_score(
  placement, beta
):
  scores, rollout, values, reference = _episodes()
  discounts = {"gamma_turn": 0.9, "gamma_token": 0.97, "gae_lambda": 0.8}
  section = ml_collections.ConfigDict({**discounts, "placement": placement, "kl_weight": beta})
  compute_advantages = gae.make_advantage_fn(section, answer_reward="accuracy")
  found = compute_advantages(scores, rollout, values, reference if beta else None)
  advantages, returns, metrics = jax.tree.map(np.asarray, found)
  counted = np.take_along_axis(np.asarray(scores.scored), np.asarray(rollout.turn), axis=2)
  mask = counted & (rollout.kind == records.Kind.MODEL)
  expected = np.zeros(mask.shape)
  answers = np.where(scores.scored, scores.rewards["accuracy"], 0)
  between = 0.9 if placement == "last" else 0.0
  for row in np.ndindex(*mask.shape[:2]):
    process, answer = scores.total[row] - answers[row], answers[row].sum()
    rewards = plain_gae.placed(process, answer, rollout.turn[row], mask[row], 0.9, placement)
    rewards -= np.where(mask[row], beta * (rollout.log_probs[row] - reference[row]), 0)
    expected[row] = plain_gae.reference(
      rewards, values[row], rollout.turn[row], mask[row], **{**discounts, "gamma_turn": between}
    )
  np.testing.assert_allclose(returns, expected + values, atol=TOLERANCE)
  raw = expected[mask]
  white = (raw - raw.mean()) / np.sqrt(raw.var(ddof=1) + 1e-8)
  np.testing.assert_allclose(advantages[mask], white, atol=TOLERANCE)
  assert (advantages[~mask] == 0).all()
  assert metrics["critic/advantages/mean"] == pytest.approx(raw.mean(), abs=TOLERANCE)
  assert metrics["critic/advantages/std"] == pytest.approx(raw.std(), abs=TOLERANCE)
  assert ("critic/kl" in metrics) == bool(beta)
  assert (counted < (rollout.kind == records.Kind.MODEL)).any()
