"""Replies that repeat themselves end: against a plain loop, in every way of decoding."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.rollout import bigram, test_episodes
from vr_jax import records
from vr_jax.rollout import refill_sampler, repetition, sampler

STOP = 9


def repeats(reply, stop):
  """The rule in words: the last `window` tokens are one pattern, `count` times or more."""
  if len(reply) < stop.window:
    return False
  last = list(reply[len(reply) - stop.window :])
  return any(
    last == list(itertools.islice(itertools.cycle(last[:period]), stop.window))
    for period in range(1, stop.window // stop.count + 1)
  )


def cut(reply, stop):
  """The reply up to where it first repeats itself."""
  ends = (end for end in range(1, len(reply) + 1) if repeats(reply[:end], stop))
  return list(reply[: next(ends, len(reply))])


@pytest.mark.parametrize(("window", "count"), [(2, 2), (6, 2), (7, 2), (7, 3), (8, 4), (5, 5)])
def test_every_reply_of_two_tokens_is_judged_as_by_a_plain_loop(window, count):
  stop = repetition.RepetitionStop(window, count)
  tokens = np.array(list(itertools.product((3, 4), repeat=window)))
  found = repetition.is_repeating(jnp.asarray(tokens), jnp.int32(window), stop)
  expected = [repeats(row, stop) for row in tokens.tolist()]
  np.testing.assert_array_equal(found, expected)
  assert any(expected) and not all(expected)
  short = repetition.is_repeating(jnp.asarray(tokens), jnp.full(len(tokens), window - 1), stop)
  assert not short.any()


def replies_of(rollout):
  """The tokens of each reply, [prompts][group]."""
  tokens, kind = np.asarray(rollout.tokens), np.asarray(rollout.kind)
  return [
    [row[own == records.Kind.MODEL].tolist() for row, own in zip(*each, strict=True)]
    for each in zip(tokens, kind, strict=True)
  ]


def arguments():
  """Two prompts for a model with some strong habits, whose draws depend on the last token."""
  rng = np.random.default_rng(1)
  table = rng.normal(0, 1, (12, 12)).astype(np.float32)
  for token, following in ((3, 3), (4, 5), (5, 4), (6, 7), (7, 8), (8, 6)):
    table[token, following] += 4
  graphdef, params = bigram.split(table)
  prompt = bigram.prompts((1, 2, 3), (4,))
  return graphdef, params, prompt, jnp.ones(12, bool), jax.random.key(0)


@pytest.mark.parametrize("way", ["slots", "fewer slots", "refilled slots"])
@pytest.mark.parametrize(("window", "count"), [(6, 2), (9, 3)])
def test_a_reply_ends_where_it_repeats_itself_and_not_before(way, window, count, monkeypatch):
  monkeypatch.setattr(refill_sampler, "CHUNK", 5)  # shorter than the window
  stop = repetition.RepetitionStop(window, count)
  free = sampler.Decoding(
    group=16, max_new_tokens=24, temperature=1.0, top_p=1.0, stop_tokens=(STOP,)
  )
  changes = {"fewer slots": {"slot_fractions": (0.75, 0.5, 0.25)}, "refilled slots": {"slots": 6}}
  stopping = dataclasses.replace(free, repetition_stop=stop, **changes.get(way, {}))
  sample = refill_sampler.sample_counting if stopping.slots else sampler.sample_counting
  whole = replies_of(sampler.sample(*arguments(), decoding=free))
  rollout, _ = sample(*arguments(), decoding=stopping)
  found = replies_of(rollout)
  assert found == [[cut(reply, stop) for reply in row] for row in whole]
  flat = [reply for row in found for reply in row]
  stopped = [repeats(reply, stop) and len(reply) < 24 for reply in flat]
  assert 2 < sum(stopped) < len(flat) - 2
  fraction = repetition.stopped_fraction(rollout, stop_tokens=(STOP,), max_new_tokens=24)
  assert float(fraction) == pytest.approx(sum(stopped) / len(flat))


def test_each_turn_of_an_episode_counts_for_itself(monkeypatch):
  graphdef, params = test_episodes.chat.network()

  def stubborn(path, x):  # likes to say again what it said last
    return x * 4 if "embedding" in jax.tree_util.keystr(path) else x

  params = jax.tree.map_with_path(stubborn, params)
  monkeypatch.setattr(test_episodes.chat, "network", lambda *given: (graphdef, params))
  stop = repetition.RepetitionStop(4, 2)
  _, episodes = test_episodes._play(repetition_stop=stop, group=6)
  rollout = test_episodes._host(episodes.rollout)
  stopped = replies = 0
  for place in np.ndindex(rollout.tokens.shape[:2]):
    for turn in range(rollout.turn[place].max() + 1):
      own = (rollout.kind[place] == records.Kind.MODEL) & (rollout.turn[place] == turn)
      reply = rollout.tokens[place][own].tolist()
      assert cut(reply, stop) == reply
      ended = reply[-1] in test_episodes.chat.STOPS
      assert ended or len(reply) == 12 or repeats(reply, stop)
      stopped, replies = stopped + (not ended and len(reply) < 12), replies + 1
  assert 1 < stopped < replies
  fraction = repetition.stopped_fraction(
    episodes.rollout, stop_tokens=tuple(test_episodes.chat.STOPS), max_new_tokens=12
  )
  assert float(fraction) == pytest.approx(stopped / replies)
