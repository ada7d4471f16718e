"""`python -m tests.train.counting …`: vr_jax.main with an environment that remembers, and whose rewards always differ.

A network without training earns nothing from the real rewards, so nothing would move; and MOSS-ChatV remembers nothing.
"""

from collections.abc import Mapping, Sequence
import sys
from typing import Any
import zlib

import numpy as np

from vr_jax import main, records
from vr_jax.envs import environment, moss_chatv, registry


class Counting(moss_chatv.MossChatV):
  """Questions of MOSS-ChatV; the reward of a reply depends on its text and on all that was scored before."""

  _seen = 0

  def finish_batch(
    self,
    examples: Sequence[records.Example],
    replies: environment.Replies,
    scores: records.Scores,
    **options: Any,
  ) -> tuple[records.Scores, Mapping[str, float]]:
    flat = [reply for group in replies.texts for reply in group]
    hashes = [zlib.crc32(f"{self._seen + i} {text}".encode()) for i, text in enumerate(flat)]
    self._seen += len(flat)
    luck = (np.array(hashes) % 1000 / 1000).astype(np.float32).reshape(scores.total.shape)
    rewards = {**scores.rewards, "luck": luck}
    return records.Scores(rewards=rewards, valid=scores.valid, total=scores.total + luck), {}

  def state(self) -> Mapping[str, Any]:
    return {"seen": self._seen}

  def set_state(self, state: Mapping[str, Any]) -> None:
    self._seen = state["seen"]


if __name__ == "__main__":
  registry.ENVIRONMENTS["moss_chatv"] = Counting
  sys.exit(main.cli())
