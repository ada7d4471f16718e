"""The process that the others wait for is found by its own work, and named once."""

import time

import numpy as np
import pytest

from vr_jax.parallel import processes
from vr_jax.train import slow_process, step_timer


def test_a_slow_process_makes_a_step_as_much_longer_as_its_work_exceeds_the_others():
  found = slow_process.compare([0.5, 6.5, 0.4, 0.6], 12.0)
  assert found["perf/slowest_process"] == 1
  assert found["perf/time/slowest_process"] == 6.5
  assert found["perf/slowest_process_ratio"] == pytest.approx(2.0)  # 12 s instead of 6


def test_what_a_process_waits_for_others_is_not_its_own_work(monkeypatch):
  clock = iter((0.0, 1.0, 5.0, 7.0, 8.0))
  monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
  waits = iter((10.0, 10.0, 13.5, 13.5, 13.5))
  monkeypatch.setattr(processes, "seconds_waited", lambda: next(waits))
  timer = step_timer.StepTimer()
  for part in ("data", "reward", "update", "log"):
    timer.record(part)
  assert timer.own_seconds == 1 + 0.5 + 1  # of the 4 s of scoring it waited 3.5
  assert timer.seconds == 8


def test_one_that_stays_slow_is_named_once_and_again_after_it_was_fast(monkeypatch, capsys):
  monkeypatch.setattr(processes, "gather_texts", lambda kind, text: ["host-0", "host-1"])
  watch = slow_process.SlowProcessWatch("rl")
  timer = step_timer.StepTimer()
  timer.record("data")
  said = []
  for step, seconds in enumerate([9, 9, 0, 9, 9, 9, 9, 0, 9, 9, 9], start=1):
    values = np.array([[0.5, 10], [seconds, 10]])
    monkeypatch.setattr(processes, "all_gather", lambda own, values=values: values)
    found = watch.note(step, timer)
    assert found["perf/slowest_process"] == (seconds > 0)
    said += capsys.readouterr().err.splitlines()
  assert [line.partition(":")[0] for line in said] == ["rl step 6", "rl step 11"]
  assert "all wait for process 1 on host-1, which makes steps 6.7 times as long" in said[0]
  assert "for 9.0 s a step, the others for 0.5 s" in said[0]


def test_a_run_of_one_process_has_none():
  assert slow_process.SlowProcessWatch("sft").note(1, step_timer.StepTimer()) == {}
