"""Slots that get the next reply once free: the replies of a slot for each, token for token."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rollout import bigram, chat
from vr_jax import records
from vr_jax.models import layout as layout_lib
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rollout import refill_queue, refill_sampler, sampler

PROMPTS = 5
TOLERANCE = 1e-4  # of log-probs: attention adds up in another order


def _lengths(rollout):
  return (np.asarray(rollout.kind) == records.Kind.MODEL).sum(-1)


def _network(mesh, decode_layout="replicated", **changes):
  graphdef, params = chat.network(mesh, decode_layout)
  prompt = chat.batch(chat.opening(changes.pop("count", PROMPTS)))
  if mesh is not None:
    prompt = mesh_lib.put_batch(prompt, mesh)
  return (graphdef, params, prompt, chat.ALLOWED, jax.random.key(7)), chat.decoding(**changes)


def _assert_the_same(refilled, expected):
  for name in ("tokens", "kind", "turn"):
    np.testing.assert_array_equal(getattr(refilled, name), getattr(expected, name))
  np.testing.assert_allclose(refilled.log_probs, expected.log_probs, atol=TOLERANCE)


@pytest.mark.parametrize(
  ("temperature", "slots", "chunk"), [(0.0, 4, 4), (0.9, 4, 4), (0.9, 7, 32)]
)
def test_tokens_are_those_of_a_slot_for_each_reply(temperature, slots, chunk, monkeypatch):
  monkeypatch.setattr(refill_sampler, "CHUNK", chunk)
  arguments, decoding = _network(None, temperature=temperature, slots=slots, max_new_tokens=13)
  expected = sampler.sample(*arguments, decoding=decoding)
  refilled, computed = refill_sampler.sample_counting(*arguments, decoding=decoding)
  _assert_the_same(refilled, expected)
  lengths = _lengths(expected)
  assert len(np.unique(lengths)) > 2
  assert lengths.sum() <= computed < lengths.size * lengths.max() * 2


@pytest.mark.parametrize(
  ("shape", "count", "decode_layout"),
  [
    ((1, 2, 2, 1), 4, "replicated"),
    ((2, 2, 1, 1), 3, "replicated"),
    ((1, 2, 1, 2), 4, "training"),
    ((1, 4, 2, 1), 4, "tensor"),
    ((2, 2, 1, 1), 4, "tensor"),
  ],
)
def test_on_several_devices_tokens_are_those_of_one(shape, count, decode_layout, monkeypatch):
  monkeypatch.setattr(refill_sampler, "CHUNK", 4)
  arguments, decoding = _network(None, count=count, slots=4)
  expected = sampler.sample(*arguments, decoding=decoding)
  mesh = mesh_lib.make_mesh(shape, jax.devices()[: int(np.prod(shape))])
  arguments, decoding = _network(mesh, decode_layout, count=count, slots=4)
  refilled, _ = refill_sampler.sample_counting(*arguments, decoding=decoding)
  _assert_the_same(refilled, expected)


def test_tokens_drawn_in_the_layout_tensor_without_refilling_are_those_of_one_device():
  arguments, decoding = _network(None, count=4, slot_fractions=(0.5,))
  expected = sampler.sample(*arguments, decoding=decoding)
  mesh = mesh_lib.make_mesh((1, 4, 1, 1), jax.devices()[:4])
  arguments, decoding = _network(mesh, "tensor", count=4, slot_fractions=(0.5,))
  _assert_the_same(sampler.sample(*arguments, decoding=decoding), expected)


def test_a_family_with_more_features_has_the_same_tokens_in_slots_that_are_refilled(monkeypatch):
  monkeypatch.setattr(refill_sampler, "CHUNK", 4)
  arguments, decoding = chat.family_network("qwen3_vl"), chat.decoding(slots=4, group=5)
  expected = sampler.sample(*arguments, decoding=decoding)
  refilled, _ = refill_sampler.sample_counting(*arguments, decoding=decoding)
  _assert_the_same(refilled, expected)
  assert len(np.unique(_lengths(expected))) > 2


@pytest.mark.parametrize("family", ["qwen3_vl", "tinyllava"])
def test_tokens_of_every_family_are_the_same_in_fewer_slots(family):
  decoding = chat.decoding(slot_fractions=(0.7, 0.4, 0.2), group=5)
  arguments = chat.family_network(family)
  found, computed = sampler.sample_counting(*arguments, decoding=decoding)
  expected = sampler.sample_without_compaction(*arguments, decoding=decoding)
  _assert_the_same(found, expected)
  lengths = _lengths(expected)
  assert len(np.unique(lengths)) > 2
  assert lengths.sum() <= computed < lengths.size * lengths.max()


def _scripted(table, slots, *, count=6, group=3, time=9):
  prompt = bigram.prompts(*[(number % 4 + 1,) for number in range(count)])
  graphdef, params = bigram.split(table)
  decoding = sampler.Decoding(
    group=group, max_new_tokens=time, temperature=1.0, top_p=1.0, stop_tokens=(0,), slots=slots
  )
  return (graphdef, params, prompt, jnp.ones(len(table), bool), jax.random.key(1)), decoding


@pytest.mark.parametrize("stop", [1e3, -1e3])
@pytest.mark.parametrize("slots", [1, 5, 18])
def test_replies_of_one_token_and_of_full_length_are_complete(stop, slots):
  table = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
  table[:, 0] = stop
  arguments, decoding = _scripted(table, slots)
  expected = sampler.sample(*arguments, decoding=decoding)
  refilled, _ = refill_sampler.sample_counting(*arguments, decoding=decoding)
  _assert_the_same(refilled, expected)
  assert (_lengths(refilled) == (1 if stop > 0 else 9)).all()


def test_replies_in_fewer_slots_cost_fewer_tokens():
  table = np.random.default_rng(2).normal(size=(12, 12)).astype(np.float32)
  table[:, 0] += 1
  arguments, decoding = _scripted(table, 16, count=16, group=8, time=64)
  expected, whole = sampler.sample_counting(*arguments, decoding=decoding)
  refilled, computed = refill_sampler.sample_counting(*arguments, decoding=decoding)
  _assert_the_same(refilled, expected)
  assert computed < 0.7 * whole


def test_prompts_beyond_the_prompt_slots_are_loaded_once_a_group_has_ended():
  places = refill_queue.RefillLayout.choose(layout_lib.OneDevice(), 9, 4, 8)
  assert (places.slots, places.prefill, places.prompt_slots) == (8, 2, 4)
  block = refill_queue.BlockQueue(0, places, [np.zeros((9, 4), bool)])
  loads = [block.load(needed=False) for _ in range(3)]
  assert loads == [(0, [(0, 0), (1, 1)]), (0, [(2, 2), (3, 3)]), (0, [])]
  replies = [block.admit() for _ in range(16)]
  assert not block.is_next_resident()
  assert block.load(needed=True) == (0, [])
  for reply in replies[4:8]:
    block.end(reply)
  assert block.load(needed=True) == (0, [(4, 1)])
  assert block.is_next_resident()


def test_the_last_replies_decode_in_fewer_slots(monkeypatch):
  monkeypatch.setattr(refill_sampler, "CHUNK", 4)
  arguments, decoding = _network(None, slots=6, slot_fractions=(0.5, 0.2))
  expected = sampler.sample(*arguments, decoding=decoding)
  refilled, computed = refill_sampler.sample_counting(*arguments, decoding=decoding)
  _assert_the_same(refilled, expected)
  whole = dataclasses.replace(decoding, slot_fractions=())
  assert computed < refill_sampler.sample_counting(*arguments, decoding=whole)[1]


def test_fewer_slots_of_each_device_hold_its_replies():
  places = refill_queue.RefillLayout(
    devices=2, blocks=1, prompts=4, slots=4, prompt_slots=4, prefill=2
  )
  active = np.array([False, True, False, True, False, False, True, False])
  np.testing.assert_array_equal(places.choose_slots(active, 2), [1, 3, 4, 6])
