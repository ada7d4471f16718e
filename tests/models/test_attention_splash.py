"""Masks and blocks of the splash kernel; its results: test_qwen2_5_vl_attention.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vr_jax.models.common import attention_splash, attention_xla, zigzag

# Prompts and replies of all sizes, with keys between the prefix and the replies.
MASKS = [
  attention_splash.RepliesMask(group=1, time=12, fill=(4, 4)),
  attention_splash.RepliesMask(group=3, time=4, prefix=9, fill=(0, 3)),
  attention_splash.RepliesMask(group=3, time=2, prefix=8, fill=(2, 6)),
  attention_splash.RepliesMask(group=2, time=1, prefix=1),
]
# (group, keys, prefix, parts, folded)
PARTS = [(1, 24, 0, 2, False), (1, 24, 0, 3, True), (3, 6, 9, 3, False), (1, 4, 5, 2, False)]


def _pairs(mask):
  """The definition, pair by pair."""
  seen = np.zeros(mask.shape, bool)
  for row, column in np.ndindex(mask.shape):
    reply, place = divmod(min(row, mask.group * mask.time - 1), mask.time)
    own = column - mask.prefix - reply * mask.time
    seen[row, column] = column < mask.prefix or 0 <= own <= place
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
  mask = attention_splash.RepliesMask(group=1, time=65536)
  starts = range(0, 65536, 1024)
  parts = [mask[row : row + 1024, column : column + 1024] for row in starts for column in starts]
  assert sum(part.size > 1 for part in parts) == len(starts)


@pytest.mark.parametrize(("group", "keys", "prefix", "parts", "folded"), PARTS, ids=str)
def test_a_part_sees_its_rows_of_the_mask_and_skips_the_blocks_of_which_it_sees_nothing(
  group, keys, prefix, parts, folded
):
  whole = _pairs(attention_splash.RepliesMask(group=group, time=keys, prefix=prefix))
  order = zigzag.order(keys, parts) if folded else np.arange(keys)
  tokens = order.reshape(parts, 1, -1)
  seen = attention_splash.SeenKeys(group=group, keys=keys, prefix=prefix)
  numbers = seen.number(np.arange(group)[:, None], tokens).reshape(parts, -1)
  rows = (np.arange(group)[:, None] * keys + tokens).reshape(parts, -1)
  columns, sides = whole.shape[1], (rows.shape[1] // 2, 3)
  blocks = seen.blocks(numbers, columns + -columns % 3, sides)
  following = attention_splash._next_blocks(blocks)
  for part, row in enumerate(rows):
    expected = whole[row]
    np.testing.assert_array_equal(seen(numbers[part][:, None], np.arange(columns)), expected)
    padded = np.pad(expected, ((0, 0), (0, -columns % 3)))
    tiles = padded.reshape(2, sides[0], -1, sides[1]).any(axis=(1, 3))
    np.testing.assert_array_equal(blocks[part], tiles)
    order = np.argwhere(tiles)  # of the grid
    for place in np.ndindex(tiles.shape):
      later = [column for (*at, column) in order if (*at, column) >= place]
      assert following[part][place] == (later or order[:, 1])[0]


@pytest.mark.parametrize(
  ("parts", "block"),
  [
    ((8448,), 512),  # blocks of 256 divide it, but are four times as many
    ((8448, 8192), 512),
    ((8448, 256), 512),
    ((67584,), 512),
    ((640,), 128),
    ((256, 1024), 256),
    ((40,), 128),
    ((200,), 256),
    ((4096, 40), 256),
  ],
)
def test_blocks_are_as_large_as_a_little_padding_allows(parts, block):
  assert attention_splash.choose_block(*parts) == block


@pytest.mark.parametrize(("group", "time"), [(2, 260), (3, 250)])
def test_a_long_prompt_and_its_replies_are_padded_apart(group, time):
  """Against plain products; only some tokens are valid, and their gradients are compared, too."""
  prefix, rng = 1000, np.random.default_rng(0)  # to 1,024; 520 replies' tokens to 640, 750 to 768

  def draw(*shape):
    return rng.standard_normal((1, *shape, 1, 8), np.float32)

  arrays = draw(group, time), draw(prefix), draw(prefix), draw(group, time), draw(group, time)
  prefix_valid = jnp.arange(prefix)[None] < 990
  own_valid = jnp.arange(time) < jnp.array([time, 7, time])[None, :group, None]

  def loss(attend, query, prefix_key, prefix_value, key, value):
    blocks = (prefix_key, prefix_value, prefix_valid, key, value, own_valid)
    mixed = attend(query, *blocks, jnp.arange(time))
    mixed = jnp.where(own_valid[..., None, None], mixed, 0)
    return (mixed * jnp.cos(jnp.arange(mixed.size).reshape(mixed.shape))).sum(), mixed

  def both(attend):
    gradients = jax.grad(functools.partial(loss, attend), argnums=range(5), has_aux=True)
    return jax.jit(gradients)(*arrays)

  found = both(functools.partial(attention_splash.attend_replies, interpret=True))
  expected = both(attention_xla.attend_replies)
  for mine, wanted in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(mine, wanted, rtol=0, atol=1e-5 * float(jnp.abs(wanted).max()))


def test_in_bfloat16_a_gradient_that_is_summed_from_parts_is_rounded_a_little_more():
  """Of queries, whose parts are those of blocks of keys; against plain products in float32."""
  length, rng = 1024, np.random.default_rng(0)
  query, key, value, outer = (rng.standard_normal((1, length, 1, 8), np.float32) for _ in range(4))
  segment = jnp.ones((1, length), jnp.int32)

  def gradient(attend, dtype):
    def loss(query):
      arrays = (query, *(jnp.asarray(x, dtype) for x in (key, value)))
      mixed = attend(*arrays, segment, segment, jnp.arange(length), causal=True)
      return (mixed.astype(jnp.float32) * outer).sum()

    return np.asarray(jax.grad(loss)(jnp.asarray(query, dtype)), np.float32)

  exact = gradient(attention_xla.attend_segments, jnp.float32)
  errors = []
  for fused in (False, True):
    attend = functools.partial(attention_splash.attend_segments, fused=fused, interpret=True)
    errors.append(np.linalg.norm(gradient(attend, jnp.bfloat16) - exact) / np.linalg.norm(exact))
  assert errors[0] < errors[1] < 0.02, errors
