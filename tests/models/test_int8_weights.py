"""Matrices in 8-bit integers: the error of rounding, products, and the decoding of each family.

References: NumPy for products; for decoding the same network with the float weights that the
integers stand for. They differ by rounding of float32 alone.
"""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import model_builders as builders
import numpy as np
import pytest

from vr_jax.models import registry
from vr_jax.models.common import (
  int8_weights,
  kv_cache,
  layers,
  lora,
  stored_weights,
  weight_mapping,
)
from vr_jax.models.common import slots as slots_lib

GROUP, TIME = 2, 5
# Stacks of matrices, with the number of axes that a product contracts.
SHAPES = [((3, 5, 7), 1), ((2, 6, 2, 3), 1), ((2, 2, 3, 5), 2), ((1, 1, 1), 1), ((4, 1, 9), 1)]


def draw(shape, seed=0):
  """Weights whose channels have very different sizes."""
  rng = np.random.default_rng(seed)
  return (rng.normal(size=shape) * 10.0 ** rng.integers(-6, 6, shape[-1])).astype(np.float32)


@pytest.mark.parametrize(("shape", "inputs"), SHAPES)
def test_a_weight_is_off_by_at_most_half_of_its_channels_scale(shape, inputs):
  weights = draw(shape)
  matrices = int8_weights.quantize(jnp.asarray(weights), inputs=inputs)
  most = np.abs(weights).max(axis=tuple(range(1, 1 + inputs)), keepdims=True)
  np.testing.assert_allclose(matrices.scale, most / 127, rtol=1e-6)
  assert matrices.values.dtype == jnp.int8 and matrices.values.shape == shape
  error = np.abs(np.asarray(int8_weights.dequantize(matrices), np.float64) - weights)
  assert (error <= np.asarray(matrices.scale, np.float64) / 2 * (1 + 1e-5)).all()
  # The largest weight of each channel has the largest integer; -128 is not used.
  highest = np.abs(np.asarray(matrices.values, int)).max(axis=tuple(range(1, 1 + inputs)))
  assert (highest == 127).all()
  again = int8_weights.quantize(int8_weights.dequantize(matrices), inputs=inputs)
  np.testing.assert_array_equal(again.values, matrices.values)


def test_each_channel_of_each_layer_is_rounded_by_itself():
  weights = draw((2, 5, 4))
  whole = int8_weights.quantize(jnp.asarray(weights), inputs=1)
  for layer, channel in np.ndindex(2, 4):
    one = int8_weights.quantize(
      jnp.asarray(weights[layer : layer + 1, :, channel : channel + 1]), inputs=1
    )
    np.testing.assert_array_equal(one.values[0, :, 0], whole.values[layer, :, channel])


