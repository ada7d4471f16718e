"""The length reward: right format, and the more of it the longer the reasoning, in characters."""

from collections.abc import Sequence

from jaxtyping import Float
import numpy as np

from vr_jax.rewards import format as format_lib
from vr_jax.rewards import steps

WORST = -2.0  # what a wrong answer without the right format earns in all


def length_rewards(replies: Sequence[str], characters: int) -> Float[np.ndarray, "replies"]:
  """0.5 for the right format, and up to 0.5 more for `characters` of reasoning; 0 without format.

  Source: TinyLLaVA-Video-R1, arXiv 2504.09641, and its published code.
  """
  full = np.array([min(len(steps.think_text(reply)) / characters, 1.0) for reply in replies])
  right = np.array([format_lib.format_reward(reply) for reply in replies])
  return (right * (0.5 + 0.5 * full)).astype(np.float32)


def signed_total(
  accuracy: Float[np.ndarray, "*batch"], length: Float[np.ndarray, "*batch"]
) -> Float[np.ndarray, "*batch"]:
  """accuracy + (2 accuracy - 1) length: length is good in a right answer, and bad in a wrong one.

  A total of 0, which is that of a wrong answer in a wrong format, becomes -2.

  Source: TinyLLaVA-Video-R1, arXiv 2504.09641, and its published code.
  """
  total = accuracy + (2 * accuracy - 1) * length
  return np.where(total == 0, np.float32(WORST), total)
