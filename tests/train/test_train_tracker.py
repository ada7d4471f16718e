"""A SAM2 that is trained from nothing: first single pictures, then clips."""

import numpy as np

from vr_jax.models import sam2
from vr_jax.train import train_tracker

SIDE = 64


def moving_square(index):
  """Ten frames of a square that moves to the right; a second object is out of sight."""
  masks = np.zeros((2, 10, SIDE, SIDE), bool)
  for frame in range(10):
    masks[0, frame, 20 + index : 44, 4 + 2 * frame : 28 + 2 * frame] = True
  frames = np.where(masks[0][..., None], np.array([200, 30, 30]), np.array([30, 30, 60]))
  return frames.astype(np.uint8), masks


def test_single_pictures_come_first_and_are_learnt():
  seen = []
  segmenter = train_tracker.train(
    sam2.smallest(SIDE),
    moving_square,
    picture_steps=20,
    steps=0,
    scenes=2,
    learning_rate=2e-3,
    seed=0,
    on_progress=seen.append,
    report_every=1,
  )
  assert segmenter.config.image_size == SIDE
  assert [each.step for each in seen] == list(range(1, 21))
  first, last = (np.mean([each.loss for each in part]) for part in (seen[:5], seen[-5:]))
  assert last < 0.8 * first
