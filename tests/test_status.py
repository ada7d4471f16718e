"""Where a run is, told without JAX; and the end of a process in which nothing happens."""

import dataclasses
import json
import os
import socket
import subprocess
import sys

import pytest

from launch import local
from tests.train import nano
from vr_jax import errors, main, process_state, status

NOW = 1_000_000.0
FINE = tuple(
  process_state.ProcessState(
    host=f"host-{index}",
    process=index,
    pid=7,
    time=NOW - 3,
    state="running",
    task="rl",
    done=12,
    total=60,
    activity="updating the policy",
    seconds=4.0,
  )
  for index in range(4)
)


def write(workdir, states):
  for each in states:
    file = process_state.path(workdir, each.process)
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(dataclasses.asdict(each)))


@pytest.fixture
def workdir(tmp_path):
  config = {"recipe": "moss_chatv", "rl": {"steps": 60}, "sft": {"steps": 9}}
  (tmp_path / "config.json").write_text(json.dumps({"config": config}))
  lines = [
    {"stage": "rl", "step": step, "values": {"perf/time/step": 30.0, "rewards/total/mean": 1.5}}
    for step in (11, 12)
  ]
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (tmp_path / "metrics.jsonl").write_text(text + '{"stage": "rl", "st')  # being written
  (tmp_path / "rollouts").mkdir()
  group = {"step": 12, "question": "What?", "replies": [{"text": "<answer>red</answer>\x1b[2J"}]}
  (tmp_path / "rollouts" / "step-000012.jsonl").write_text(json.dumps(group) + "\n")
  return tmp_path


def test_a_run_says_where_it_is(workdir, capsys):
  write(workdir, FINE)
  assert main.cli(["vr-jax", "status", str(workdir)]) == 0
  told = capsys.readouterr().out
  assert "rl: step 12 of 60, 30 s a step, 24 min left" in told
  assert "rewards/total 1.5" in told
  assert "<answer>red</answer>" in told and "\x1b[2J" not in told
  lines = list(status.report(workdir, {"recipe": "x", "rl": {"steps": 60}}, NOW))
  assert "process 2 on host-2: running, rl 12 of 60, updating the policy for 4 s, 3 s ago" in lines


def test_a_process_that_ended_or_is_silent_is_told_with_its_last_words(workdir):
  changes = ({"time": NOW - 200}, {"state": "failed", "error": "data/x: broken"}, {}, {})
  write(workdir, [dataclasses.replace(a, **b) for a, b in zip(FINE, changes, strict=True)])
  lines = list(status.report(workdir, {}, NOW))
  assert (
    "process 0 on host-0: silent since 3 min; it was at: rl 12 of 60, updating the"
    in "\n".join(lines)
  )
  assert "process 1 on host-1: failed 3 s ago: data/x: broken" in lines
  write(workdir, [dataclasses.replace(FINE[0], error="data/x: broken")])
  assert "  its last start failed: data/x: broken" in list(status.report(workdir, {}, NOW))


def test_help_says_what_the_command_is_for(capsys):
  assert main.cli(["vr-jax", "status", "--help"]) == 0
  assert "vr-jax status runs/demo" in capsys.readouterr().out


