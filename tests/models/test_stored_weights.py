"""Frozen weights stored in bfloat16 under float32 activations: exact, and never copied whole."""

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from vr_jax.models.common import layers, rematerialisation, stored_weights
from vr_jax.parallel import mesh as mesh_lib

DEPTH, WIDTH = 24, 128
POLICIES = ("none", *rematerialisation.POLICIES)


class Stacked(nnx.Module):
  """One matrix a layer."""

  def __init__(self, dtype: str):
    values = jax.random.normal(jax.random.key(0), (DEPTH, WIDTH, WIDTH), jnp.bfloat16) / WIDTH
    self.up = nnx.Param(values.astype(dtype))


def loss_and_inputs(dtype: str, policy: str):
  graphdef, params = nnx.split(Stacked(dtype))

  def loss(x, params):
    weights = layers.stack(nnx.merge(graphdef, params), platform="cpu")

    def layer(x, weights):
      return x + jnp.tanh(layers.project(x, weights["up"])), None

    return rematerialisation.scan(layer, x, weights, policy=policy)[0].sum()

  return loss, (jax.random.normal(jax.random.key(1), (4, WIDTH)), params)


def gradient(dtype: str, policy: str):
  loss, inputs = loss_and_inputs(dtype, policy)
  return jax.jit(jax.grad(loss)).lower(*inputs).compile(), inputs


@pytest.mark.parametrize("policy", POLICIES)
def test_bfloat16_weights_give_the_same_gradient_as_the_same_values_in_float32(policy):
  programs = (gradient(dtype, policy) for dtype in ("bfloat16", "float32"))
  narrow, wide = (program(*inputs) for program, inputs in programs)
  np.testing.assert_allclose(narrow, wide, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_gradient_of_stored_matrices_is_refused_instead_of_being_0(policy):
  loss, (x, params) = loss_and_inputs("bfloat16", policy)
  for grad in (jax.grad(loss, argnums=1), jax.jit(jax.grad(loss, argnums=(0, 1)))):
    with pytest.raises(ValueError, match="gradient of frozen matrices in bfloat16"):
      grad(x, params)
  loss, (x, params) = loss_and_inputs("float32", policy)
  (stack,) = jax.tree.leaves(jax.grad(loss, argnums=1)(x, params))
  assert np.abs(stack).max() > 0


@pytest.mark.parametrize("policy", POLICIES)
def test_bfloat16_weights_are_widened_a_layer_at_a_time(policy):
  program, _ = gradient("bfloat16", policy)
  analysis = program.memory_analysis()
  if analysis is None:
    pytest.skip("no memory analysis on this platform")
  assert analysis.temp_size_in_bytes < 4 * WIDTH * WIDTH * DEPTH / 4


@pytest.mark.parametrize("policy", POLICIES)
def test_on_a_mesh_each_layer_is_gathered_alone_and_the_gradient_is_the_same(policy):
  program, (x, params) = gradient("bfloat16", policy)
  mesh = mesh_lib.make_mesh((1, 4, 1, 2), jax.devices()[:8])
  rows, whole = (jax.NamedSharding(mesh, P(*axes)) for axes in (("fsdp",), ()))
  for axes in ((None, "fsdp", "tensor"), (None, "fsdp"), (None, None, "fsdp")):
    split = jax.device_put(params, jax.NamedSharding(mesh, P(*axes)))
    loss, _ = loss_and_inputs("bfloat16", policy)
    on_mesh = jax.jit(jax.grad(loss), in_shardings=(rows, split.up.sharding), out_shardings=whole)
    on_mesh = on_mesh.lower(x, split).compile()
    actual = on_mesh(jax.device_put(x, rows), split)
    np.testing.assert_allclose(actual, program(x, params), rtol=1e-5, atol=1e-6)
    assert f"[{DEPTH},{WIDTH},{WIDTH}]" not in on_mesh.as_text()


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
