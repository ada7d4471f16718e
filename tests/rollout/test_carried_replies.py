"""Replies that begin in slots that a step's end leaves free, and go on in the next step."""

import json

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rollout import bigram, chat
from vr_jax import records
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rollout import (
  forward,
  refill_sampler,
  repetition,
  sampler,
  turn_decode,
  written_replies,
)

TOLERANCE = 1e-4  # of log-probs: attention adds up in another order
KEYS = jax.random.key(7), jax.random.key(8), jax.random.key(9)


def _network(mesh=None, count=5, decode_layout="replicated"):
  """(graphdef, params, [prompts of three steps])."""
  graphdef, params = chat.network(mesh, decode_layout)
  batches = [chat.batch(chat.opening(count)) for _ in KEYS]
  batches[1] = jax.tree.map(lambda x: x[::-1], batches[1])
  if mesh is not None:
    batches = [mesh_lib.put_batch(batch, mesh) for batch in batches]
  return graphdef, params, batches


def _sample_steps(graphdef, params, batches, decoding, allowed=chat.ALLOWED):
  """Samples three steps, each of which begins the next one. Returns what each gave."""
  begun, steps = None, []
  for number, (batch, key) in enumerate(zip(batches, KEYS, strict=True)):
    next_batch = None
    if number + 1 < len(batches):
      prompt = batches[number + 1]
      next_batch = refill_sampler.NextBatch(prompt=lambda p=prompt: p, key=KEYS[number + 1])
    sampled = refill_sampler.sample(
      *(graphdef, params, batch, allowed, key),
      decoding=decoding,
      begun=begun,
      next_batch=next_batch,
    )
    steps.append((sampled, begun))
    begun = sampled.begun
  return steps


def _assert_as_without_carrying(network, steps, decoding, tolerance=TOLERANCE):
  graphdef, params, batches = network
  for (sampled, _), batch, key in zip(steps, batches, KEYS, strict=True):
    expected = sampler.sample(graphdef, params, batch, chat.ALLOWED, key, decoding=decoding)
    for name in ("tokens", "kind", "turn"):
      np.testing.assert_array_equal(
        getattr(sampled.rollout, name), getattr(expected, name), err_msg=name
      )
    np.testing.assert_allclose(sampled.rollout.log_probs, expected.log_probs, atol=tolerance)


@pytest.mark.parametrize(
  ("slots", "chunk", "temperature"), [(4, 4, 0.9), (7, 3, 0.9), (4, 32, 0.0)]
)
def test_with_the_same_weights_tokens_are_those_without_carrying(
  slots, chunk, temperature, monkeypatch
):
  monkeypatch.setattr(refill_sampler, "CHUNK", chunk)
  network, decoding = _network(), chat.decoding(slots=slots, temperature=temperature)
  steps = _sample_steps(*network, decoding)
  _assert_as_without_carrying(network, steps, decoding)
  assert steps[-1][0].begun is None
  for _, begun in steps[1:]:
    partial = (begun.lengths > 0) & ~begun.ended
    assert partial.any() or begun.ended.any()


def test_replies_of_every_kind_are_carried(monkeypatch):
  monkeypatch.setattr(refill_sampler, "CHUNK", 4)
  network, decoding = _network(), chat.decoding(slots=6, max_new_tokens=13)
  begun = [begun for _, begun in _sample_steps(*network, decoding)[1:]]
  assert any(b.ended.any() for b in begun), "a reply that ended before its step"
  assert any(((b.lengths > 0) & ~b.ended).any() for b in begun), "one that goes on"
  assert all((b.lengths == 0).any() for b in begun), "one that had not begun"


def test_a_steps_end_costs_no_idle_slots(monkeypatch):
  table = np.random.default_rng(2).normal(size=(12, 12)).astype(np.float32)
  table[:, 0] += 1
  prompt = bigram.prompts(*[(number % 4 + 1,) for number in range(16)])
  graphdef, params = bigram.split(table)
  decoding = sampler.Decoding(
    group=8, max_new_tokens=64, temperature=1.0, top_p=1.0, stop_tokens=(0,), slots=16
  )
  counts, decode = [], turn_decode.decode

  def counting(*arguments, **options):
    state, decoded = decode(*arguments, **options)
    counts.append(int(decoded.counts.max()))
    return state, decoded

  monkeypatch.setattr(turn_decode, "decode", counting)
  arguments = graphdef, params, [prompt] * 3, jnp.ones(len(table), bool)
  steps = _sample_steps(*arguments[:3], decoding, allowed=arguments[3])
  carried, counts[:] = sum(counts), []
  for (sampled, _), key in zip(steps, KEYS, strict=True):
    alone, _ = refill_sampler.sample_counting(
      graphdef, params, prompt, arguments[3], key, decoding=decoding
    )
    np.testing.assert_array_equal(sampled.rollout.tokens, alone.tokens)
  assert carried < 0.92 * sum(counts)


