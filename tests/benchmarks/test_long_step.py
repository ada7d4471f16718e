"""The benchmark of steps on long videos, at the smallest size: its line. No times are checked."""

import json

import pytest

from benchmarks import long_step
from tests.train import nano


def test_a_step_on_a_video_is_measured(tmp_path, monkeypatch):
  nano.use_devices(monkeypatch, 1)
  fields = long_step.fields(0.5)
  small = {name.replace(".", "__"): value for name, value in nano.OVERRIDES.items()}
  small = {name: value for name, value in small.items() if name not in fields}
  small |= {"rl__num_generations": 2, "rl__max_new_tokens": 4}
  found = long_step.measure_length(0.5, tmp_path, **small)
  assert found["tokens"] == 15 * 16 + long_step.SPARE
  assert found["seconds"] > 0 and found["update_megabytes"] > 1
  json.dumps(found)


def test_growth_is_1_of_linear_memory_and_2_of_quadratic():
  assert long_step.growth((1, 2, 4), (110, 120, 140)) == 1
  assert long_step.growth((1, 2, 4), (101, 104, 116)) == pytest.approx(2)
