"""`python -m tests.train.counting …`: vr_jax.main with an environment that has a state.

Its rewards always differ. The real rewards of an untrained network are 0, so training would change
nothing; and the environment of MOSS-ChatV has no state to resume.
"""

import sys

from tests.faults import witness
from vr_jax import main
from vr_jax.envs import moss_chatv, registry


class Counting(witness.Luck, moss_chatv.MossChatV):
  """MOSS-ChatV with a reward that depends on the text and on the number of earlier replies."""


if __name__ == "__main__":
  registry.ENVIRONMENTS["moss_chatv"] = Counting
  sys.exit(main.cli())
