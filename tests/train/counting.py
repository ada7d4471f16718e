"""`python -m tests.train.counting …`: vr_jax.main with an environment that has a state.

Its rewards always differ. The real rewards of an untrained network are 0, so training would change
nothing; and the environment of MOSS-ChatV has no state to resume.
"""

from collections.abc import Mapping, Sequence
import sys
from typing import Any
import zlib

import numpy as np

from vr_jax import main, records
from vr_jax.envs import environment, moss_chatv, registry


class Counting(moss_chatv.MossChatV):
  """MOSS-ChatV with a reward that depends on the text and on the number of earlier replies."""

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
    return records.Scores(rewards=rewards, scored=scores.scored, total=scores.total + luck), {}

  def state(self) -> Mapping[str, Any]:
    return {"seen": self._seen}

  def set_state(self, state: Mapping[str, Any]) -> None:
    self._seen = state["seen"]


if __name__ == "__main__":
  registry.ENVIRONMENTS["moss_chatv"] = Counting
  sys.exit(main.cli())
