"""The sampler with attention in the kernel, emulated, draws what it draws without it."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from tests.rollout import chat, test_episodes
from vr_jax import records
from vr_jax.models.common import attention_decode_kernel, attention_decode_plan
from vr_jax.parallel import mesh as mesh_lib
from vr_jax.rollout import refill_sampler, sampler

IN_KERNEL = dataclasses.replace(chat.CONFIG, decode_attention="pallas")
TOLERANCE = 1e-5  # of log-probs: float32 adds up in another order


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
  """Prompts of 64 tokens and replies of 12 need several."""
  monkeypatch.setattr(attention_decode_plan, "LANES", 8)
  monkeypatch.setattr(attention_decode_plan, "MOST_KEYS", 16)
  monkeypatch.setattr(attention_decode_plan, "REPLY_BYTES", 1)


@pytest.fixture(autouse=True)
def in_use(monkeypatch):
  """Each test here runs the kernel."""
  calls, step = [], attention_decode_kernel.step
  monkeypatch.setattr(
    attention_decode_kernel, "step", lambda *args, **kw: (calls.append(1), step(*args, **kw))[1]
  )
  yield
  assert calls


def without_and_in_kernel(monkeypatch, sample, shape=None, decode_layout="replicated"):
  """What `sample(graph, params, prompt, …)` returns without the kernel, and in it."""
  mesh = mesh_lib.make_mesh(shape, jax.devices()[: int(np.prod(shape))]) if shape else None
  prompt = chat.batch(chat.opening(4))
  prompt = mesh_lib.put_batch(prompt, mesh) if mesh else prompt
  found = []
  for config in (chat.CONFIG, IN_KERNEL):
    monkeypatch.setattr(chat, "CONFIG", config)
    network = chat.network(mesh, decode_layout)
    found.append(sample(*network, prompt, chat.ALLOWED, jax.random.key(7)))
  return found


def assert_same(expected, found):
  for name in ("tokens", "kind"):
    np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
  np.testing.assert_allclose(found.log_probs, expected.log_probs, rtol=0, atol=TOLERANCE)
  lengths = (np.asarray(found.kind) == records.Kind.MODEL).sum(-1)
  assert len(np.unique(lengths)) > 2


@pytest.mark.parametrize(
  ("shape", "decode_layout"),
  [(None, "replicated"), ((1, 2, 1, 2), "replicated"), ((1, 4, 1, 1), "tensor")],
)
def test_greedy_tokens_are_those_without_the_kernel(shape, decode_layout, monkeypatch):
  decoding = chat.decoding(temperature=0.0, slot_fractions=(0.5,))
  sample = functools.partial(sampler.sample, decoding=decoding)
  assert_same(*without_and_in_kernel(monkeypatch, sample, shape, decode_layout))


def test_slots_that_are_refilled_draw_the_same_tokens(monkeypatch):
  monkeypatch.setattr(refill_sampler, "CHUNK", 4)
  sample = functools.partial(refill_sampler.sample_counting, decoding=chat.decoding(slots=5))
  (expected, _), (found, _) = without_and_in_kernel(monkeypatch, sample)
  assert_same(expected, found)


def test_episodes_that_forget_turns_are_the_same(monkeypatch):
  schedule = {"turns": 3, "window": 1, "kept": 2}
  _, expected = test_episodes._play(group=3, schedule=schedule)
  monkeypatch.setattr(chat, "CONFIG", IN_KERNEL)
  _, found = test_episodes._play(group=3, schedule=schedule)
  assert_same(expected.rollout, found.rollout)
  assert np.asarray(expected.rollout.episode_inputs.visible_from).any()
