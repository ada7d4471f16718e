"""Windows that forget turns: update and rollout agree, and forgotten tokens have no influence."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from tests.rollout import chat, test_episodes
from vr_jax import records
from vr_jax.models import layout as layout_lib
from vr_jax.models.common import packing
from vr_jax.parallel import mesh as mesh_lib

GROUP, TURNS, KEPT = 3, 3, 2


@functools.cache
def _play_episodes(window):
  schedule = {"turns": TURNS, "window": window, "kept": KEPT}
  return test_episodes._play(group=GROUP, schedule=schedule)


def _scores(prompt, rollout, packed=None):
  return np.asarray(test_episodes._scores(*chat.network(), prompt, rollout, packed))


def _last_turn(rollout):
  """Tokens that the model wrote in the last turn that an episode may have."""
  kind, turn = np.asarray(rollout.kind), np.asarray(rollout.turn)
  return (kind == records.Kind.MODEL) & (turn == TURNS - 1)


@pytest.mark.parametrize("window", [0, 1])
def test_the_update_repeats_the_log_probs_of_the_rollout(window):
  prompt, found = _play_episodes(window)
  valid = np.asarray(found.rollout.kind) != records.Kind.PAD
  size = packing.size_of(layout_lib.OneDevice(), valid.sum(-1)[None], valid.shape[2], ratio=1.1)
  assert _last_turn(found.rollout).any()
  for packed in (None, size):
    scores = _scores(prompt, found.rollout, packed)
    np.testing.assert_allclose(scores, found.rollout.log_probs, rtol=0, atol=1e-5)
  # Without the masks they would be others.
  seen = dataclasses.replace(found.rollout.episode_inputs, visible_from=None, kept=0)
  scores = _scores(prompt, dataclasses.replace(found.rollout, episode_inputs=seen))
  last = _last_turn(found.rollout)
  assert abs(scores - np.asarray(found.rollout.log_probs))[last].max() > 1e-3


def test_a_window_that_holds_all_turns_is_none():
  (_, whole), (_, wide) = _play_episodes(None), _play_episodes(TURNS - 1)
  assert wide.rollout.episode_inputs.visible_from is None
  for one, other in zip(*map(jax.tree.leaves, (whole.rollout, wide.rollout)), strict=True):
    np.testing.assert_array_equal(one, other)


def test_what_is_forgotten_has_no_influence():
  """Of a window of 0 no turn sees another; only the first tokens of the prompt are kept."""
  prompt, found = _play_episodes(0)
  rollout = jax.tree.map(np.array, found.rollout)
  last, before = _last_turn(rollout), rollout.turn < TURNS - 1
  text = (rollout.episode_inputs.media_index < 0) & (rollout.kind != records.Kind.PAD)
  tokens = np.where(before & text, (rollout.tokens + 7) % 60, rollout.tokens)
  opening = np.array(prompt.tokens)
  behind = (np.asarray(prompt.media_index) < 0) & (np.asarray(prompt.kind) != records.Kind.PAD)
  behind[:, :KEPT] = False
  opening = np.where(behind, (opening + 7) % 60, opening)
  other_prompt = dataclasses.replace(prompt, tokens=opening)
  other = dataclasses.replace(rollout, tokens=tokens)
  scores, changed = _scores(prompt, rollout), _scores(other_prompt, other)
  np.testing.assert_array_equal(scores[last], changed[last])
  assert (scores[before & (rollout.kind == records.Kind.MODEL)] != 0).any()
  assert abs(scores - changed)[before].max() > 1e-3
  # What is kept has influence.
  opening[:, :KEPT] = (opening[:, :KEPT] + 7) % 60
  kept = _scores(dataclasses.replace(prompt, tokens=opening), other)
  assert abs(scores - kept)[last].max() > 1e-4


def test_no_gradient_reaches_what_is_forgotten():
  """The features of frames that forgotten turns showed."""
  prompt, found = _play_episodes(0)
  rollout = found.rollout
  last = _last_turn(rollout)

  def of_media(media):
    suffix = dataclasses.replace(rollout.episode_inputs, media=media)
    changed = dataclasses.replace(rollout, episode_inputs=suffix)
    return (test_episodes._scores(*chat.network(), prompt, changed, None) * last).sum()

  gradient = np.asarray(jax.grad(of_media)(rollout.episode_inputs.media))
  index, turn = np.asarray(rollout.episode_inputs.media_index), np.asarray(rollout.turn)
  of_last, shown = np.zeros(gradient.shape[:2], bool), np.zeros(gradient.shape[:2], bool)
  for row in range(len(index)):
    of_last[row, index[row][(index[row] >= 0) & (turn[row] == TURNS - 1)]] = True
    shown[row, index[row][(index[row] >= 0) & (turn[row] < TURNS - 1)]] = True
  assert shown.any() and (gradient[shown] == 0).all()
  assert (gradient[of_last] != 0).any()


@pytest.mark.parametrize("shape", [(2, 1, 1, 2), (1, 2, 2, 1)])
def test_on_a_mesh_what_is_forgotten_is_the_same(shape):
  mesh = mesh_lib.make_mesh(shape, jax.devices()[:4])
  schedule = {"turns": TURNS, "window": 0, "kept": KEPT}
  prompt, split = test_episodes._play(mesh=mesh, group=GROUP, schedule=schedule)
  test_episodes._same(_play_episodes(0)[1], split)
  graphdef, params = chat.network(mesh)
  scores = test_episodes._scores(graphdef, params, prompt, split.rollout, None)
  np.testing.assert_allclose(scores, split.rollout.log_probs, rtol=0, atol=1e-5)
