"""A SAM2 that is trained from nothing: first single pictures, then clips."""

import functools
import re

import numpy as np

from vr_jax.models import sam2
from vr_jax.models.sam2 import parameters
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


def test_the_command_learns_from_clips_and_writes_what_sam2_loads(tmp_path, monkeypatch, capsys):
  every_step = functools.partial(train_tracker.train, report_every=1)
  monkeypatch.setattr(train_tracker, "train", every_step)
  flags = [
    f"--out={tmp_path / 'sam2'}",
    "--picture_steps=0",
    "--steps=8",
    "--scenes=1",
    "--side=32",
    "--learning_rate=2e-3",
  ]
  assert train_tracker.main(flags) == 0
  found = [
    re.fullmatch(r"step (\d+): loss ([\d.]+), IoU [\d.]+, \d+ s", line)
    for line in capsys.readouterr().out.splitlines()
  ]
  assert [int(each[1]) for each in found] == list(range(1, 9))
  reported = [float(each[2]) for each in found]
  assert np.mean(reported[-3:]) < 0.8 * np.mean(reported[:3])
  loaded = sam2.load(tmp_path / "sam2")
  assert loaded.config == sam2.smallest(32)
  # What an object is remembered by was learnt: the loss of later frames reaches the first one.
  fresh = parameters.initialise(loaded.config, 0)
  of_memory = [name for name in fresh if name.startswith(("memory_attention.", "memory_encoder."))]
  same = [name for name in of_memory if np.array_equal(loaded.params[name], fresh[name])]
  assert of_memory and not same, same
  assert train_tracker.main(flags) == 2
  assert capsys.readouterr() == ("", f"train_tracker: {flags[0]}: is there already\n")
