"""Random batches for the tests of the policy loss, of odd shapes, with empty replies and groups."""

import numpy as np

# Shape, and lengths of replies. There are padding, single tokens, and empty replies and groups.
SHAPES = {
  "one token": ((1, 1, 1), [[1]]),
  "odd": ((3, 5, 7), [[7, 3, 1, 0, 5], [0, 0, 0, 0, 0], [2, 7, 6, 1, 1]]),
  "one reply": ((1, 1, 11), [[9]]),
  "padding alone": ((2, 2, 3), [[0, 0], [0, 0]]),
}


def batch(name, *, seed=0, spread=0.6, by_reply=False):
  """Arrays by name. spread: of log-ratios; by_reply: one advantage for all tokens of a reply."""
  shape, lengths = SHAPES[name]
  rng = np.random.default_rng(seed)
  log_probs = rng.normal(-1, 0.3, shape).astype(np.float32)
  advantages = rng.normal(size=(*shape[:2], 1) if by_reply else shape)
  return {
    "log_probs": log_probs,
    "old": (log_probs + rng.normal(0, spread, shape)).astype(np.float32),
    "sampler": (log_probs + rng.normal(0, spread, shape)).astype(np.float32),
    "reference": (log_probs + rng.normal(0, 0.3, shape)).astype(np.float32),
    "advantages": np.broadcast_to(advantages, shape).astype(np.float32),
    "mask": np.arange(shape[2]) < np.array(lengths)[..., None],
  }
