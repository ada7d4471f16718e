"""Masks of the splash kernel; its results: test_qwen2_5_vl_attention.py."""

import numpy as np
import pytest

from vr_jax.models.common import attention_splash

# Prompts, replies of all sizes, parts of replies, with keys between the prefix and the replies.
MASKS = [
  attention_splash.RepliesMask(group=1, time=12, keys=12, fill=(4, 4)),
  attention_splash.RepliesMask(group=1, time=6, keys=12, first=6, fill=(2, 0)),
  attention_splash.RepliesMask(group=1, time=4, keys=12, first=2, jump=4, fill=(2, 0)),
  attention_splash.RepliesMask(group=3, time=4, keys=4, prefix=9, fill=(0, 3)),
  attention_splash.RepliesMask(group=3, time=2, keys=6, prefix=8, first=2, fill=(2, 6)),
  attention_splash.RepliesMask(group=2, time=1, keys=1, prefix=1),
]


def _pairs(mask):
  """The definition, pair by pair."""
  seen = np.zeros(mask.shape, bool)
  for row, column in np.ndindex(mask.shape):
    reply, place = divmod(min(row, mask.group * mask.time - 1), mask.time)
    own = column - mask.prefix - reply * mask.keys
    token = mask.first + place + (mask.jump if place >= mask.time // 2 else 0)
    seen[row, column] = column < mask.prefix or 0 <= own <= token
  return seen


@pytest.mark.parametrize("mask", MASKS, ids=str)
def test_every_part_of_a_mask_is_that_of_its_pairs(mask):
  pairs = _pairs(mask)
  for first, left in np.ndindex(mask.shape):
    for end in range(first + 1, mask.shape[0] + 1):
      for right in range(left + 1, mask.shape[1] + 1):
        part, expected = mask[first:end, left:right], pairs[first:end, left:right]
        np.testing.assert_array_equal(np.broadcast_to(part, expected.shape), expected)


def test_of_a_long_prompt_only_blocks_with_an_edge_are_computed_pair_by_pair():
  mask = attention_splash.RepliesMask(group=1, time=65536, keys=65536)
  starts = range(0, 65536, 1024)
  parts = [mask[row : row + 1024, column : column + 1024] for row in starts for column in starts]
  assert sum(part.size > 1 for part in parts) == len(starts)
