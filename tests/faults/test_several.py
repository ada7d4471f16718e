"""One of two processes is killed inside a checkpoint's write, and nothing is lost or counted twice.

The short form of `python -m tests.faults.kills --processes=2`; and two processes learn in the warm
start what one with two devices does.
"""

import resource
import signal

import pytest

from tests.faults import kills, runs
from tests.train import nano
from vr_jax import atomic, main
from vr_jax.train import metrics

FIELDS = {"sft.steps": 6, "sft.checkpoint_every": kills.INTERVAL}


def words(data, workdir):
  fields = {**nano.OVERRIDES, **FIELDS, "data.directory": data}
  flags = [f"--config.{name}={value}" for name, value in fields.items()]
  return [f"--config={nano.RECIPE}:tiny", f"--workdir={workdir}", "--mode=sft", *flags]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  return nano.make_data(tmp_path_factory.mktemp("several") / "data")


@pytest.fixture(scope="module")
def alone(data):
  """The workdir of two processes that nobody killed."""
  workdir = data.parent / "alone"
  kills.run_alone(words(data, workdir), workdir, 2)
  return workdir


def test_two_processes_learn_in_the_warm_start_what_one_with_two_devices_does(data, alone):
  fields = {name.replace(".", "__"): value for name, value in FIELDS.items()}
  workdir = data.parent / "one"
  with pytest.MonkeyPatch.context() as patch:
    nano.use_devices(patch, 2)
    main.run(nano.config(**fields, data__directory=str(data)), workdir, "sft")
  one, two = (metrics.read(each / "metrics.jsonl") for each in (workdir, alone))
  assert [line["step"] for line in one] == [line["step"] for line in two] == [1, 2, 3, 4, 5, 6]
  for mine, theirs in zip(one, two, strict=True):
    values = [
      {name: value for name, value in line["values"].items() if not name.startswith("perf/")}
      for line in (mine, theirs)
    ]
    assert values[1] == pytest.approx(values[0], rel=1e-5, abs=1e-7)
  assert one[-1]["values"]["loss"] < 0.99 * one[0]["values"]["loss"]


def test_one_of_two_processes_is_killed_inside_a_write_and_the_run_is_as_if_it_had_not(data, alone):
  workdir = data.parent / "killed"
  run = runs.LocalRun.start(words(data, workdir), workdir, processes=2)
  assert run.wait_until(lambda: run.own_steps("sft") > kills.INTERVAL, 240)
  assert run.wait_until(lambda: run.is_writing_checkpoint("sft"), 60)
  run.kill(1)
  assert [each.returncode for each in run.processes] == [-signal.SIGKILL] * 2
  written, own = run.half_written("sft"), run.own_steps("sft")
  assert written > 0 and own < FIELDS["sft.steps"]
  kills.run_alone(words(data, workdir), workdir, 2)
  assert kills.redone(workdir) == {run.processes[0].pid: kills.INTERVAL + own - written}
  assert kills.differences(alone, workdir, stages=("sft",), patterns=()) == []
  assert kills.order(workdir, "sft") == kills.order(alone, "sft")


def test_a_checkpoint_that_one_of_two_processes_can_not_write_ends_both_soon(data):
  workdir = data.parent / "unwritten"
  fields = ["--config.sft.steps=2000", "--config.log.hang_timeout=600"]
  run = runs.LocalRun.start([*words(data, workdir), *fields], workdir, processes=2)
  # The second save waits for the first one.
  assert run.wait_until(lambda: run.own_steps("sft") > 2 * kills.INTERVAL, 240)
  limit = 2**15  # bytes of a file: less than its part of a checkpoint
  resource.prlimit(run.processes[1].pid, resource.RLIMIT_FSIZE, (limit, limit))
  ended = run.finish(60)
  assert ended.codes == (2, 2), ended.said
  found = [[s for s in said.splitlines() if "can't be written" in s] for said in ended.said]
  assert [len(lines) for lines in found] == [1, 1]
  (other,), (own,) = found
  directory = workdir / "checkpoints" / "sft"
  assert own.startswith(f"vr-jax: {directory}: a checkpoint can't be written (File too large); ")
  assert other.startswith("vr-jax: process 1 on ")
  assert other.endswith(f" has failed, so this one ends: {own.removeprefix('vr-jax: ')}")
  last = own.partition("the last complete one is ")[2].partition(",")[0]
  assert atomic.is_whole(directory / last)
  assert "Traceback" not in ended.said[0]  # Orbax may print one where writes fail together
