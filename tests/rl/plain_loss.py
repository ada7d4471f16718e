"""The policy loss token by token in NumPy, in double precision: a reference for tests."""

import numpy as np


def log_ratios(log_probs, old, mask, level):
  """log rho of every token: its own, or the mean over its reply; 0 outside the mask."""
  ratios = np.zeros(mask.shape)
  for row in np.ndindex(mask.shape[:2]):
    here = np.flatnonzero(mask[row])
    for t in here:
      chosen = here if level == "sequence" else [t]
      ratios[row][t] = sum(log_probs[row][c] - old[row][c] for c in chosen) / len(chosen)
  return ratios


def token_losses(
  log_probs,
  old,
  advantages,
  mask,
  *,
  low=0.2,
  high=0.2,
  level="token",
  objective="clip",
  dual=None,
  weights_at=None,
):
  """The loss of each token; 0 outside the mask.

  weights_at: log-probs from which CISPO's weights, which are constants, are computed.
  """
  at = log_probs if objective == "clip" or weights_at is None else weights_at
  ratios = np.exp(log_ratios(np.asarray(at, np.float64), np.asarray(old, np.float64), mask, level))
  losses = np.zeros(mask.shape)
  for place in zip(*np.nonzero(mask), strict=True):
    ratio, advantage = ratios[place], np.float64(advantages[place])
    clipped = min(max(ratio, 1 - low), 1 + high)
    if objective == "cispo":
      losses[place] = -clipped * advantage * log_probs[place]
      continue
    gain = min(ratio * advantage, clipped * advantage)
    if dual is not None and advantage < 0:
      gain = max(gain, dual * advantage)
    losses[place] = -gain
  return losses


def aggregated(losses, mask, aggregation, constant_length=7):
  """The mean that `aggregation` names; replies without a token are none; 0 of nothing."""
  replies = [row for row in np.ndindex(mask.shape[:2]) if mask[row].any()]
  if not replies:
    return 0.0
  if aggregation == "token_mean":
    return losses[mask].mean()
  if aggregation == "sequence_mean":
    return np.mean([losses[row][mask[row]].mean() for row in replies])
  return sum(losses[row][mask[row]].sum() / constant_length for row in replies) / len(replies)


def numerical_gradient(function, at, step=1e-6):
  """Central differences of a function of one array, in double precision."""
  at = np.asarray(at, np.float64)
  gradient = np.zeros(at.shape)
  for place in np.ndindex(at.shape):
    moved = at.copy()
    moved[place] += step
    above = function(moved)
    moved[place] -= 2 * step
    gradient[place] = (above - function(moved)) / (2 * step)
  return gradient
