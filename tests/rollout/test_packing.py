"""Packed replies, computed without padding, give the results of padded ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train import nano
from vr_jax import records
from vr_jax.models import layout as layout_lib
from vr_jax.models.common import packing
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rollout import forward
from vr_jax.train import initialization, train_step
from vr_jax.train import train_state as train_state_lib

PROMPTS, GROUP, TIME = 4, 4, 16
TOLERANCE = 1e-5
LENGTHS = np.array([[16, 1, 3, 0], [2, 2, 5, 1], [0, 0, 0, 0], [7, 1, 1, 4]])


def _valid(lengths=LENGTHS, time=TIME):
  return jnp.asarray(np.arange(time) < lengths[..., None])


def _rollout(context, lengths=LENGTHS):
  rng = np.random.default_rng(1)
  valid = np.asarray(_valid(lengths))
  tokens = np.where(valid, rng.integers(60, 300, valid.shape), 0)
  rollout = records.Rollout(
    tokens=tokens.astype(np.int32),
    log_probs=np.where(valid, -rng.uniform(1, 6, valid.shape), 0).astype(np.float32),
    kind=np.where(valid, int(records.Kind.MODEL), int(records.Kind.PAD)).astype(np.int32),
    turn=np.zeros(valid.shape, np.int32),
  )
  return mesh_lib.put_batch(rollout, context.mesh)


def test_what_is_packed_and_unpacked_is_back_in_its_place():
  x = jnp.arange(PROMPTS * GROUP * TIME * 2.0).reshape(PROMPTS, GROUP, TIME, 2) + 1
  packed = packing.make(layout_lib.OneDevice(), _valid(), 50)
  flat = packed.pack(x)
  count = LENGTHS.sum()
  np.testing.assert_array_equal(flat[:count], np.asarray(x)[np.asarray(_valid())])
  assert not flat[count:].any()
  expected = np.where(np.asarray(_valid())[..., None], x, 0)
  np.testing.assert_array_equal(packed.unpack(flat), expected)


def test_gradients_go_back_to_the_tokens_they_are_of():
  packed = packing.make(layout_lib.OneDevice(), _valid(), 50)
  weights = jnp.arange(50.0)
  back = jax.grad(lambda x: (packed.pack(x) * weights).sum())(jnp.ones((*LENGTHS.shape, TIME)))
  np.testing.assert_array_equal(back, packed.unpack(weights))
  outer = jnp.arange(back.size * 1.0).reshape(back.shape)
  forth = jax.grad(lambda x: (packed.unpack(x) * outer).sum())(jnp.ones(50))
  np.testing.assert_array_equal(forth, packed.pack(outer))


@pytest.mark.parametrize("ratio", [1.1, 1.5, 2.0])
def test_a_size_holds_every_part_and_wastes_less_than_its_ratio(ratio):
  one = layout_lib.OneDevice()
  rng = np.random.default_rng(0)
  for _ in range(50):
    lengths = rng.integers(0, rng.integers(2, 65), (2, 4, 8))
    size = packing.size_of(one, lengths, 64, ratio=ratio)
    most = lengths.sum(axis=(1, 2)).max()
    full = 4 * 8 * 64
    if size is None:
      assert most * ratio > full
    else:
      assert most <= size < max(most, 1) * ratio + 1


def _size(context, microbatches):
  """The places that a rollout of LENGTHS is packed to."""
  layout = mesh_lib.MeshLayout(context.mesh)
  rows = LENGTHS.reshape(-1, microbatches, GROUP).swapaxes(0, 1)
  return packing.size_of(layout, rows, TIME, ratio=1.1)


def _scores(context, params, prompt, rollout, packed):
  """Log-probs and entropies, and gradients of both."""
  outer = np.random.default_rng(2).normal(size=(2, *LENGTHS.shape, TIME)).astype(np.float32)

  @jax.jit
  def scored(params):
    model = nano.merge(context, params)
    valid = train_step.action_mask(rollout)
    scores = forward.reply_log_probs(
      model, prompt, rollout.tokens, valid, context.allowed_tokens, 0.8, packed_length=packed
    )
    return (outer * jnp.stack(scores)).sum(), scores

  gradients, scores = jax.grad(scored, has_aux=True)(params)
  return scores, {
    jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(gradients)
  }


@pytest.mark.parametrize(("shape", "chunk"), [((1, 1, 1, 1), 448), ((1, 2, 2, 2), 100)])
def test_packed_replies_have_the_scores_and_gradients_of_padded_ones(data, shape, chunk):
  context = nano.build(data, mesh=shape, model__logit_chunk=chunk)
  params = nano.sharpened(initialization.fresh_params(context))
  prompt, rollout = (
    context.builder.prompt(context.builder.batch(nano.ragged_items(context, PROMPTS))),
    _rollout(context),
  )
  packed = _size(context, 1)
  assert (
    packed * context.mesh.shape["data"] * context.mesh.shape["fsdp"] < 0.8 * LENGTHS.size * TIME
  )
  scores, gradients = _scores(context, params, prompt, rollout, packed)
  expected, expected_gradients = _scores(context, params, prompt, rollout, None)
  np.testing.assert_allclose(scores, expected, rtol=0, atol=TOLERANCE)
  assert np.asarray(expected[0]).min() < -1
  assert nano.largest_difference(gradients, expected_gradients).value < 1e-4


def test_an_update_in_packed_parts_is_that_of_padded_ones(data):
  context = nano.build(data, rl__learning_rate=1e-2)
  context.config.rl.microbatches = 2  # of more devices than prompts, which split nothing
  params = nano.sharpened(initialization.fresh_params(context))
  prompt, rollout = (
    context.builder.prompt(context.builder.batch(nano.ragged_items(context, PROMPTS))),
    _rollout(context),
  )
  optimizer = train_state_lib.make_optimizer(context.config.rl, context.abstract_params, ())
  step = train_step.make_rl_step(
    context.graphdef, optimizer, context.allowed_tokens, context.config.rl
  )
  advantages = np.random.default_rng(2).normal(size=(*LENGTHS.shape, TIME)).astype(np.float32)
  size, found = _size(context, 2), []
  assert size < 0.7 * LENGTHS.size * TIME / 2
  for packed in (size, None):
    state = train_state_lib.create(jax.tree.map(jnp.copy, params), optimizer, context.mesh)
    signal = jnp.ones(PROMPTS, bool)
    _, metrics = step(state, prompt, rollout, advantages, signal, None, None, packed)
    found.append(metrics)
  for name, value in found[1].items():
    np.testing.assert_allclose(found[0][name], value, rtol=1e-4, atol=TOLERANCE, err_msg=name)


def test_where_devices_would_hold_the_same_tokens_nothing_is_packed():
  lengths = np.ones((1, 4, 3), int)  # a group of 3 is not split in two
  layout = mesh_lib.MeshLayout(mesh_lib.make_mesh((1, 2, 2, 2)))
  assert packing.size_of(layout, lengths, 16, ratio=1.1) is None
