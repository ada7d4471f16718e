"""How often a step runs the vision tower; results are the same as with the tower in every pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train import nano
from vr_jax.models.qwen2_5_vl import vision
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rollout import encoder, sampler
from vr_jax.train import initialization, rl_loop, train_step
from vr_jax.train import train_state as train_state_lib

TOLERANCE = 1e-5


@pytest.mark.parametrize(("frozen", "programs"), [(True, 1), (False, 3)])
def test_a_frozen_tower_is_in_the_encoder_alone_and_a_trained_one_in_reference_and_update_too(
  data, tmp_path, monkeypatch, frozen, programs
):
  """Two updates on a batch, so that the policy's old log-probs are computed.

  Programs are traced once for each kind of prompt.
  """
  traced, run = [], vision.VisionTower.__call__

  def noted(tower, patches):
    traced.append(patches.window.shape)
    return run(tower, patches)

  monkeypatch.setattr(vision.VisionTower, "__call__", noted)
  nano.use_devices(monkeypatch, 1)
  config = nano.config(
    data__directory=str(data),
    model__freeze_vision=frozen,
    model__logit_chunk=450 + frozen,  # a network that no other test has traced
    sft__steps=0,
    rl__steps=1,
    rl__num_iterations=2,
    rl__kl_weight=0.1,
  )
  rl_loop.train(config, tmp_path)
  assert len(traced) == programs


@pytest.fixture(scope="module")
def context(data):
  return nano.build(data, mesh=(1, 2, 1, 1), model__freeze_vision=True)


@pytest.fixture(scope="module")
def both(context):
  """(parameters, prompts with patches, the same prompts with features)."""
  params = nano.sharpened(initialization.fresh_params(context))
  prompt = context.builder.prompt(context.builder.batch(nano.ragged_items(context, 4)))
  return params, prompt, encoder.encode(context.graphdef, params, prompt)


def test_features_stand_in_for_patches_and_lie_with_their_prompts(context, both):
  _, prompt, encoded = both
  _, frames, patches, _ = prompt.vision.patches.shape
  assert encoded.vision is None
  tokens = frames * patches // context.model.vision.merge_unit
  assert encoded.media.shape == (4, tokens, context.model.text.hidden_size)
  assert {shard.data.shape[:2] for shard in encoded.media.addressable_shards} == {(2, tokens)}
  again = mesh_lib.put_batch(jax.device_get(encoded), context.mesh)
  assert again.media.sharding.is_equivalent_to(encoded.media.sharding, 3)
  np.testing.assert_array_equal(again.media, encoded.media)


def test_replies_and_their_log_probs_are_those_of_the_tower_inside_the_programs(context, both):
  params, *prompts = both
  score = train_step.make_logprob_fn(context.graphdef, context.allowed_tokens, temperature=1.0)
  sampled, scored = [], []
  for prompt in prompts:
    rollout = sampler.sample(
      context.graphdef,
      params,
      prompt,
      context.allowed_tokens,
      jax.random.key(3),
      decoding=context.decoding(),
    )
    sampled.append(rollout)
    scored.append(score(params, prompt, rollout))
  np.testing.assert_array_equal(sampled[0].tokens, sampled[1].tokens)
  np.testing.assert_allclose(sampled[0].log_probs, sampled[1].log_probs, atol=TOLERANCE)
  np.testing.assert_allclose(*scored, atol=TOLERANCE)
  assert np.asarray(scored[0]).min() < -1


def test_loss_and_gradients_are_those_of_the_tower_inside_the_update(context, both):
  params, prompt = initialization.fresh_params(context), both[1]
  prompts = [prompt, encoder.encode(context.graphdef, params, prompt)]
  rl = nano.config(rl__microbatches=2).rl
  rollout = sampler.sample(
    context.graphdef,
    params,
    prompts[0],
    context.allowed_tokens,
    jax.random.key(3),
    decoding=context.decoding(),
  )
  advantages = jnp.where(
    train_step.action_mask(rollout), jnp.array([1.0, -1.0, 0.5, 2.0])[:, None, None], 0
  )
  losses, moments = [], []
  for prompt in prompts:
    optimizer = train_state_lib.make_optimizer(rl, context.abstract_params, context.frozen)
    state = train_state_lib.create(jax.tree.map(jnp.copy, params), optimizer, context.mesh)
    step = train_step.make_rl_step(
      context.graphdef, optimizer, context.allowed_tokens, rl, frozen=context.frozen
    )
    signal = jnp.ones(4, bool)
    state, metrics = step(state, prompt, rollout, advantages, signal, None, None)
    losses.append({name: float(value) for name, value in metrics.items()})
    leaves = jax.tree.leaves_with_path(state.optimizer_state)
    # The first moments after one step: the clipped gradients times 1 - b1.
    named = {jax.tree_util.keystr(path): np.array(x) for path, x in leaves}
    moments.append({name: x for name, x in named.items() if ".mu" in name})
  assert losses[1] == pytest.approx(losses[0], rel=TOLERANCE, abs=TOLERANCE)
  assert losses[0]["grad_norm"] > 0
  worst = nano.largest_difference(*moments)
  assert worst.value < TOLERANCE, worst


@pytest.mark.parametrize(
  ("fields", "frozen"),
  [
    ({"model__freeze_vision": True}, True),
    ({"model__freeze_vision": False}, False),
    ({"model__freeze_vision": True, "model__train_connector": True}, False),
    ({"model__freeze_vision": False, "model__lora__rank": 2}, True),
    (
      {"model__freeze_vision": True, "model__lora__rank": 2, "model__lora__vision": ("qkv",)},
      False,
    ),
  ],
)
def test_a_tower_is_frozen_where_nothing_of_it_is_trained(data, fields, frozen):
  context = nano.build(data, **fields)
  assert context.tower_frozen == frozen
  trained, _ = train_state_lib.split(context.abstract_params, context.frozen)
  assert bool(jax.tree.leaves(trained["vision"])) != frozen
