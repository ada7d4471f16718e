"""Rollouts with int8 weights: those of the same network with the floats that these stand for.

Prompts are prefilled with the parameters as they are in both.
"""

import jax
import numpy as np
import pytest

from tests.rollout import test_episodes, test_refill_sampler
from vr_jax.models.common import int8_weights
from vr_jax.rollout import refill_sampler, sampler

TOLERANCE = 1e-4  # of log-probs, nats: scales are multiplied before or after the sum


def _one_turn(**changes):
  arguments, decoding = test_refill_sampler._network(None, **changes)
  return sampler.sample(*arguments, decoding=decoding)


def _in_one_program(**changes):
  arguments, decoding = test_refill_sampler._network(None, **changes)
  return sampler.sample_without_compaction(*arguments, decoding=decoding)


def _refilled(**changes):
  arguments, decoding = test_refill_sampler._network(None, slots=4, **changes)
  return refill_sampler.sample_counting(*arguments, decoding=decoding)[0]


def _several_turns(**changes):
  return test_episodes._play(**changes)[1].rollout


def with_floats(matrices):
  """Parameters of decoding in floats again."""
  is_matrices = lambda x: isinstance(x, int8_weights.Int8Matrices)  # noqa: E731
  return jax.tree.map(
    lambda x: int8_weights.dequantize(x) if is_matrices(x) else x, matrices, is_leaf=is_matrices
  )


@pytest.mark.parametrize("play_all", [_one_turn, _refilled, _several_turns])
def test_greedy_tokens_and_log_probs_are_those_of_dequantized_floats(play_all, monkeypatch):
  trained = play_all(temperature=0.0)
  integers = play_all(temperature=0.0, int8_weights=True)
  read = sampler.decoding_params
  monkeypatch.setattr(
    sampler, "decoding_params", lambda *args, **options: with_floats(read(*args, **options))
  )
  floats = play_all(temperature=0.0, int8_weights=True)
  np.testing.assert_array_equal(integers.tokens, floats.tokens)
  np.testing.assert_allclose(integers.log_probs, floats.log_probs, rtol=0, atol=TOLERANCE)
  assert len(np.unique(integers.tokens)) > 10
  # What is reported is the sampler's own: it differs from that of the weights as trained.
  assert np.abs(np.asarray(integers.log_probs) - np.asarray(trained.log_probs)).max() > 1e-3


def test_in_one_program_replies_are_the_same():
  one, other = (play_all(int8_weights=True) for play_all in (_one_turn, _in_one_program))
  np.testing.assert_array_equal(one.tokens, other.tokens)
  np.testing.assert_allclose(one.log_probs, other.log_probs, rtol=0, atol=TOLERANCE)