def test_no_workdir_is_one_line(tmp_path, capsys):
  for words, says in (
    ([], "needs one workdir"),
    ([str(tmp_path)], "is no workdir of a run"),
    (["s3://b/run"], "is no path on this machine"),
  ):
    assert main.cli(["vr-jax", "status", *words]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(
  ("changes", "late"),
  [
    ({}, []),
    ({1: {"time": NOW - 100}}, [1]),
    ({2: {"state": "failed"}}, [2]),
    ({3: {"done": 11}}, [3]),
    ({0: {"activity": "reading the next batch"}}, [0]),
    ({0: {"activity": "a"}, 1: {"activity": "b"}}, []),  # nobody can tell
    ({1: {"time": NOW - 100}, 3: {"done": 11}}, [1]),
    # All are at the same step, and three wait for what the other one is to send.
    ({0: {"waiting": True}, 1: {"waiting": True}, 3: {"waiting": True}}, [2]),
    ({index: {"waiting": True} for index in range(4)}, []),
    ({0: {"waiting": True}, 3: {"done": 11}}, [3]),
    # Two wait on their devices for the one that reads, and the fourth for a text of it.
    ({0: {"waiting": True}, 2: {"activity": "reading the next batch"}}, [2]),
    # One was about to note its step, for which it needs the one that reads.
    ({1: {"done": 11, "waiting": True}, 2: {"done": 11}}, [2]),
    ({1: {"done": 11, "waiting": True}, 2: {"done": 11, "waiting": True}}, [1, 2]),
  ],
)
def test_the_process_that_the_others_wait_for_is_found(changes, late):
  states = [dataclasses.replace(each, **changes.get(each.process, {})) for each in FINE]
  assert [each.process for each in process_state.find_late(states, NOW)] == late


HANG = """
import pathlib, sys, time
from vr_jax.train import console, health
health.PERIOD = 0.1

def waits_for_ever():
  time.sleep(600)

with health.watched(pathlib.Path(sys.argv[1]), 1.0), console.progress("rl", 60) as tick:
  for step in range(1, 4):
    time.sleep(0.7)
    tick(step)
  with console.doing("sampling replies"):
    waits_for_ever()
"""


def test_a_process_in_which_nothing_happens_ends_with_its_stacks(tmp_path):
  late = dataclasses.replace(FINE[1], done=2, time=4e9)
  write(tmp_path, [late])
  code = HANG.replace("health.PERIOD", "import jax; jax.process_count = lambda: 2; health.PERIOD")
  done = subprocess.run(
    [sys.executable, "-c", code, str(tmp_path)],
    cwd=nano.ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=60,
    check=False,
  )
  assert done.returncode == 1
  (line,) = [each for each in done.stderr.splitlines() if each.startswith("vr-jax: ")]
  assert "nothing has happened for" in line and "(rl 3 of 60, sampling replies for" in line
  assert "waited for process 1 on host-1 (rl 2 of 60" in line
  assert "waits_for_ever" in (tmp_path / "health" / "0.stacks").read_text()
  own = process_state.read_all(tmp_path)[0]
  assert own.state == "failed" and own.error in line


LATE = """
import sys, time
import jax
from vr_jax import main
from vr_jax.parallel import processes
from vr_jax.train import console, health
health.PERIOD = 0.2

def never_reads():
  time.sleep(600)

def steps(config, workdir, mode):
  first = processes.is_first()
  with console.progress("rl", 60) as tick:
    for step in range(1, 4):
      processes.all_max(step)
      tick(step)
    with console.doing("reading the next batch"):
      if not first:
        never_reads()
      processes.all_max(4)

main._run_stages = steps
sys.exit(main.cli())
"""


def test_all_processes_leave_their_stacks_and_name_the_late_one(tmp_path):
  address = f"localhost:{local.free_port()}"
  words = [
    *("--config=moss_chatv:tiny", f"--workdir={tmp_path}", "--config.log.hang_timeout=2"),
    *(f"--coordinator_address={address}", "--num_processes=2", "--mode=export"),
  ]
  started = [
    subprocess.Popen(
      [sys.executable, "-c", LATE, *words, f"--process_id={index}"],
      cwd=nano.ROOT,
      env={**os.environ, "JAX_PLATFORMS": "cpu"},
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  said = [each.communicate(timeout=120)[1] for each in started]
  assert [each.returncode for each in started] == [1, 1], said
  lines = [line for each in said for line in each.splitlines() if "nothing has happened" in line]
  assert [line.partition(" on ")[0] for line in lines] == ["vr-jax: process 0", "vr-jax: process 1"]
  assert f"waited for process 1 on {socket.gethostname()} (rl 3 of 60, reading" in lines[0]
  assert "; the others wait for it; stacks are in" in lines[1]
  for index, function in enumerate(("all_max", "never_reads")):
    assert function in (tmp_path / "health" / f"{index}.stacks").read_text()
    assert f"stacks are in {tmp_path / 'health' / f'{index}.stacks'}" in lines[index]


def test_a_run_leaves_word_of_how_it_ended(tmp_path):
  from vr_jax.train import health

  with health.watched(tmp_path, 0.0):
    (running,) = process_state.read_all(tmp_path)
    assert (running.state, running.pid) == ("running", os.getpid())
  assert process_state.read_all(tmp_path)[0].state == "done"
  for error, state in (
    (errors.InputError("x: bad"), "failed"),
    (errors.Preempted("y"), "preempted"),
  ):
    with pytest.raises(type(error)), health.watched(tmp_path, 0.0):
      raise error
    assert process_state.read_all(tmp_path)[0].state == state
    if state == "failed":  # the next start still knows
      with health.watched(tmp_path, 0.0):
        (running,) = process_state.read_all(tmp_path)
        assert (running.state, running.error) == ("running", "x: bad")
      assert not process_state.read_all(tmp_path)[0].error


def test_a_process_that_gives_no_sign_is_named_once_whatever_the_clocks_say(
  tmp_path, monkeypatch, capsys
):
  from vr_jax.train import health

  seconds = 0.0
  monkeypatch.setattr(health.time, "monotonic", lambda: seconds)
  watch = health._SilenceWatch(tmp_path, 0)
  said = {}
  for look in range(24):  # every 10 s; process 2 gives no sign in looks 8 to 13, process 3 is done
    ahead = dataclasses.replace(FINE[2], time=4e9 + look * (not 8 <= look < 14))
    done = dataclasses.replace(FINE[3], state="done")
    write(tmp_path, [FINE[0], dataclasses.replace(FINE[1], time=1.0), ahead, done])
    watch.look()
    said[look] = [line.partition(" on ")[0] for line in capsys.readouterr().err.splitlines()]
    seconds += 10.0
  assert {look: names for look, names in said.items() if names} == {
    3: ["process 1"],
    11: ["process 2"],
  }
