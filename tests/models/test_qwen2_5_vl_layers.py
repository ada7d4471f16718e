"""Float32 statistics with bfloat16 activations: cases that bfloat16 arithmetic gets wrong."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vr_jax.models.common import layers
from vr_jax.models.qwen2_5_vl import config as config_lib
from vr_jax.models.qwen2_5_vl import text

ROUNDING = 2.0**-8  # of one number to bfloat16, relative; at most half of it
FAR = 30_000  # a position late in a long video


def _angles():
  """(cos, sin) at `FAR`, [1 batch, 64 half], and the angles in float64."""
  config = config_lib.TextConfig(
    vocab_size=8,
    hidden_size=128,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=1,
    num_key_value_heads=1,
  )
  exact = FAR / config.rope_theta ** (np.arange(64) / 64)
  return text.text_angles(jnp.array([FAR]), config), exact


def test_a_norm_of_many_equal_numbers_is_one():
  # Rows whose squares, their sum or its root would each be rounded.
  rows = (1 + jnp.arange(128) / 128).astype(jnp.bfloat16)
  x = jnp.broadcast_to(rows[:, None], (128, 3584))
  norm = jax.jit(functools.partial(layers.rms_norm, epsilon=1e-6))
  normed = norm(x, jnp.ones(3584, jnp.bfloat16))
  assert normed.dtype == jnp.bfloat16
  np.testing.assert_array_equal(normed, jnp.ones_like(normed))


def test_angles_late_in_a_long_video_are_those_of_float64_to_a_few_thousandths():
  (cos, sin), exact = _angles()
  np.testing.assert_allclose(cos[0], np.cos(exact), atol=5e-3)
  np.testing.assert_allclose(sin[0], np.sin(exact), atol=5e-3)


def test_features_turned_late_in_a_long_video_are_rounded_once():
  (cos, sin), _ = _angles()
  x = jax.random.normal(jax.random.key(0), (1, 40, 128), jnp.bfloat16)
  turned = jax.jit(layers.rotate)(x, cos, sin)
  assert turned.dtype == jnp.bfloat16
  first, second = np.split(np.asarray(x, np.float64), 2, axis=-1)
  cos, sin = np.asarray(cos, np.float64), np.asarray(sin, np.float64)
  expected = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
  np.testing.assert_allclose(np.asarray(turned, np.float64), expected, rtol=ROUNDING, atol=1e-6)


def test_angles_that_several_layers_turn_by_are_computed_once():
  angles = jax.random.uniform(jax.random.key(0), (24, 16), maxval=1e3)

  def turned_thrice(x, weight, angles):
    cos, sin = layers.cosines_and_sines(angles)
    for _ in range(3):
      x = layers.rotate(layers.project(x, weight), cos, sin)
    return x, cos, sin

  x, weight = jnp.ones((24, 8, 32)), jnp.eye(32)
  compiled = jax.jit(turned_thrice).lower(x, weight, angles).compile()
  program = compiled.as_text() or ""
  assert program.count(" cosine(") == program.count(" sine(") == 1
  _, cos, sin = compiled(x, weight, angles)
  np.testing.assert_array_equal(cos, jnp.cos(angles))
  np.testing.assert_array_equal(sin, jnp.sin(angles))
