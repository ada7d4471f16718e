"""The benchmark of steps on long videos, at the smallest size: its line. No times are checked."""

import json
import subprocess

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


@pytest.mark.parametrize(("last", "code"), [(120.0, 0), (130.0, 1)])
def test_memory_that_grows_faster_than_the_goal_is_an_exit_code(monkeypatch, capsys, last, code):
  megabytes = dict(zip(map(str, long_step.MINUTES), (90.0, 100.0, last), strict=True))

  def run(command, **_):
    line = json.dumps({"update_megabytes": megabytes[command[-1]]})
    return subprocess.CompletedProcess(command, 0, stdout=line)

  monkeypatch.setattr(long_step.subprocess, "run", run)
  assert long_step.main([]) == code
  assert json.loads(capsys.readouterr().out)["met"] == (code == 0)
