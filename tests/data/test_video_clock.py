"""When a clock starts anew, and when frames are only out of order."""

from pathlib import Path

import av
import pytest

from vr_jax.data import video_clock
from vr_jax.errors import InputError


def times(shown, decoded, *, may_restart=True):
  """Gives a clock frames of 0.1 s: PTS and DTS in tenths of seconds."""
  clock = video_clock.VideoClock(path=Path("a.ts"), may_restart=may_restart)
  found = []
  for at, to_decode in zip(shown, decoded, strict=True):
    clock.observe_dts(to_decode / 10)
    frame = av.VideoFrame(16, 16, "rgb24")
    found.append(clock.add(frame, at / 10, 0.1, 1.0).start)
  return found


def test_where_times_of_decoding_go_back_the_clock_starts_anew():
  assert times([20, 21, 22, 5, 6], [20, 21, 22, 5, 6]) == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_where_they_jump_ahead_as_well():
  assert times([20, 21, 922, 923], [20, 21, 922, 923]) == pytest.approx([0, 0.1, 0.2, 0.3])


def test_frames_out_of_order_alone_are_damage():
  with pytest.raises(InputError, match=r"a\.ts: is damaged after 0\.30 s"):
    times([20, 21, 22, 17, 23], [20, 21, 22, 23, 24])


def test_a_format_with_one_clock_has_no_second():
  with pytest.raises(InputError, match=r"its clock goes back"):
    times([20, 21, 22, 1], [20, 21, 22, 1], may_restart=False)


def test_nor_does_it_jump_by_days():
  assert times([20, 21, 600_000], [20, 21, 600_000], may_restart=False)[2] == pytest.approx(59_998)
  with pytest.raises(InputError, match=r"its clock jumps from 2\.10 s to 200000\.00 s"):
    times([20, 21, 2_000_000], [20, 21, 2_000_000], may_restart=False)


def test_a_jump_of_dts_that_the_pts_did_not_follow_excuses_no_later_one():
  smooth = [20 + index for index in range(100)]
  decoded = [*smooth[:50], 900, *smooth[51:]]  # away and back
  assert len(times(smooth, decoded)) == 100
  decoded = [20, 900, *smooth[2:], 120]
  with pytest.raises(InputError, match=r"is damaged after 10\.00 s"):
    times([*smooth, 5], decoded)