@pytest.mark.parametrize(
  ("shape", "count", "decode_layout"),
  [
    ((1, 2, 2, 1), 4, "replicated"),
    ((2, 2, 1, 1), 4, "tensor"),
    ((2, 1, 1, 2), 4, "training"),
  ],
)
def test_on_several_devices_tokens_are_those_of_one(shape, count, decode_layout, monkeypatch):
  monkeypatch.setattr(refill_sampler, "CHUNK", 4)
  mesh = mesh_lib.make_mesh(shape, jax.devices()[: int(np.prod(shape))])
  decoding = chat.decoding(slots=8, slot_fractions=(0.5,))
  steps = _sample_steps(*_network(mesh, count, decode_layout), decoding)
  _assert_as_without_carrying(_network(None, count), steps, decoding)


@pytest.mark.parametrize("family", ["qwen3_vl", "tinyllava"])
def test_tokens_of_every_family_are_those_without_carrying(family, monkeypatch):
  monkeypatch.setattr(refill_sampler, "CHUNK", 4)
  graphdef, params, prompt, *_ = chat.family_network(family)
  network, decoding = (graphdef, params, [prompt] * 3), chat.decoding(slots=4, group=5)
  steps = _sample_steps(*network, decoding)
  _assert_as_without_carrying(network, steps, decoding)
  assert (steps[1][1].lengths > 0).any()


def test_other_weights_go_on_with_the_tokens_and_log_probs_of_the_old_ones(monkeypatch):
  monkeypatch.setattr(refill_sampler, "CHUNK", 4)
  graphdef, params, batches = _network()
  other = jax.tree.map(lambda x: x * 1.1, params)
  decoding = chat.decoding(slots=6)
  next_batch = refill_sampler.NextBatch(prompt=lambda: batches[1], key=KEYS[1])
  first = refill_sampler.sample(
    *(graphdef, params, batches[0], chat.ALLOWED, KEYS[0]), decoding=decoding, next_batch=next_batch
  )
  before = written_replies.WrittenReplies.from_json(
    json.loads(json.dumps(first.begun.to_json())), prompts=5, group=3, time=decoding.max_new_tokens
  )
  for name in ("tokens", "log_probs", "lengths", "ended"):
    np.testing.assert_array_equal(getattr(before, name), getattr(first.begun, name), err_msg=name)
  second = refill_sampler.sample(
    *(graphdef, other, batches[1], chat.ALLOWED, KEYS[1]), decoding=decoding, begun=first.begun
  )
  steps = np.arange(decoding.max_new_tokens)
  old = steps < before.lengths[..., None]
  assert old.any()
  for name in ("tokens", "log_probs"):
    found = np.asarray(getattr(second.rollout, name))
    np.testing.assert_array_equal(found[old], getattr(before, name)[old], err_msg=name)
  # What follows is scored as the new weights score it behind the old tokens.
  scored, _ = forward.reply_log_probs(
    nnx.merge(graphdef, other),
    batches[1],
    second.rollout.tokens,
    second.rollout.kind != records.Kind.PAD,
    chat.ALLOWED,
    decoding.temperature,
  )
  new = (np.asarray(second.rollout.kind) == records.Kind.MODEL) & ~old
  assert (new & (before.lengths > 0)[..., None]).any(), "no reply went on"
  np.testing.assert_allclose(
    np.asarray(second.rollout.log_probs)[new], np.asarray(scored)[new], atol=TOLERANCE
  )


def test_a_reply_that_repeats_itself_over_the_steps_end_is_stopped(monkeypatch):
  monkeypatch.setattr(refill_sampler, "CHUNK", 3)
  network = _network()
  stop = repetition.RepetitionStop(6, 3)
  decoding = chat.decoding(slots=6, temperature=0.0, repetition_stop=stop)
  _assert_as_without_carrying(network, _sample_steps(*network, decoding), decoding)


def test_more_replies_than_are_read_at_once_go_on(monkeypatch):
  monkeypatch.setattr(refill_sampler, "CHUNK", 4)
  monkeypatch.setattr(refill_sampler, "_READ_TOGETHER", 2)
  network, decoding = _network(), chat.decoding(slots=7, max_new_tokens=13)
  steps = _sample_steps(*network, decoding)
  _assert_as_without_carrying(network, steps, decoding)
  assert max(((b.lengths > 0) & ~b.ended).sum() for _, b in steps[1:]) > 2
