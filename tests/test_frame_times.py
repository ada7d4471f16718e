"""Frames are found by their times, and by no other's."""

from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest

from vr_jax import frame_times


def test_a_frame_is_found_by_its_own_time_within_a_tick():
  times, wanted = np.array([0.0, 0.125, 0.25]), np.array([0.12505, 0.1252, 0.25, -1.0, 9.0])
  assert frame_times.find(times, wanted).tolist() == [1, -1, 2, -1, -1]


def test_without_frames_nothing_is_found():
  assert frame_times.find(np.zeros(0), np.array([0.0])).tolist() == [-1]


@given(st.lists(st.integers(0, 900), min_size=1, unique=True), st.floats(-1, 1000))
def test_the_nearest_frame_is_nearest(ticks, wanted):
  times = np.sort(ticks) / 3.0
  (index,) = frame_times.nearest(times, np.array([wanted]))
  assert abs(times[index] - wanted) == pytest.approx(np.abs(times - wanted).min())
