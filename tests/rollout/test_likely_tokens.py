"""Top-p, top-k and min-p against plain loops, and against the sort that a search replaced."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rollout import plain_limits
from vr_jax.rollout import inverse_cdf, likely_tokens

ROWS = 32


def _probabilities(vocab, scale, *, seed=0, rows=ROWS):
  logits = np.random.default_rng([seed, vocab]).normal(0, scale, (rows, vocab))
  return np.asarray(jax.nn.softmax(jnp.asarray(logits, jnp.float32)))


def _with_ties(vocab, seed=0):
  """Probabilities that are multiples of 2^-6, many of them equal: their sums are exact."""
  rng = np.random.default_rng([seed, vocab])
  weights = np.zeros((ROWS, vocab))
  for row in weights:
    np.add.at(row, rng.integers(0, max(1, vocab // 2), 64), 2.0**-6)
  return weights.astype(np.float32)


def _kept(weights, **limits):
  return np.asarray(likely_tokens.keep_likely(jnp.asarray(weights), **{"top_p": 1.0, **limits}))


@pytest.mark.parametrize("vocab", [1, 5, 128, 449])
@pytest.mark.parametrize("sixtyfourths", [0, 1, 7, 32, 63, 64])
def test_top_p_keeps_what_a_plain_loop_keeps_at_ties_and_at_masses_that_are_reached_exactly(
  vocab, sixtyfourths
):
  weights, top_p = _with_ties(vocab), sixtyfourths / 64
  expected = plain_limits.kept(weights, top_p=top_p)
  np.testing.assert_array_equal(_kept(weights, top_p=top_p), np.where(expected, weights, 0))
  assert expected.any(axis=-1).all()
  # The same set in other words: the tokens of which the more likely ones weigh less than top-p.
  above = (weights[:, None] * (weights[:, None] > weights[:, :, None])).sum(axis=-1)
  same = (above < top_p) | (above == 0)
  np.testing.assert_array_equal(same & (weights > 0), expected)


@pytest.mark.parametrize("top_p", [0.0, 1e-6, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_the_nucleus_is_that_of_a_plain_loop(top_p, scale):
  weights = _probabilities(50, scale)
  expected = plain_limits.kept(weights, top_p=top_p)
  np.testing.assert_array_equal(_kept(weights, top_p=top_p), np.where(expected, weights, 0))


@pytest.mark.parametrize(
  "limits",
  [
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 500},
    {"min_p": 0.3},
    {"min_p": 1.0},
    {"min_p": 0.05, "top_k": 20, "top_p": 0.8},
    {"top_k": 20, "top_p": 0.8},
  ],
)
def test_limits_together_keep_what_a_plain_loop_keeps(limits):
  for weights in (_probabilities(449, 2.0), _with_ties(449), _with_ties(5)):
    expected = plain_limits.kept(weights, **limits)
    np.testing.assert_array_equal(_kept(weights, **limits), np.where(expected, weights, 0))


def _draw_by_sorting(log_probs, fraction, top_p):
  """How tokens were drawn before: the edge comes from a sort of the vocabulary."""
  ordered = jnp.sort(log_probs, axis=-1, descending=True)
  mass_before = jnp.cumsum(jnp.exp(ordered), axis=-1) - jnp.exp(ordered)
  inside = (mass_before < top_p) | (mass_before <= 0)
  edge = jnp.where(inside, ordered, jnp.inf).min(axis=-1, keepdims=True)
  kept = jnp.where(log_probs >= edge, jnp.exp(log_probs), 0)
  return inverse_cdf.sample(kept, fraction)


@functools.partial(jax.jit, static_argnames="top_p")
def _both_draws(logits, fraction, top_p):
  log_probs = jax.nn.log_softmax(logits)
  kept = likely_tokens.keep_top_p(jnp.exp(log_probs), top_p)
  return (
    inverse_cdf.sample(kept, fraction),
    _draw_by_sorting(log_probs, fraction, top_p),
  )


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_the_same_random_number_draws_the_token_that_a_sort_would_have_drawn(scale):
  rng = np.random.default_rng(int(10 * scale))
  for top_p in (0.1, 0.8, 0.95):
    logits = jnp.asarray(rng.normal(0, scale, (1024, 512)), jnp.float32)
    fraction = jnp.asarray(rng.random(1024), jnp.float32)
    new, old = _both_draws(logits, fraction, top_p)
    np.testing.assert_array_equal(new, old)
    assert len(np.unique(new)) > 1


def test_a_token_is_drawn_by_as_many_numbers_as_its_share_of_what_is_kept_says():
  weights, grid = _with_ties(40)[:1], 4096
  kept = _kept(weights, top_p=0.7)
  fraction = jnp.asarray((np.arange(grid) + 0.5) / grid, jnp.float32)
  drawn = inverse_cdf.sample(jnp.tile(kept, (grid, 1)), fraction)
  counts = np.bincount(np.asarray(drawn), minlength=40)
  expected = kept[0].astype(np.float64) / kept.sum() * grid
  assert (np.abs(counts - expected) <= 1).all()
  assert 0 < (counts == 0).sum() < 40


def test_the_edge_does_not_depend_on_how_many_bits_are_decided_at_a_time():
  weights = jnp.asarray(_probabilities(449, 2.0))
  keys = jax.lax.bitcast_convert_type(weights, jnp.int32)
  limit = jnp.linspace(0.01, 1.1, ROWS)
  edges = [
    np.asarray(jax.jit(functools.partial(likely_tokens.find_edge, bits=bits))(keys, weights, limit))
    for bits in (1, 2, 3, 5)
  ]
  for other in edges[1:]:
    np.testing.assert_array_equal(other, edges[0])
  for row, edge in enumerate(edges[0]):  # every edge is a token's weight, or 0 without a limit
    assert edge in np.asarray(keys)[row] or (edge == 0 and limit[row] > 1)


def test_a_vocabulary_that_is_split_over_devices_is_neither_sorted_nor_gathered():
  mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("tensor",))
  split = jax.NamedSharding(mesh, jax.P(None, "tensor"))
  weights = jax.device_put(_probabilities(1024, 2.0), split)
  keep = jax.jit(functools.partial(likely_tokens.keep_likely, top_p=0.9), out_shardings=split)
  text = keep.lower(weights).compile().as_text() or ""
  assert "all-reduce" in text
  assert "sort(" not in text and "all-gather" not in text
  expected = plain_limits.kept(np.asarray(weights), top_p=0.9)
  np.testing.assert_array_equal(np.asarray(keep(weights)) > 0, expected)
