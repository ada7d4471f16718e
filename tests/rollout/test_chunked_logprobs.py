"""Log-probs in chunks of the vocabulary are those of all logits at once."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vr_jax.models import layout
from vr_jax.rollout import chunked_logprobs

TOLERANCE = 1e-6
VOCAB, EMBED, POSITIONS = 60, 8, 24
KEYS = jax.random.split(jax.random.key(0), 4)
HIDDEN = 0.3 * jax.random.normal(KEYS[0], (POSITIONS, EMBED))
MATRIX = jax.random.normal(KEYS[1], (VOCAB, EMBED))
ALLOWED = jnp.arange(VOCAB) % 7 != 3
TOKENS = jnp.arange(POSITIONS) * 7 % VOCAB
BIAS = jax.random.normal(KEYS[3], (VOCAB,))


def _loss(function, **options):
  def loss(hidden, matrix, bias=None):
    log_probs, entropy = function(hidden, matrix, ALLOWED, TOKENS, 0.7, bias, **options)
    weights = jax.random.normal(KEYS[2], (2, POSITIONS))
    return (weights[0] * log_probs + weights[1] * entropy).sum(), (log_probs, entropy)

  def gradients(*operands):  # the bias is optional
    return jax.value_and_grad(loss, argnums=tuple(range(len(operands))), has_aux=True)(*operands)

  return jax.jit(gradients)


def _chunked(chunks, axes=("prompts",)):
  return _loss(
    chunked_logprobs.logprobs_chunked, chunks=chunks, layout=layout.OneDevice(), axes=axes
  )


@pytest.mark.parametrize("operands", [(HIDDEN, MATRIX), (HIDDEN, MATRIX, BIAS)], ids=len)
@pytest.mark.parametrize("chunks", [2, 5, 60])
def test_chunks_give_the_values_and_gradients_of_all_logits_at_once(chunks, operands):
  expected, actual = (
    _loss(chunked_logprobs.logprobs_unchunked)(*operands),
    _chunked(chunks)(*operands),
  )
  for wanted, given in zip(jax.tree.leaves(expected), jax.tree.leaves(actual), strict=True):
    np.testing.assert_allclose(given, wanted, atol=TOLERANCE * float(jnp.abs(wanted).max()))


def test_no_array_holds_all_logits_in_either_direction():
  jaxpr = str(jax.make_jaxpr(_chunked(5))(HIDDEN, MATRIX))
  assert f"f32[{POSITIONS},{VOCAB // 5}]" in jaxpr
  assert f"f32[{POSITIONS},{VOCAB}]" not in jaxpr
  assert f"f32[{POSITIONS},{VOCAB}]" in str(
    jax.make_jaxpr(_loss(chunked_logprobs.logprobs_unchunked))(HIDDEN, MATRIX)
  )


def test_tokens_that_are_not_allowed_get_no_probability_and_no_gradient():
  (_, (log_probs, _)), (_, of_matrix) = _chunked(5)(HIDDEN, MATRIX)
  assert (np.asarray(log_probs)[~np.asarray(ALLOWED)[TOKENS]] < -1e8).all()
  assert not np.asarray(of_matrix)[~np.asarray(ALLOWED)].any()
  assert np.asarray(of_matrix)[np.asarray(ALLOWED)].any(axis=1).all()


def test_the_matrix_gets_its_gradient_in_float32_where_activations_are_bfloat16():
  exact = _chunked(4)(HIDDEN, MATRIX)[1][1]
  rough = _chunked(4)(HIDDEN.astype(jnp.bfloat16), MATRIX)[1][1]
  assert rough.dtype == jnp.float32
  np.testing.assert_allclose(rough, exact, atol=0.03 * float(jnp.abs(exact).max()))


def test_a_bias_is_added_to_logits_before_the_temperature_and_has_a_gradient():
  # A token's log-prob, from the definition, in NumPy.
  logits = (np.asarray(HIDDEN) @ np.asarray(MATRIX).T + np.asarray(BIAS)) / 0.7
  logits = np.where(ALLOWED, logits, -np.inf)
  wanted = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
  wanted = wanted[np.arange(POSITIONS), TOKENS]
  (_, (log_probs, _)), (*_, of_bias) = _chunked(5)(HIDDEN, MATRIX, BIAS)
  allowed = np.asarray(ALLOWED)[TOKENS]
  np.testing.assert_allclose(np.asarray(log_probs)[allowed], wanted[allowed], atol=1e-5)
  assert (np.asarray(of_bias) != 0).tolist() == np.asarray(ALLOWED).tolist()


@pytest.mark.parametrize(
  ("rows", "chunks"), [(60, 1), (100, 1), (59, 2), (30, 2), (29, 3), (7, 10), (1, 60)]
)
def test_chunks_are_equal_and_of_no_more_rows_than_asked_for(rows, chunks):
  assert chunked_logprobs.count_chunks(60, rows) == chunks


def test_released_vocabularies_have_chunks_near_the_default():
  assert {vocab // chunked_logprobs.count_chunks(vocab, 8192) for vocab in (151936, 152064)} == {
    4748,
    6912,
  }


@pytest.mark.parametrize(
  ("dtype", "precision"), [(jnp.float32, "Precision.HIGHEST"), (jnp.bfloat16, "Precision.DEFAULT")]
)
def test_products_of_float32_are_exact_on_accelerators_as_well(dtype, precision):
  """By default TPUs multiply float32 in bfloat16; a CPU's results would not show it."""
  text = str(jax.make_jaxpr(_chunked(5))(HIDDEN.astype(dtype), MATRIX.astype(dtype)))
  precisions = set(re.findall(r"Precision\.[A-Z]+", text))
  assert precisions == {precision}
