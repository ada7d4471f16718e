"""Bi-level GAE of one row at a time, as loops after the formulas of paper and code, float64."""

import numpy as np


def episodes(rng, shape, turns):
  """Random episodes as (turn, mask): each turn has observation tokens, then the model's, or none.

  Rows are padded.
  """
  turn, mask = np.zeros(shape, np.int32), np.zeros(shape, bool)
  for row in np.ndindex(*shape[:2]):
    place = 0
    for number in range(rng.integers(0, turns + 1)):
      shown, written = rng.integers(0, 3), rng.integers(0, 5)
      turn[row][place:] = number
      mask[row][place + shown : place + shown + written] = True
      place += shown + written
  return turn, mask


def ends_of(turn, mask):
  """Positions of the last written token of each turn, in order."""
  written = np.flatnonzero(mask)
  return [written[turn[written] == number][-1] for number in sorted(set(turn[written]))]


def placed(process, answer, turn, mask, gamma_turn, placement):
  """One row: rewards of turns, and that of the answer, on the last tokens of turns."""
  rewards = np.zeros(len(turn))
  ends = ends_of(turn, mask)
  for index, end in enumerate(ends):
    rewards[end] = process[turn[end]]
    if placement == "every":
      rewards[end] += gamma_turn ** (len(ends) - 1 - index) * answer
    elif index == len(ends) - 1:
      rewards[end] += answer
  return rewards


def reference(rewards, values, turn, mask, gamma_turn, gamma_token, gae_lambda):
  """The advantages of one row: the turn pass replaces rewards at ends, then the token pass.

  gamma_turn: 0 if the answer is placed at every end, so that turns are episodes of their own.
  """
  ends, rewards = ends_of(turn, mask), rewards.astype(np.float64).copy()
  returns, advantage = {}, 0.0
  for index in reversed(range(len(ends))):
    after = values[ends[index + 1]] if index + 1 < len(ends) else 0.0
    delta = rewards[ends[index]] + gamma_turn * after - values[ends[index]]
    advantage = delta + gamma_turn * gae_lambda * advantage
    returns[ends[index]] = advantage + values[ends[index]]
  for end, value in returns.items():
    rewards[end] = value
  found, accumulated, after = np.zeros(len(turn)), 0.0, 0.0
  for t in reversed(np.flatnonzero(mask)):
    if t in returns:
      accumulated, after = 0.0, 0.0
    delta = rewards[t] + gamma_token * after - values[t]
    accumulated = delta + gamma_token * gae_lambda * accumulated
    found[t], after = accumulated, values[t]
  return found
