import importlib.util
import json
import math
from pathlib import Path

import numpy as np
import pytest

from tests.train import nano
from vr_jax import records
from vr_jax.data import sampling
from vr_jax.errors import InputError
from vr_jax.train import paths

GOLDEN = Path(__file__).parent.parent / "golden" / "frame_sampling.json"
HAS_TORCH = importlib.util.find_spec("torch") is not None


def choose(timestamps, start, end, rule, ends=None):
  """The frames of a span. ends: None if no frame stays on the screen."""
  span, times = records.Span(start=start, end=end), np.asarray(timestamps, float)
  ends = times if ends is None else np.asarray(ends, float)
  return sampling.choose(times, ends, span, rule, where="example 'one'").tolist()


def seconds(total, fps):
  return np.arange(total) / fps


def test_indices_are_those_of_pytorch_linspace_and_round_on_golden_cases():
  """The golden file of torch 2.13 (see tests/golden/frame_sampling.py): every index is equal."""
  for case in json.loads(GOLDEN.read_text()):
    first, last, indices = case["first"], case["last"], case["indices"]
    rule = sampling.UniformRule(frames=len(indices))
    assert choose(seconds(last + 1, 1), first, last + 1, rule) == indices


@pytest.mark.skipif(not HAS_TORCH, reason="torch is not installed: the golden cases cover it")
def test_indices_are_those_of_pytorch_linspace_and_round_on_random_cases():
  import torch

  rng = np.random.default_rng()
  for _ in range(500):
    first, total = int(rng.integers(0, 2000)), int(rng.integers(2, 800))
    count = 2 * int(rng.integers(1, total // 2 + 1))
    expected = torch.linspace(first, first + total - 1, count).round().long().tolist()
    chosen = choose(
      seconds(first + total, 1), first, first + total, sampling.UniformRule(frames=count)
    )
    assert chosen == expected, (first, total, count)


def qwen_frame_count(total, video_fps, rule):
  """smart_nframes of qwen-vl-utils 0.0.14 with frame factor 2, reimplemented."""
  minimum, maximum = math.ceil(rule.min_frames / 2) * 2, math.floor(rule.max_frames / 2) * 2
  count = min(min(max(total / video_fps * rule.fps, minimum), maximum), total)
  return math.floor(count / 2) * 2


@pytest.mark.parametrize("video_fps", [1.0, 2.0, 4.0])
@pytest.mark.parametrize(("low", "high"), [(4, 768), (3, 15), (2, 16), (8, 8)])
def test_a_rate_takes_as_many_frames_as_qwen_does(video_fps, low, high):
  for fps in (0.5, 1.0, 2.0):
    rule = sampling.RateRule(fps=fps, min_frames=low, max_frames=high)
    for total in range(8, 120):
      chosen = choose(seconds(total, video_fps), 0.0, 1e6, rule)
      assert len(chosen) == qwen_frame_count(total, video_fps, rule), (fps, total)
      assert chosen[0] == 0 and chosen[-1] == total - 1


def test_the_tiny_recipe_sees_a_frame_a_second_and_not_the_first_of_the_masked_future():
  assert choose(seconds(10, 1), 0, 8, sampling.UniformRule(frames=8)) == list(range(8))
  assert choose(seconds(10, 1), 0, 8, sampling.RateRule(fps=1.0, max_frames=16)) == list(range(8))


def test_clocks_that_are_a_little_off_do_not_move_frames_over_the_edges():
  rng = np.random.default_rng(0)
  wobbly = seconds(10, 1) + rng.uniform(-5e-5, 5e-5, 10)
  assert choose(wobbly, 2, 8, sampling.UniformRule(frames=6)) == [2, 3, 4, 5, 6, 7]
  assert choose(wobbly, 2, 8, sampling.RateRule(fps=1.0)) == [2, 3, 4, 5, 6, 7]


def test_an_odd_number_of_frames_is_rounded_to_a_multiple_of_two():
  assert len(choose(seconds(20, 1), 0, 20, sampling.UniformRule(frames=7))) == 8
  assert len(choose(seconds(9, 1), 0, 9, sampling.RateRule(fps=1.0))) == 8


UNIFORM, RATE = sampling.UniformRule(frames=10), sampling.RateRule(fps=4.0, min_frames=10)


@pytest.mark.parametrize("rule", [UNIFORM, RATE, sampling.RateRule(fps=4.0)], ids=str)
@pytest.mark.parametrize(
  ("available", "chosen"),
  [
    (9, [0, 1, 2, 3, 5, 6, 7, 8]),  # linspace(0, 8, 8), rounded
    (8, list(range(8))),
    (3, [0, 2]),
    (2, [0, 1]),
    (1, [0]),
  ],
)
def test_a_short_span_shows_the_frames_it_has_an_even_number_or_one(rule, available, chosen):
  start = 5.0
  found = choose(seconds(60, 2), start, start + available / 2, rule)
  assert [frame - 10 for frame in found] == chosen


@pytest.mark.parametrize(
  ("make", "kind"),
  [
    (lambda **fields: sampling.UniformRule(frames=16, **fields), "uniform"),
    (lambda **fields: sampling.RateRule(fps=2.0, **fields), "fps"),
    (lambda **fields: sampling.PoolRule(frames=16, **fields), "pool"),
  ],
)
def test_a_span_with_fewer_frames_than_required_is_an_error_that_names_the_example(make, kind):
  data = nano.config(data__required_frames=9, data__sampling=kind).data
  assert paths.sampling_rule(data).required == 9
  assert len(choose(seconds(60, 2), 1, 5, make(required=8))) == 8
  with pytest.raises(InputError, match=r"example 'one': 1 to 5 s .* holds 8 stored frames, .* 9"):
    choose(seconds(60, 2), 1, 5, make(required=9))


def test_a_span_without_frames_is_an_error_whose_advice_can_help():
  with pytest.raises(InputError, match=r"40 to 50 s shows nothing: .* ends at 29\.5 s; correct"):
    choose(seconds(60, 2), 40, 50, UNIFORM)
  with pytest.raises(InputError, match=r"of 1\.1 to 1\.4 s no frame is stored; store more"):
    choose(seconds(60, 2), 1.1, 1.4, UNIFORM)


SLIDES = [0.0, 30.0, 60.0], [30.0, 60.0, 90.0]


@pytest.mark.parametrize(
  ("start", "end", "chosen", "times"),
  [
    (35, 55, [1], [35]),  # the slide on the screen
    (35, 65, [1, 2], [35, 60]),
    (0, 90, [0, 2], [0, 60]),
    (30, 60, [1], [30]),
    (29, 30, [0], [29]),
    (89, 90, [2], [89]),
    (59.99995, 90, [2], [60]),  # clocks that are a little off
  ],
)
def test_the_frame_on_the_screen_when_a_span_starts_is_shown(start, end, chosen, times):
  starts, ends = map(np.array, SLIDES)
  assert choose(starts, start, end, UNIFORM, ends) == chosen
  span = records.Span(start=start, end=end)
  np.testing.assert_allclose(sampling.shown_times(starts, np.array(chosen), span), times)
  assert choose(starts, start, end, sampling.PoolRule(frames=8), ends)[0] == chosen[0]


def test_a_frame_that_has_left_the_screen_is_not_shown():
  ends = seconds(60, 2) + 1 / 30
  assert choose(seconds(60, 2), 1.1, 2.6, UNIFORM, ends) == [3, 5]
  with pytest.raises(InputError, match="no frame is stored"):
    choose(seconds(60, 2), 1.1, 1.4, UNIFORM, ends)


@pytest.mark.parametrize(
  "make",
  [
    lambda: sampling.UniformRule(frames=0),
    lambda: sampling.UniformRule(frames=-4),
    lambda: sampling.RateRule(fps=0.0),
    lambda: sampling.RateRule(fps=math.nan),
    lambda: sampling.RateRule(fps=1.0, min_frames=8, max_frames=4),
    lambda: sampling.RateRule(fps=1.0, min_frames=1, max_frames=1),
  ],
)
def test_a_rule_that_asks_for_no_frames_is_an_error(make):
  with pytest.raises(InputError, match="frame sampling"):
    make()


@pytest.mark.parametrize(
  "rule", [sampling.UniformRule(frames=16), sampling.RateRule(fps=2.0)], ids=str
)
def test_a_still_is_its_one_frame_whatever_the_rule(rule):
  moment = records.Span(start=0.0, end=0.0)
  assert sampling.choose(np.zeros(1), np.zeros(1), moment, rule, where="x").tolist() == [0]
  assert sampling.shown_range(np.zeros(1), np.zeros(1), moment) == (0, 1)


def _pool(timestamps, start, end, size):
  span, rule = records.Span(start=start, end=end), sampling.PoolRule(frames=size)
  return sampling.choose(timestamps, timestamps, span, rule, where="q").tolist()


def test_a_pool_is_spread_over_what_is_shown_and_holds_no_frame_twice():
  seconds = np.arange(20) / 2
  assert _pool(seconds, 2.0, 8.0, 4) == [4, 8, 11, 15]
  assert _pool(seconds, 2.0, 8.0, 128) == list(range(4, 16))
  assert _pool(seconds, 2.0, 8.0, 1) == [4]
  for size in range(1, 30):
    assert (np.diff(_pool(seconds, 2.0, 8.0, size)) > 0).all()
  with pytest.raises(InputError, match="q: 20 to 30 s shows nothing"):
    _pool(seconds, 20.0, 30.0, 8)


def test_a_tick_that_came_a_little_early_is_in_the_pool_of_its_second():
  assert _pool(np.array([0.0, 0.99995, 1.99995]), 1.0, 2.0, 8) == [1]
