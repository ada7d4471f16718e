"""Sampling with matrices in 8-bit integers: the same replies on every mesh, half of the bytes."""

import functools
import math

import jax
import numpy as np
import pytest

from tests.parallel import test_decoding_layout
from tests.rollout import test_compilations
from tests.train import nano
from vr_jax.models.common import int8_weights, layers, weight_mapping
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rollout import sampler
from vr_jax.train import estimates, initialization, step_shapes

ADAPTED = {"model__lora__rank": 2, "model__lora__base_dtype": "bfloat16"}
compilations = test_compilations.compilations


def _replies(context, **changes):
  arguments, decoding = test_decoding_layout._start(context, int8_weights=True, **changes)
  return sampler.sample(*arguments, decoding=decoding)


@functools.cache
def _of_one_device(data):
  return np.asarray(_replies(nano.build(data)).tokens)


@pytest.mark.parametrize(
  ("shape", "kind"),
  [
    ((1, 8, 1, 1), "tensor"),
    ((2, 2, 2, 1), "replicated"),
    ((1, 4, 1, 2), "training"),
  ],
)
def test_greedy_replies_are_those_of_one_device_in_every_layout(data, shape, kind):
  context = nano.build(data, mesh=shape, rl__decode_layout=kind)
  expected = _of_one_device(data)
  np.testing.assert_array_equal(mesh_lib.local_rows(_replies(context).tokens), expected)
  assert len(np.unique(expected)) > 5


def test_the_integers_of_a_mesh_are_those_of_one_device_and_lie_as_planned(data):
  found = []
  for shape in ((1, 1, 1, 1), (1, 8, 1, 1)):
    changes = {"rl__decode_copies": 1, "rl__sampler_weights": "int8"}
    context = nano.build(data, mesh=shape, rl__decode_layout="tensor", **changes)
    params = nano.sharpened(initialization.fresh_params(context))
    params = sampler.decoding_params(context.graphdef, params, int8_weights=True)
    abstract = jax.tree.leaves(context.abstract_decoding_params)
    for planned, real in zip(abstract, jax.tree.leaves(params), strict=True):
      assert (planned.shape, planned.dtype) == (real.shape, real.dtype)
      assert planned.sharding.is_equivalent_to(real.sharding, real.ndim)
    found.append(weight_mapping.flat(params))
  one, mesh = found
  for name, variable in one.items():
    for expected, actual in zip(
      jax.tree.leaves(variable), jax.tree.leaves(mesh[name]), strict=True
    ):
      np.testing.assert_array_equal(actual, expected)
  gate = mesh["text.layers.gate"].get_value()
  assert gate.values.sharding.shard_shape(gate.values.shape) == (2, 32, 48 / 8)
  assert gate.scale.sharding.shard_shape(gate.scale.shape) == (2, 1, 48 / 8)


def test_sampling_again_with_other_weights_compiles_nothing(data, compilations):
  context = nano.build(data)
  (graphdef, params, *rest), decoding = test_decoding_layout._start(
    context, int8_weights=True, max_new_tokens=7
  )
  first = sampler.sample(graphdef, params, *rest, decoding=decoding)
  moved = jax.tree.map(lambda x: 1.5 * x, params)
  assert compilations.names
  compilations.names.clear()
  second = sampler.sample(graphdef, moved, *rest, decoding=decoding)
  assert not compilations.names
  assert (np.asarray(first.tokens) != np.asarray(second.tokens)).any()


@pytest.mark.parametrize("adapters", [{}, ADAPTED])
@pytest.mark.parametrize("mesh", [(1, 1, 1, 1), (1, 2, 1, 1)])
def test_of_matrices_a_device_reads_half_the_bytes_of_bfloat16_and_scales(data, mesh, adapters):
  fields = {"rl__decode_layout": "tensor", "model__dtype": "bfloat16", **adapters}
  context = nano.build(data, mesh=mesh, **fields)
  shapes = (context.decoding_shapes(int8_weights=flag) for flag in (False, True))
  floats, integers = (weight_mapping.flat(one) for one in shapes)
  count = whole = 0
  for name, variable in integers.items():
    x, old = variable.get_value(), floats[name].get_value()
    if not isinstance(x, int8_weights.Int8Matrices):
      assert (x.shape, x.dtype) == (old.shape, old.dtype)
      assert x.sharding.is_equivalent_to(old.sharding, x.ndim)
      continue
    assert old.dtype == "bfloat16"
    depth, *axes = old.sharding.shard_shape(old.shape)
    channels = depth * math.prod(axes[layers.input_axes(name) :])
    of_device = estimates._device_bytes(old)
    assert of_device == 2 * depth * math.prod(axes)
    assert estimates._device_bytes(x) == of_device / 2 + 4 * channels
    count, whole = count + depth * math.prod(axes), whole + math.prod(old.shape)
  assert count == whole / math.prod(mesh)


def test_estimates_count_integers_for_sampling_and_floats_for_evaluations(data):
  found, read = {}, {}
  for weights in ("as_trained", "int8"):
    net = nano.build(data, model__dtype="bfloat16", rl__sampler_weights=weights)
    shapes = step_shapes.make_step_shapes(net.config, net.model)
    memories = estimates._stage_memories(net, shapes, estimates._learner_states(net))
    read[weights] = estimates.decode_bytes(net)[0]
    found[weights] = {one.stage: one.sampling for one in memories}
  assert found["int8"]["eval"] == found["as_trained"]["eval"]
  text = weight_mapping.flat(net.abstract_params)
  count = sum(
    math.prod(x.shape) for n, x in text.items() if n.startswith("text.layers.") and x.ndim > 2
  )
  saved = found["as_trained"]["rl"] - found["int8"]["rl"]
  assert 0.8 * count < saved < count
  assert saved == read["as_trained"] - read["int8"]
