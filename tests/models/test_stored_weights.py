"""Frozen weights stored in bfloat16 under float32 activations: exact, and never copied whole."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vr_jax.models.common import layers, rematerialisation, stored_weights

DEPTH, WIDTH = 24, 128


class Stacked(nnx.Module):
  """One matrix a layer."""

  def __init__(self, dtype: str):
    values = jax.random.normal(jax.random.key(0), (DEPTH, WIDTH, WIDTH), jnp.bfloat16) / WIDTH
    self.up = nnx.Param(values.astype(dtype))


def gradient(dtype: str):
  graphdef, params = nnx.split(Stacked(dtype))

  def loss(x, params):
    weights = layers.stack(nnx.merge(graphdef, params), jnp.dtype("float32"), platform="cpu")

    def layer(x, weights):
      return x + jnp.tanh(layers.project(x, weights["up"])), None

    return rematerialisation.scan(layer, x, weights, policy="full")[0].sum()

  x = jax.random.normal(jax.random.key(1), (4, WIDTH))
  return jax.jit(jax.grad(loss)).lower(x, params).compile(), (x, params)


def test_bfloat16_weights_give_the_same_gradient_as_the_same_values_in_float32():
  narrow, wide = (program(*inputs) for program, inputs in map(gradient, ("bfloat16", "float32")))
  np.testing.assert_array_equal(narrow, wide)


def test_bfloat16_weights_are_widened_a_layer_at_a_time():
  program, _ = gradient("bfloat16")
  analysis = program.memory_analysis()
  if analysis is None:
    pytest.skip("no memory analysis on this platform")
  assert analysis.temp_size_in_bytes < 4 * WIDTH * WIDTH * DEPTH / 4


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "uint8"])
def test_sums_over_layers_are_those_over_the_whole_stack(dtype):
  stack = jax.random.randint(jax.random.key(2), (5, 3, 7), 0, 200).astype(dtype)

  def weighted(bits, layer):
    return (bits * (layer + 1).astype(jnp.uint32)).sum(dtype=jnp.uint32)

  bits = np.asarray(stack).view(f"uint{8 * stack.dtype.itemsize}").astype(np.uint64)
  expected = (bits.sum(axis=(1, 2)) * np.arange(1, 6, dtype=np.uint64)).sum() % 2**32
  assert int(jax.jit(lambda x: stored_weights.sum_bits(weighted, x))(stack)) == expected


def test_a_slice_of_a_stack_has_its_layers():
  stack = jax.random.normal(jax.random.key(3), (6, 2, 2), jnp.bfloat16)
  part = stored_weights.StoredMatrices(stack, 2, 3)[1:]
  assert isinstance(part, stored_weights.StoredMatrices) and len(part) == 2
  values = np.stack([stored_weights.widen(part.bits(jnp.int32(layer))) for layer in range(2)])
  np.testing.assert_array_equal(values, stack[3:5].astype(jnp.float32))