@pytest.mark.parametrize("size", [0.0, 1e-42, 1e-38])
def test_a_channel_of_zeros_or_of_what_devices_take_for_0_stays_0(size):
  weights = np.ones((1, 3, 2), np.float32)
  weights[..., 1] = size
  matrices = int8_weights.quantize(jnp.asarray(weights), inputs=1)
  back = np.asarray(int8_weights.dequantize(matrices))
  np.testing.assert_array_equal(back[..., 1], 0)
  np.testing.assert_allclose(back[..., 0], 1, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_makes_all_products_of_its_channel_nan(bad):
  weights = draw((1, 3, 4))
  weights[0, 1, 2] = bad
  matrices = int8_weights.quantize(jnp.asarray(weights), inputs=1)
  product = layers.project(jnp.eye(3), matrices.values[0], scale=matrices.scale[0])
  assert np.isnan(product[:, 2]).all()
  assert np.isfinite(np.delete(product, 2, axis=1)).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize(("shape", "inputs"), SHAPES)
def test_a_projection_is_that_of_numpy(shape, inputs, merge, dtype):
  matrices = int8_weights.quantize(jnp.asarray(draw(shape)), inputs=inputs)
  x = jnp.asarray(draw((3, 2, *shape[1 : 1 + inputs]), seed=1)).astype(dtype)
  weights = {"up": matrices.values[0], "up" + layers.SCALE: matrices.scale[0]}
  product = layers.project_by_name(x, weights, "up", contract=inputs, merge=merge)
  values, scale = (np.asarray(array[0], np.float64) for array in (matrices.values, matrices.scale))
  wide = np.asarray(x, np.float64)
  expected = np.tensordot(wide, values * scale, inputs)
  size = np.tensordot(np.abs(wide), np.abs(values * scale), inputs)
  assert product.dtype == x.dtype and product.shape == expected.shape
  # Integers up to 127 are exact in bfloat16, so that only the result is rounded to it.
  rounding = {"float32": 0.0, "bfloat16": 2.0**-8}[dtype] * np.abs(expected)
  assert (np.abs(np.asarray(product, np.float64) - expected) <= 1e-6 * size + rounding).all()


def test_a_scale_of_other_channels_is_refused():
  matrices = int8_weights.quantize(jnp.ones((1, 2, 3, 5)), inputs=1)
  with pytest.raises(TypeError, match="reshape"):
    layers.project(jnp.ones((4, 2, 3)), matrices.values[0], scale=matrices.scale[0], contract=2)


@pytest.mark.parametrize("family", list(builders.FIRST_CASES))
def test_projections_have_the_axes_as_inputs_that_files_have(family):
  found = registry.family(family)
  for stack, names in (
    (found.lora_targets.text_stack, found.lora_targets.text),
    (found.lora_targets.vision_stack, found.lora_targets.vision),
  ):
    for name in names:
      assert layers.input_axes(name) == found.weights.inputs(f"{stack}.{name}")


@functools.cache
def network(family, adapted):
  made = builders.load(builders.FIRST_CASES[family])
  if adapted:
    targets = registry.family(family).lora_targets
    adapters = lora.Adapters(rank=2, alpha=8.0, text=targets.text, targets=targets)
    made = lora.add(made, adapters, rngs=nnx.Rngs(1))
    for name in targets.text:
      second = getattr(made.text.layers, name + layers.LORA_B)
      second[...] = 0.1 * jax.random.normal(jax.random.key(2), second.shape)
  return made


def decoding(made, **options):
  """The network as decoding has it."""
  graphdef, params = nnx.split(made)
  changed = made.decoding_params(**options)
  return nnx.merge(
    graphdef, jax.tree.map(lambda old, new: old if new is None else new, params, changed)
  )


def dequantized(params):
  is_matrices = lambda x: isinstance(x, int8_weights.Int8Matrices)  # noqa: E731
  return jax.tree.map(
    lambda x: int8_weights.dequantize(x) if is_matrices(x) else x, params, is_leaf=is_matrices
  )


def prefilled(made):
  """Keys and values of two prompts, one of them shorter."""
  depth, embed, kv_heads, head_dim = made.text.layers.key.shape
  keys, values = (draw((depth, 2, 4, kv_heads, head_dim), seed) for seed in (4, 5))
  return kv_cache.PrefixKV(
    keys=jnp.asarray(np.clip(keys, -1, 1)),
    values=jnp.asarray(np.clip(values, -1, 1)),
    valid=jnp.array([[True] * 4, [True] * 2 + [False] * 2]),
    hidden=jnp.zeros((2, embed)),
    next_position=jnp.array([4, 2]),
  )


def hidden_states(made, prefix, tokens):
  slots = jnp.arange(tokens.shape[0])
  order = slots_lib.DecodeSlots(prompt=slots // GROUP, group_index=slots % GROUP, group=GROUP)
  cache = made.init_cache(prefix, len(slots), TIME)
  constants, found = made.prepare_decode(prefix), []
  for index in range(TIME):
    hidden, cache = made.decode(constants, cache, tokens[:, index], jnp.array(index), order)
    found.append(hidden)
  return jnp.stack(found)


@pytest.mark.parametrize(
  ("family", "adapted", "unrolled"),
  [
    ("qwen2_5_vl", False, True),
    ("qwen2_5_vl", True, False),
    ("qwen3_vl", True, True),
    ("tinyllava", False, False),
  ],
)
def test_a_network_decodes_as_with_the_floats_that_its_integers_stand_for(
  family, adapted, unrolled, monkeypatch
):
  if not unrolled:
    monkeypatch.setattr(layers, "UNROLLED", 0)
  made = network(family, adapted)
  prefix = prefilled(made)
  integers = decoding(made, int8_weights=True)
  graphdef, params = nnx.split(integers)
  floats = nnx.merge(graphdef, dequantized(params))
  tokens = jnp.asarray(np.random.default_rng(3).integers(0, 200, (2 * GROUP, TIME)))
  run = nnx.jit(hidden_states)
  found, expected, trained = (
    np.asarray(run(each, prefix, tokens)) for each in (integers, floats, made)
  )
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  off = np.abs(found - trained).max() / np.abs(trained).max()
  assert 1e-4 < off < 0.2  # rounded, and not by much


@pytest.mark.parametrize("family", list(builders.FIRST_CASES))
def test_matrices_of_layers_alone_become_integers(family):
  made = network(family, True)
  kept, changed = (
    {name: variable.get_value() for name, variable in weight_mapping.flat(params).items()}
    for params in (nnx.split(made)[1], made.decoding_params(int8_weights=True))
  )
  integers = {n for n, x in changed.items() if isinstance(x, int8_weights.Int8Matrices)}
  targets = registry.family(family).lora_targets
  assert integers == {f"text.layers.{name}" for name in targets.text}
  assert all(changed[name] is None for name in kept.keys() - integers)


def test_in_a_loop_of_steps_no_more_than_a_layer_is_in_floats_at_once():
  depth, width = 24, 128
  matrices = int8_weights.quantize(jnp.asarray(draw((depth, width, width))), inputs=1)
  stack = {"up": matrices.values, "up" + layers.SCALE: matrices.scale}

  def layer(x, weights):
    return x + jnp.tanh(layers.project_by_name(x, weights, "up")), None

  def decode(x, weights):
    weights = layers.cast(weights, x.dtype)
    step = lambda _, x: stored_weights.scan(layer, x, weights)[0]  # noqa: E731
    return jax.lax.fori_loop(0, 64, step, x)

  program = jax.jit(decode).lower(jnp.ones((4, width)), stack).compile()
  analysis = program.memory_analysis()
  assert analysis is not None
  assert analysis.temp_size_in_bytes < 1.5 * 4 * width**2
