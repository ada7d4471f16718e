"""Sampling by hand: a model whose next token depends on the last one alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rollout import bigram, chat, plain_limits
from vr_jax import records
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rollout import inverse_cdf, refill_sampler, sampler

VOCAB = 12
STOP = 9
EVERYTHING = jnp.ones(VOCAB, bool)
PROMPT = bigram.prompts((1, 2, 3), (4,))


def _table(seed=0, scale=2.0):
  return np.random.default_rng(seed).normal(0, scale, (VOCAB, VOCAB)).astype(np.float32)


def _sample(table, prompt=PROMPT, *, allowed_tokens=EVERYTHING, seed=0, **changes):
  fields = {
    "group": 64,
    "max_new_tokens": 8,
    "temperature": 1.0,
    "top_p": 1.0,
    "stop_tokens": (STOP,),
  }
  graphdef, params = bigram.split(table)
  decoding = sampler.Decoding(**{**fields, **changes})
  return sampler.sample(
    graphdef, params, prompt, allowed_tokens, jax.random.key(seed), decoding=decoding
  )


def _last_tokens(rollout, first):
  """The token before each reply token: [prompts, group, time]."""
  tokens = np.asarray(rollout.tokens)
  start = np.broadcast_to(np.reshape(first, (-1, 1, 1)), (*tokens.shape[:2], 1))
  return np.concatenate([start, tokens[..., :-1]], axis=-1)


def _log_softmax(logits):
  shifted = np.asarray(logits, np.float64) - logits.max(-1, keepdims=True)
  return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _model(rollout):
  return np.asarray(rollout.kind) == records.Kind.MODEL


def test_a_stop_token_ends_its_reply_and_belongs_to_it():
  rollout = _sample(_table())
  tokens, model = np.asarray(rollout.tokens), _model(rollout)
  lengths = model.sum(-1)
  assert len(np.unique(lengths)) > 1
  for place in np.ndindex(lengths.shape):
    reply = tokens[place][: lengths[place]]
    assert STOP not in reply[:-1]
    assert reply[-1] == STOP or lengths[place] == 8
    assert model[place][: lengths[place]].all()


def test_behind_the_end_of_a_reply_there_is_nothing():
  rollout = _sample(_table())
  after = ~_model(rollout)
  assert after.any()
  assert (np.asarray(rollout.kind)[after] == records.Kind.PAD).all()
  assert (np.asarray(rollout.tokens)[after] == 0).all()
  assert (np.asarray(rollout.log_probs)[after] == 0).all()


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("top_p", [0.5, 1.0])
def test_log_probs_are_those_of_the_tempered_distribution_before_top_p(temperature, top_p):
  table = _table()
  rollout = _sample(table, temperature=temperature, top_p=top_p)
  every = _log_softmax(table / (temperature or 1.0))
  expected = every[_last_tokens(rollout, [3, 4]), np.asarray(rollout.tokens)]
  model = _model(rollout)
  np.testing.assert_allclose(np.asarray(rollout.log_probs)[model], expected[model], atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 0.05, 1.0, 5.0])
@pytest.mark.parametrize("top_p", [0.0, 0.9, 1.0])
def test_a_token_that_is_not_allowed_is_never_drawn_however_likely(temperature, top_p):
  table = _table()
  table[:, [5, 7]] += 1e4
  allowed_tokens = EVERYTHING.at[jnp.array([5, 7])].set(False)
  rollout = _sample(table, allowed_tokens=allowed_tokens, temperature=temperature, top_p=top_p)
  assert not np.isin(np.asarray(rollout.tokens)[_model(rollout)], [5, 7]).any()
  assert np.isfinite(rollout.log_probs).all()
  assert (np.asarray(rollout.log_probs) <= 0).all()


def test_greedy_takes_the_likeliest_token_each_time():
  table = _table()
  rollout = _sample(table, temperature=0.0, group=1)
  model = _model(rollout)
  expected = table[_last_tokens(rollout, [3, 4])].argmax(-1)
  np.testing.assert_array_equal(np.asarray(rollout.tokens)[model], expected[model])


@pytest.mark.parametrize(
  "limits",
  [
    {"top_p": 0.6},
    {"top_k": 3},
    {"min_p": 0.3},
    {"top_p": 0.7, "top_k": 3},
    {"top_p": 0.6, "top_k": 5, "min_p": 0.1},
  ],
)
def test_what_is_left_out_is_never_drawn_and_all_else_is(limits):
  table = _table()
  rollout = _sample(table, group=512, **limits)
  kept = plain_limits.kept(np.exp(_log_softmax(table)), **limits)
  model, last = _model(rollout), _last_tokens(rollout, [3, 4])
  drawn = np.zeros_like(kept)
  drawn[last[model], np.asarray(rollout.tokens)[model]] = True
  assert not (drawn & ~kept).any()
  for token in (3, 4):  # the last ones of the prompts, so each has hundreds of draws
    np.testing.assert_array_equal(drawn[token], kept[token])


@pytest.mark.parametrize("rungs", [(), (0.75, 0.5, 0.25)])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_what_a_reply_has_already_is_penalised_before_the_temperature(temperature, rungs):
  table, penalty = _table(scale=1.0), 2.5
  limits = {"top_k": 4, "top_p": 0.8}
  rollout = _sample(
    *(table, bigram.prompts((1, 2, 3), (4, 3))),
    **limits,
    temperature=temperature,
    presence_penalty=penalty,
    slot_fractions=rungs,
  )
  tokens, last, model = np.asarray(rollout.tokens), _last_tokens(rollout, [3, 3]), _model(rollout)
  repeated = 0
  for place in np.argwhere(model):
    row, reply, time = place
    logits = table[last[tuple(place)]].astype(np.float64)
    logits[tokens[row, reply, :time]] -= penalty  # not the prompt's tokens
    log_probs = _log_softmax(logits / (temperature or 1.0))
    token = tokens[tuple(place)]
    repeated += token in tokens[row, reply, :time]
    assert rollout.log_probs[tuple(place)] == pytest.approx(log_probs[token], abs=1e-5)
    if temperature:
      assert plain_limits.kept(np.exp(log_probs)[None], **limits)[0, token]
    else:
      assert token == logits.argmax()
  assert model.sum() > 200
  assert repeated or not temperature


def test_on_several_devices_limits_and_the_penalty_give_the_tokens_of_one():
  limits = {"top_k": 40, "min_p": 0.02, "top_p": 0.9, "presence_penalty": 1.5}
  decoding = chat.decoding(**limits, slot_fractions=(0.5,))
  rollouts = []
  for mesh in (None, mesh_lib.make_mesh((1, 2, 1, 2), jax.devices()[:4])):
    prompt = chat.batch(chat.opening(4))
    prompt = prompt if mesh is None else mesh_lib.put_batch(prompt, mesh)
    rollouts.append(
      sampler.sample(
        *chat.network(mesh), prompt, chat.ALLOWED, jax.random.key(7), decoding=decoding
      )
    )
  one, several = rollouts
  np.testing.assert_array_equal(several.tokens, one.tokens)
  np.testing.assert_allclose(several.log_probs, one.log_probs, atol=1e-5)


def test_replies_of_several_turns_refuse_a_presence_penalty():
  graphdef, params = bigram.split(_table())
  fields = {"group": 4, "max_new_tokens": 8, "temperature": 1.0, "top_p": 1.0, "stop_tokens": ()}
  decoding = sampler.Decoding(**fields, presence_penalty=1.0, slots=4)
  with pytest.raises(ValueError, match="presence penalty"):
    refill_sampler.sample_counting(
      graphdef, params, PROMPT, EVERYTHING, jax.random.key(0), decoding=decoding
    )


def test_tokens_are_drawn_as_often_as_their_probability_says():
  table = _table(scale=1.0)
  rollout = _sample(table, group=4096, max_new_tokens=1)
  for row, last in enumerate((3, 4)):
    frequency = np.bincount(np.asarray(rollout.tokens)[row, :, 0], minlength=VOCAB) / 4096
    expected = np.exp(_log_softmax(table)[last])
    deviation = np.sqrt(expected * (1 - expected) / 4096)
    assert (np.abs(frequency - expected) < 5 * deviation).all()


def test_what_is_drawn_for_a_row_does_not_depend_on_the_rows_beside_it():
  table = _table()
  together = _sample(table, bigram.prompts((1, 2, 3), (4, 5)))
  otherwise = _sample(table, bigram.prompts((1, 2, 3), (6, 7, 8, 1, 2, 4, 11)))
  np.testing.assert_array_equal(together.tokens[0], otherwise.tokens[0])
  assert (np.asarray(together.tokens[1]) != np.asarray(otherwise.tokens[1])).any()


def test_what_is_drawn_for_a_row_does_not_depend_on_how_long_the_others_run():
  table = _table()
  endless = table.copy()
  rollout = _sample(table, bigram.prompts((3,), (4,)))
  endless[4, :] = endless[10, :] = -1e3
  endless[4, 10] = endless[10, 10] = 1e3  # the second prompt says 10 for ever
  long = _sample(endless, bigram.prompts((3,), (4,)))
  rows = ~np.isin(np.asarray(long.tokens[0]), [4, 10]).any(-1)
  assert rows.sum() > 5
  np.testing.assert_array_equal(np.asarray(rollout.tokens)[0][rows], long.tokens[0][rows])
  assert _model(long)[1].all()


def test_replies_of_a_group_and_of_equal_prompts_differ():
  rollout = _sample(_table(scale=0.1), bigram.prompts((3,), (3,)), group=4)
  replies = {tuple(row) for row in np.asarray(rollout.tokens).reshape(8, -1)}
  assert len(replies) == 8


def test_the_same_key_gives_the_same_replies_and_another_key_others():
  first, again, other = (_sample(_table(), seed=seed) for seed in (1, 1, 2))
  np.testing.assert_array_equal(first.tokens, again.tokens)
  assert (np.asarray(first.tokens) != np.asarray(other.tokens)).any()


RUNGS = (0.75, 0.5, 0.3, 0.1, 0.01)


def _arguments(prompt, rungs, **changes):
  fields = {"group": 16, "max_new_tokens": 24, "temperature": 1.0, "top_p": 1.0}
  decoding = sampler.Decoding(**{**fields, **changes}, stop_tokens=(STOP,), slot_fractions=rungs)
  graphdef, params = bigram.split(_table(5, 1.0))
  return (graphdef, params, prompt, EVERYTHING, jax.random.key(3)), decoding


@pytest.mark.parametrize("group", [1, 3, 16])
def test_replies_are_the_same_whatever_slots_they_are_kept_in(group):
  prompt = bigram.prompts((1, 2, 3), (4,), (7, 8), (2,))
  arguments, decoding = _arguments(prompt, RUNGS, group=group)
  compacted, computed = sampler.sample_counting(*arguments, decoding=decoding)
  whole = sampler.sample_without_compaction(*arguments, decoding=decoding)
  for left, right in zip(jax.tree.leaves(compacted), jax.tree.leaves(whole), strict=True):
    np.testing.assert_array_equal(left, right)
  assert _model(whole).sum() <= computed <= 4 * group * 24


def test_ended_replies_stop_costing():
  prompt = bigram.prompts((1, 2, 3), (4,), (7, 8), (2,))
  costs = {}
  for rungs in ((), RUNGS):
    arguments, decoding = _arguments(prompt, rungs)
    rollout, costs[rungs] = sampler.sample_counting(*arguments, decoding=decoding)
  lengths = _model(rollout).sum(-1)
  assert costs[()] == 64 * lengths.max()
  # By hand: each size is used until no more replies are unfinished than the next size has slots.
  expected, slots = 0, 64
  sizes = [64, 48, 32, 20, 7, 1]
  for step in range(lengths.max()):
    left = (lengths > step).sum()
    while slots != sizes[-1] and left <= sizes[sizes.index(slots) + 1]:
      slots = sizes[sizes.index(slots) + 1]
    expected += slots
  assert costs[RUNGS] == expected
  assert costs[RUNGS] < 0.7 * costs[()]


def test_a_batch_that_ends_at_its_first_token_is_done():
  table = np.zeros((VOCAB, VOCAB), np.float32)
  table[:, STOP] = 1e3
  rollout = _sample(table, group=4, slot_fractions=RUNGS)
  assert (_model(rollout).sum(-1) == 1).all()


drawn_by = jax.jit(inverse_cdf.sample)


@pytest.mark.parametrize("vocab", [1, 5, 128, 448, 1000])
def test_a_share_of_the_weights_falls_on_the_token_of_a_plain_running_sum(vocab):
  rng = np.random.default_rng(vocab)
  weights = rng.random((64, vocab)) * (rng.random((64, vocab)) < 0.5)
  weights[:, rng.integers(vocab)] = 1.0
  share = rng.random(64)
  running = weights.cumsum(axis=1)
  expected = (running > share[:, None] * running[:, -1:]).argmax(axis=1)
  found = drawn_by(jnp.asarray(weights, jnp.float32), jnp.asarray(share, jnp.float32))
  np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0 - 2.0**-24, 1.0])
def test_a_token_of_weight_zero_is_never_drawn(share):
  weights = np.zeros((3, 300), np.float32)
  weights[0, 299], weights[1, 7], weights[2, [3, 290]] = 1e-30, 1.0, (1.0, 1e-12)
  found = np.asarray(drawn_by(jnp.asarray(weights), jnp.full(3, share, jnp.float32)))
  assert (np.take_along_axis(weights, found[:, None], 1) > 0).all()
