"""Bi-level GAE against loops in NumPy after paper and code, float64; tolerance 1e-5."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rl import plain_gae
from vr_jax.rl import gae, loss

ATOL = 1e-5


@functools.partial(
  jax.jit, static_argnames=("gamma_turn", "gamma_token", "gae_lambda", "placement")
)
def _computed(process, answer, kl, values, turn, mask, *, gamma_turn, placement, **discounts):
  ends = gae.turn_ends(turn, mask)
  rewards = gae.token_rewards(
    process, answer, turn, ends, gamma_turn=gamma_turn, placement=placement
  )
  return gae.advantages(
    rewards + kl, values, mask, ends, gamma_turn=gamma_turn, placement=placement, **discounts
  )


SETTINGS = [
  {"gamma_turn": 0.95, "gamma_token": 1.0, "gae_lambda": 1.0},
  {"gamma_turn": 0.9, "gamma_token": 0.97, "gae_lambda": 0.8},
  {"gamma_turn": 1.0, "gamma_token": 1.0, "gae_lambda": 0.0},
]


def _batch(shape, turns, seed=0):
  rng = np.random.default_rng(seed)
  turn, mask = plain_gae.episodes(rng, shape, turns)
  return {
    "process": rng.normal(size=(*shape[:2], turns)).astype(np.float32),
    "answer": rng.random(shape[:2]).astype(np.float32),
    "kl": np.where(mask, 0.1 * rng.normal(size=shape), 0).astype(np.float32),
    "values": rng.normal(size=shape).astype(np.float32),
    "turn": turn,
    "mask": mask,
  }


@pytest.mark.parametrize("placement", ["every", "last"])
@pytest.mark.parametrize("setting", SETTINGS, ids=["paper", "all discounts", "one step"])
@pytest.mark.parametrize(("shape", "turns"), [((3, 4, 29), 3), ((1, 1, 1), 1), ((2, 1, 7), 5)])
def test_both_passes_equal_the_formulas(shape, turns, setting, placement):
  batch = _batch(shape, turns)
  found, returns = _computed(**batch, **setting, placement=placement)
  between = setting["gamma_turn"] if placement == "last" else 0.0
  for row in np.ndindex(*shape[:2]):
    at = {name: value[row] for name, value in batch.items()}
    rewards = at["kl"] + plain_gae.placed(
      at["process"], at["answer"], at["turn"], at["mask"], setting["gamma_turn"], placement
    )
    expected = plain_gae.reference(
      rewards, at["values"], at["turn"], at["mask"], **{**setting, "gamma_turn": between}
    )
    np.testing.assert_allclose(found[row], expected, atol=ATOL)
    np.testing.assert_allclose(returns[row], expected + at["values"] * at["mask"], atol=ATOL)


def test_with_no_decay_an_advantage_is_what_follows_less_the_value():
  batch, gamma = _batch((4, 3, 31), 4, seed=1), 0.9
  setting = {"gamma_turn": gamma, "gamma_token": 1.0, "gae_lambda": 1.0, "placement": "last"}
  found, _ = _computed(**batch, **setting)
  checked = 0
  for row in np.ndindex(4, 3):
    at = {name: value[row] for name, value in batch.items()}
    ends = plain_gae.ends_of(at["turn"], at["mask"])
    rewards = at["kl"] + plain_gae.placed(
      at["process"], at["answer"], at["turn"], at["mask"], gamma, "last"
    )
    for t in np.flatnonzero(at["mask"]):
      here = next(index for index, end in enumerate(ends) if end >= t)
      later = sum(gamma**k * rewards[end] for k, end in enumerate(ends[here:]))
      expected = later + rewards[t : ends[here]][at["mask"][t : ends[here]]].sum() - at["values"][t]
      np.testing.assert_allclose(found[row][t], expected, atol=ATOL)
      checked += 1
  assert checked > 40


def test_a_turn_ends_with_its_last_written_token():
  turn = jnp.array([[[0, 0, 0, 1, 1, 1, 2, 2]]])
  mask = jnp.array([[[0, 1, 1, 0, 1, 0, 0, 0]]], bool)
  np.testing.assert_array_equal(gae.turn_ends(turn, mask)[0, 0], [0, 0, 1, 0, 1, 0, 0, 0])
  assert not gae.turn_ends(turn, jnp.zeros_like(mask)).any()


def test_an_answer_is_placed_at_every_end_discounted_or_at_the_last_alone():
  turn = jnp.array([[[0, 0, 1, 2, 2, 2]]])
  mask = jnp.array([[[1, 1, 1, 0, 1, 0]]], bool)
  process, answer = jnp.array([[[0.5, 0.1, 0.2]]]), jnp.array([[1.0]])
  ends = gae.turn_ends(turn, mask)
  cases: list[tuple[gae.Placement, list[float]]] = [
    ("every", [0, 0.5 + 0.81, 0.1 + 0.9, 0, 1.2, 0]),
    ("last", [0, 0.5, 0.1, 0, 1.2, 0]),
  ]
  for placement, expected in cases:
    rewards = gae.token_rewards(process, answer, turn, ends, gamma_turn=0.9, placement=placement)
    np.testing.assert_allclose(rewards[0, 0], expected, atol=1e-6)


def test_what_stands_outside_the_mask_changes_nothing():
  batch = _batch((2, 3, 17), 3)
  setting = {**SETTINGS[1], "placement": "last"}
  found, returns = _computed(**batch, **setting)
  dirty = {**batch, "values": np.where(batch["mask"], batch["values"], np.nan)}
  dirty["kl"] = np.where(batch["mask"], batch["kl"], np.inf)
  for clean, again in zip((found, returns), _computed(**dirty, **setting), strict=True):
    np.testing.assert_array_equal(clean, again)
    assert (np.asarray(again)[~batch["mask"]] == 0).all()


def test_padding_a_batch_changes_nothing():
  batch = _batch((2, 2, 13), 3)
  setting = {**SETTINGS[1], "placement": "every"}
  wide = {
    name: np.pad(value, ((0, 0), (0, 0), (0, 6)))
    if name in ("kl", "values", "turn", "mask")
    else value
    for name, value in batch.items()
  }
  for narrow, padded in zip(
    _computed(**batch, **setting), _computed(**wide, **setting), strict=True
  ):
    np.testing.assert_allclose(padded[..., :13], narrow, atol=1e-6)
    assert (padded[..., 13:] == 0).all()


def test_whitened_advantages_have_mean_zero_and_unbiased_variance_one():
  rng = np.random.default_rng(2)
  mask = rng.random((3, 2, 9)) < 0.6
  raw = jnp.asarray(rng.normal(3, 5, mask.shape).astype(np.float32))
  white = np.asarray(gae.whiten(raw, jnp.asarray(mask)))
  assert white[mask].mean() == pytest.approx(0, abs=1e-6)
  assert white[mask].var(ddof=1) == pytest.approx(1, abs=1e-5)
  assert (white[~mask] == 0).all()


@pytest.mark.parametrize("tokens", [0, 1])
def test_whitening_fewer_than_two_tokens_gives_zeros_and_no_nan(tokens):
  mask = jnp.arange(4).reshape(1, 1, 4) < tokens
  np.testing.assert_array_equal(gae.whiten(jnp.full((1, 1, 4), 7.0), mask), 0)


def test_the_penalty_is_a_reward_where_the_model_wrote():
  mask = jnp.array([[[True, True, False]]])
  policy, reference = jnp.array([[[-1.0, -2.0, jnp.nan]]]), jnp.array([[[-3.0, -1.0, 0.0]]])
  rewards = gae.kl_rewards(policy, reference, mask, beta=0.1)
  np.testing.assert_allclose(rewards[0, 0], [-0.2, 0.1, 0], atol=1e-7)


def test_the_loss_of_values_is_the_larger_of_the_free_and_the_clipped_error():
  mask = jnp.array([[[True, True, True, False]]])
  old, values = jnp.zeros((1, 1, 4)), jnp.array([[[1.0, 1.0, 0.3, 9.0]]])
  returns = jnp.array([[[2.0, -1.0, 1.0, 0.0]]])
  weights = loss.token_weights(mask, "token_mean")
  value, sums = gae.value_loss(values, old, returns, weights, clip=0.5)
  assert float(value) == pytest.approx(0.5 * (1.5**2 + 2.0**2 + 0.7**2) / 3)
  assert {name: float(total) for name, total in sums.items()} == pytest.approx(
    {
      "mask": 3,
      "value": 2.3,
      "return": 2,
      "squared_error": 1 + 4 + 0.49,
      "value_clip_ratio": 1,
    }
  )


def test_a_value_that_moved_beyond_the_clip_towards_its_return_is_pushed_no_further():
  old, returns = jnp.zeros((1, 1, 2)), jnp.array([[[2.0, 2.0]]])
  weights = jnp.full((1, 1, 2), 0.5)

  def total(values):
    return gae.value_loss(values, old, returns, weights, clip=0.5)[0]

  gradient = jax.grad(total)(jnp.array([[[0.7, 0.2]]]))
  np.testing.assert_allclose(gradient[0, 0], [0, -0.9], atol=1e-6)
