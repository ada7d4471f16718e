"""Where the time of a run went: steps that counted, and what took the rest."""

import json

import pytest

from vr_jax import goodput


def step(time, number, seconds, stage="rl", **lost):
  return {"event": "step", "time": time, "stage": stage, "step": number, "seconds": seconds} | {
    "lost": lost
  }


def test_each_second_is_counted_once():
  found = goodput.account(
    [
      {"event": "start", "time": 100.0, "alive": 0.0},
      {"event": "stage", "time": 130.0, "stage": "rl", "first": 1},
      step(150.0, 1, 20.0, compiling=12.0),
      step(160.0, 2, 10.0, evaluation=1.0),
      step(170.0, 3, 10.0),  # after the last checkpoint: done again
      # killed in step 4, at 174; 26 s later it is started again
      {"event": "start", "time": 200.0, "alive": 174.0},
      {"event": "stage", "time": 210.0, "stage": "rl", "first": 3},
      step(220.0, 3, 10.0),
      step(230.0, 4, 10.0),
      {"event": "end", "time": 235.0, "state": "done"},
      # extended a day later
      {"event": "start", "time": 90_000.0, "alive": 235.0},
      {"event": "stage", "time": 90_010.0, "stage": "rl", "first": 5},
      step(90_020.0, 5, 10.0),
    ]
  )
  assert found is not None
  assert found.wall == 135.0 + 20.0
  assert found.counted == 8.0 + 9.0 + 10.0 + 10.0 + 10.0
  lost = {cause: seconds for cause, seconds in found.lost.items() if seconds}
  assert lost == {
    "compiling": 12.0,
    "evaluation": 1.0,
    "steps done again": 10.0 + 4.0,
    "no process running": 26.0,
    "starting": 30.0 + 10.0 + 10.0,
    "other": 5.0,
  }
  assert found.counted + sum(lost.values()) == found.wall
  assert str(found) == (
    "goodput 30 % of 3 min; starting 32 %, no process running 17 %, steps done again 9 %, "
    "compiling 8 %, other 3 %, evaluation 1 %"
  )


def test_steps_of_another_stage_are_kept():
  events = [
    {"event": "start", "time": 0.0, "alive": 0.0},
    {"event": "stage", "time": 0.0, "stage": "sft", "first": 1},
    step(5.0, 1, 5.0, stage="sft"),
    {"event": "stage", "time": 5.0, "stage": "rl", "first": 1},
    step(10.0, 1, 5.0),
  ]
  found = goodput.account(events)
  assert found is not None
  assert (found.wall, found.counted) == (10.0, 10.0)


def test_what_is_written_is_read_but_for_a_line_that_a_kill_cut(tmp_path):
  assert goodput.read(tmp_path) is None
  goodput.note(tmp_path, "start", alive=0.0)
  goodput.note(tmp_path, "stage", stage="rl", first=1)
  assert goodput.read(tmp_path) is None
  values = {"perf/time/step": 3.0, "perf/time/data": 1.0, "perf/compilation_time": 0.5}
  with goodput.open_file(tmp_path) as file:
    goodput.note_step(file, "rl", 1, values)
  path = tmp_path / "health" / "times.jsonl"
  line = json.loads(path.read_text().strip().splitlines()[-1])
  assert line["lost"]["waiting for data"] == 1.0
  for damage in (
    '{"event": "step", "time": 1',
    '{"event": "step", "time": 1}',
    '{"event": 1}',
    "[]",
  ):
    with path.open("a") as file:
      file.write(damage)
    with goodput.open_file(tmp_path) as file:
      goodput.note_step(file, "rl", 2, {"perf/time/step": 1.0})
  found = goodput.read(tmp_path)
  assert found is not None
  assert found.counted == pytest.approx(1.5 + 1.0)
