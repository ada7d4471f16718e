"""Frames of a protocol by their times, and its limits of pixels for each family."""

import dataclasses

import numpy as np
import pytest

from vr_jax import records
from vr_jax.data import benchmark_item, frame_store, video_file
from vr_jax.eval.benchmarks import asked_items, frame_cache, frame_choice

ITEM = benchmark_item.Item(
  id="1",
  benchmark="mvbench",
  split="test",
  video="v.mp4",
  question="?",
  scorer="choice",
  answer="A",
  options=("a", "b"),
)


def _store(directory, seconds: float, fps: float, native: float) -> frame_store.FrameStore:
  """A video of `native` frames a second, of which `fps` are kept."""
  times = np.arange(0, seconds, 1 / fps)
  extracted = video_file.ExtractedVideo(
    jpegs=(b"jpeg",) * len(times),
    timestamps=times,
    ends=times + 1 / native,
    height=8,
    width=8,
    duration=seconds,
    original_height=8,
    original_width=8,
  )
  directory.mkdir()
  writer = frame_store.FrameStoreWriter(directory, fps=fps, shard_megabytes=1)
  writer.add("v.mp4", extracted)
  writer.close()
  return frame_store.FrameStore(directory)


@pytest.mark.parametrize("seconds", [3.0, 20.0, 61.7, 300.0])
@pytest.mark.parametrize(
  "choice",
  [
    frame_choice.FrameChoice(count=16),
    frame_choice.FrameChoice(count=16, placement="middles"),
    frame_choice.FrameChoice(count=768, fps=1.0, placement="rounded"),
  ],
)
def test_frames_are_off_by_an_eighth_of_their_distance_at_most(tmp_path, choice, seconds):
  count = choice.count if choice.fps is None else min(choice.count, seconds * choice.fps)
  fps = frame_cache.needed_fps(count, seconds)
  store = _store(tmp_path / "store", seconds, fps, native=120.0)
  shown = records.Span(start=0.0, end=seconds)
  wanted = frame_choice.choose(choice, round(seconds * 30), 30.0) / 30
  found = store.timestamps("v.mp4")[asked_items.choose_frames(choice, store, ITEM, shown)]
  nearest = np.abs(found[:, None] - wanted).min(axis=0)
  # The last kept frame begins up to one kept interval before the end.
  slack = np.where(wanted > found[-1], 1 / fps, 0)
  assert (nearest <= seconds / count / 8 + 1 / 120 + slack).all()


def test_the_frame_on_the_screen_is_shown_though_the_next_is_nearer(tmp_path):
  store = _store(tmp_path / "store", 4.0, fps=1.0, native=1.0)  # each is shown for a second
  shown = records.Span(start=0.0, end=4.0)
  choice = frame_choice.FrameChoice(count=4, placement="inside")  # at 0.8, 1.6, 2.4 and 3.2 s
  assert asked_items.choose_frames(choice, store, ITEM, shown).tolist() == [0, 1, 2, 3]


def test_only_the_clip_is_shown(tmp_path):
  store = _store(tmp_path / "store", 60.0, fps=4.0, native=24.0)
  shown = records.Span(start=10.0, end=14.0)
  item = dataclasses.replace(ITEM, clip=shown)
  choice = frame_choice.FrameChoice(count=8)
  times = store.timestamps("v.mp4")[asked_items.choose_frames(choice, store, item, shown)]
  assert times[0] == 10.0 and 13.5 <= times[-1] < 14.0 and len(times) == 8
