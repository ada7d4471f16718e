"""Sampler and trainer share one forward pass: the same log-probs, whatever else is in the batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.train import nano
from vr_jax import records
from vr_jax.rollout import forward, sampler
from vr_jax.train import initialization, train_step
from vr_jax.train import train_state as train_state_lib

TOLERANCE = 1e-5  # of ratios; of log-probs, some of which are below -4, relative and absolute


@pytest.fixture(scope="module")
def context(data):
  return nano.build(data, rl__learning_rate=0.0, rl__temperature=0.8, rl__top_p=0.9)


@pytest.fixture(scope="module")
def params(context):
  return nano.sharpened(initialization.fresh_params(context))


@pytest.fixture(scope="module")
def items(context):
  return nano.ragged_items(context, 4)


def _sample(context, params, items, **changes):
  prompt = context.builder.prompt(context.builder.batch(items))
  rollout = sampler.sample(
    context.graphdef,
    params,
    prompt,
    context.allowed_tokens,
    jax.random.key(5),
    decoding=context.decoding(**changes),
  )
  return prompt, rollout


@pytest.fixture(scope="module")
def sampled(context, params, items):
  # A stop token that a network without training finds likely, so that replies are ragged.
  stops = (*context.processor.stop_tokens, *range(60, 120))
  prompt, rollout = _sample(context, params, items, stop_tokens=stops)
  lengths = np.asarray(train_step.action_mask(rollout)).sum(-1)
  assert len(np.unique(lengths)) > 3
  return prompt, rollout


def test_prompts_of_the_batch_are_ragged_in_text_and_frames(context, items):
  assert {len(item.encoded.frames) for item in items} == {4, 2, 1, 0}
  assert len({len(item.encoded.tokens) for item in items}) > 2


def test_the_scorer_repeats_the_samplers_log_probs(context, params, sampled):
  prompt, rollout = sampled
  score = train_step.make_logprob_fn(
    context.graphdef, context.allowed_tokens, temperature=context.config.rl.temperature
  )
  log_probs = score(params, prompt, rollout)
  np.testing.assert_allclose(log_probs, rollout.log_probs, rtol=TOLERANCE, atol=TOLERANCE)
  assert np.asarray(rollout.log_probs).min() < -1  # it said something


def test_at_learning_rate_zero_every_ratio_is_one_and_kl_is_zero(context, params, sampled):
  prompt, rollout = sampled
  rl = context.config.rl
  optimizer = train_state_lib.make_optimizer(rl, context.abstract_params, ())
  state = train_state_lib.create(jax.tree.map(jnp.copy, params), optimizer, context.mesh)
  score = train_step.make_logprob_fn(
    context.graphdef, context.allowed_tokens, temperature=rl.temperature
  )
  reference = score(params, prompt, rollout)
  step = train_step.make_rl_step(context.graphdef, optimizer, context.allowed_tokens, rl)
  advantages = jnp.where(train_step.action_mask(rollout), 1.0, 0.0)
  signal = jnp.ones(4, bool)
  for old in (None, reference, reference):  # None: the first update on a batch
    state, metrics = step(state, prompt, rollout, advantages, signal, old, reference)
    assert abs(metrics["policy_ratio"] - 1) < TOLERANCE
    assert abs(metrics["sampling/importance_sampling_ratio/mean"] - 1) < TOLERANCE
    assert metrics["sampling/sampling_logp_difference/p99"] < TOLERANCE
    assert metrics["sampling/k3"] < TOLERANCE
    assert metrics["kl"] < TOLERANCE
    assert metrics["clip_ratio/low_mean"] == metrics["clip_ratio/high_mean"] == 0
    assert metrics["loss_tokens"] == np.asarray(train_step.action_mask(rollout)).sum()
    assert metrics["grad_norm"] > 0
  wrong = dataclasses.replace(rollout, log_probs=rollout.log_probs - 0.3)
  state, metrics = step(state, prompt, wrong, advantages, signal, reference, reference)
  assert metrics["sampling/sampling_logp_difference/mean"] == pytest.approx(0.3, abs=1e-4)
  assert metrics["sampling/k3"] == pytest.approx(np.exp(0.3) - 1.3, abs=1e-4)
  for moved, kept in zip(jax.tree.leaves(state.params), jax.tree.leaves(params), strict=True):
    np.testing.assert_array_equal(moved, kept)


def test_greedy_replies_are_the_argmax_of_the_plain_forward(context, params, items):
  prompt, rollout = _sample(context, params, items, temperature=0.0, group=1)

  @jax.jit
  def likeliest(params, tokens, valid):
    model = nano.merge(context, params)
    prefix = model.prefill(prompt)
    hidden = model.forward_replies(prefix, tokens, valid)
    before = jnp.concatenate([prefix.hidden[:, None, None], hidden[:, :, :-1]], axis=2)
    return forward.token_logits(model, before, context.allowed_tokens, 1.0).argmax(-1)

  valid = train_step.action_mask(rollout)
  expected = np.asarray(likeliest(params, rollout.tokens, valid))
  np.testing.assert_array_equal(np.asarray(rollout.tokens)[valid], expected[valid])


def test_padding_of_prompts_and_of_frames_changes_no_reply(context, params, items):
  _, rollout = _sample(context, params, items)
  wider = dataclasses.replace(
    context,
    config=nano.config(model__prefix_buckets=(160,), model__frame_buckets=(7,)),
  )
  wide = wider.builder.prompt(wider.builder.batch(items))
  again = sampler.sample(
    context.graphdef,
    params,
    wide,
    context.allowed_tokens,
    jax.random.key(5),
    decoding=context.decoding(),
  )
  np.testing.assert_array_equal(rollout.tokens, again.tokens)
  np.testing.assert_allclose(rollout.log_probs, again.log_probs, rtol=TOLERANCE, atol=TOLERANCE)


def test_a_reply_does_not_depend_on_the_prompts_beside_it(context, params, items):
  _, rollout = _sample(context, params, items)
  _, otherwise = _sample(context, params, [items[0], *items[1:][::-1]])
  np.testing.assert_array_equal(rollout.tokens[0], otherwise.tokens[0])


def test_media_tokens_and_ids_beyond_the_tokenizer_are_not_allowed(context):
  tokenizer = context.processor.tokenizer
  known = tokenizer.get_vocab_size()
  assert known < context.model.text.vocab_size or not context.allowed_tokens[known:].size
  assert not context.allowed_tokens[known:].any()
  for token in ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"):
    assert not context.allowed_tokens[tokenizer.token_to_id(token)]
  assert all(context.allowed_tokens[token] for token in context.processor.stop_tokens)


def test_media_tokens_are_not_sampled_by_a_network_that_wants_nothing_else(context, params, items):
  forbidden = np.flatnonzero(~np.asarray(context.allowed_tokens))
  embedding = params["text"]["embedding"]
  rigged = jax.tree.map(lambda x: x, params)
  rows = embedding[...].at[forbidden].set(100 * embedding[...][100])
  rigged["text"]["embedding"] = embedding.replace(rows)
  _, rollout = _sample(context, rigged, items, top_p=1.0)
  tokens = np.asarray(rollout.tokens)[np.asarray(rollout.kind) == records.Kind.MODEL]
  assert not np.isin(tokens, forbidden).any()
