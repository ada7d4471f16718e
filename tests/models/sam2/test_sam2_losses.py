"""The losses that the tracker is trained with, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from vr_jax.models.sam2 import losses, mask_decoder

# Out of sight on the second frame.
TRUE = jnp.zeros((1, 2, 16, 16), bool).at[0, 0, 4:12, 4:12].set(True)


def decoded(masks, qualities=(0.5, 0.5, 0.5, 0.5), score=0.0):
  """The same answer on two frames. masks: four [4, 4] arrays of logits."""
  return mask_decoder.Decoded(
    masks=jnp.broadcast_to(jnp.asarray(masks, jnp.float32), (2, 1, 4, 4, 4)),
    qualities=jnp.broadcast_to(jnp.asarray(qualities, jnp.float32), (2, 1, 4)),
    tokens=jnp.zeros((2, 1, 4, 8)),
    score=jnp.full((2, 1), score, jnp.float32),
  )


RIGHT = np.where(np.pad(np.ones((2, 2), bool), 1), 20.0, -20.0)
WRONG = -RIGHT


def test_focal_and_dice_losses_are_their_formulas():
  logits = jnp.asarray([[1.0, -2.0], [0.5, 3.0]])
  target = jnp.asarray([[1.0, 0.0], [0.0, 1.0]])
  p = 1 / (1 + np.exp(-np.asarray(logits)))
  right = np.where(target == 1, p, 1 - p)
  balance = np.where(target == 1, 0.25, 0.75)
  expected = np.mean(-balance * (1 - right) ** 2 * np.log(right))
  assert float(losses.focal_loss(logits, target)) == pytest.approx(expected, rel=1e-5)
  expected = 1 - (2 * np.sum(p * np.asarray(target)) + 1) / (p.sum() + 2 + 1)
  assert float(losses.dice_loss(logits, target)) == pytest.approx(expected, rel=1e-5)


def test_only_the_best_of_three_masks_is_trained_and_none_where_nothing_is_seen():
  ambiguous = jnp.zeros(1, bool)
  good = losses.compute_losses(decoded([WRONG, WRONG, RIGHT, WRONG]), TRUE, ambiguous)
  bad = losses.compute_losses(decoded([RIGHT, WRONG, WRONG, WRONG]), TRUE, ambiguous)
  assert float(good.dice) < 0.3 < 0.9 < float(bad.dice)
  assert float(good.focal) < float(bad.focal)


def test_a_clear_prompt_trains_the_first_mask():
  clear = jnp.ones(1, bool)
  good = losses.compute_losses(decoded([RIGHT, WRONG, WRONG, WRONG]), TRUE, clear)
  bad = losses.compute_losses(decoded([WRONG, RIGHT, RIGHT, RIGHT]), TRUE, clear)
  assert float(good.dice) < 0.3 < 0.9 < float(bad.dice)


def test_predicted_iou_is_trained_for_all_masks_offered_and_the_score_on_all_frames():
  found = losses.compute_losses(
    decoded([WRONG, RIGHT, WRONG, WRONG], (0.0, 1.0, 0.0, 0.3), score=2.0), TRUE, jnp.zeros(1, bool)
  )
  overlap = float(losses.iou(jnp.asarray(RIGHT) > 0, jnp.asarray(RIGHT) > 0))
  assert overlap == 1
  # The right mask is 1 or nearly so, the wrong ones 0: only the last one's 0.3 is an error.
  assert float(found.quality) == pytest.approx(0.1, abs=1e-3)
  expected = (np.log1p(np.exp(-2.0)) + np.log1p(np.exp(2.0))) / 2
  assert float(found.score) == pytest.approx(expected, rel=1e-5)
  total = 20 * found.focal + found.dice + found.quality + found.score
  assert float(found.total) == pytest.approx(float(total))
