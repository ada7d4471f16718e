"""A reference in bfloat16 gives the bits of one in float32, of each family, or is not made."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models import model_builders as builders
from tests.train import nano
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rollout import forward
from vr_jax.train import initialization, learner_state, model_setup
from vr_jax.train import train_state as train_state_lib


@pytest.mark.parametrize("name", list(builders.FIRST_CASES))
def test_log_probs_of_a_reference_in_bfloat16_are_those_of_float32_bit_for_bit(name):
  case = builders.FIRST_CASES[name]
  loaded = builders.load(case)
  config = dataclasses.replace(loaded.config, dtype="bfloat16")
  params = nnx.state(loaded)
  prompt = builders.prompt(case, config, spare=(4, 1, 1))
  tokens = jnp.asarray(np.random.default_rng(7).integers(0, 256, (2, 3, 6)))
  valid = jnp.arange(6) < jnp.asarray([[6, 1, 4], [0, 5, 6]])[..., None]
  allowed = jnp.ones(config.vocab_size, bool)

  @jax.jit
  def log_probs(params):
    model = nnx.merge(builders.graphdef(config), params)
    return forward.reply_log_probs(model, prompt, tokens, valid, allowed)[0]

  net = model_setup.ModelSetup(
    config=nano.config(model__freeze_vision=False),
    mesh=mesh_lib.make_mesh((1, 1, 1, 1), jax.devices()[:1]),
    model=config,
    allowed_tokens=allowed,
    stop_tokens=(0,),
  )
  reference = learner_state.make_reference(net, params)
  leaves = map(jax.tree.leaves, (params, reference))
  dtypes = [(x.dtype, y.dtype) for x, y in zip(*leaves, strict=True)]
  assert (jnp.float32, jnp.bfloat16) in dtypes and (jnp.float32, jnp.float32) in dtypes
  expected = np.asarray(log_probs(params))
  assert expected.std() > 0.1
  np.testing.assert_array_equal(np.asarray(log_probs(reference)), expected)


def test_the_reference_is_a_copy_in_bfloat16_of_what_is_trained_and_sharded_alike(data):
  context = nano.build(data, mesh=(1, 2, 1, 2), model__dtype="bfloat16", rl__kl_weight=0.1)
  params = initialization.fresh_params(context)
  made = learner_state.make_reference(context, params)
  planned = learner_state.make_reference(context, context.abstract_params, abstract=True)
  trained = train_state_lib.split(params, context.frozen)[0]
  leaves = [jax.tree.leaves(tree) for tree in (trained, made, planned)]
  for own, copied, shape in zip(*leaves, strict=True):
    assert (copied.dtype, copied.sharding) == (shape.dtype, shape.sharding)
    assert copied.sharding == own.sharding
    np.testing.assert_array_equal(copied, own.astype(copied.dtype))
    assert copied is not own
  sizes = [sum(x.nbytes for x in each) for each in leaves[:2]]
  assert sizes[1] < 0.55 * sizes[0]


@pytest.mark.parametrize("fields", [{"model__dtype": "float32"}, {"model__lora__rank": 2}])
def test_activations_of_float32_and_adapters_leave_the_dtypes_of_a_reference(data, fields):
  context = nano.build(data, **{"model__dtype": "bfloat16", **fields})
  params = context.abstract_params
  reference = learner_state.make_reference(context, params, abstract=True)
  trained = train_state_lib.split(params, context.frozen)[0]
  assert [x.dtype for x in jax.tree.leaves(reference)] == [
    x.dtype for x in jax.tree.leaves(trained)
  ]
