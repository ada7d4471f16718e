"""What differs between the processes of a run is said before the first step, with the host."""

import dataclasses
import os
import subprocess
import sys

import pytest

from launch import local
from tests.train import nano
from vr_jax import errors
from vr_jax.train import preflight

FINE = tuple(
  preflight.ProcessFacts(
    host=f"host-{index}",
    index=index,
    code="git revision abc, jax 0.10.2",
    config="c",
    workdir="w",
    clock=1000.0 + index,
    unwritable="",
    free=2**33,
    chips=True,
    backend="tpu",
    devices="4 x TPU v5e",
    compiler="libtpu 1",
  )
  for index in range(4)
)
CASES = {
  "an id twice": (
    {"index": 1},
    "host-2: has joined as process 2, but its devices are those of process 1;",
  ),
  "a silent CPU": ({"backend": "cpu"}, "host-2: has TPU chips, but JAX runs on the CPU: another"),
  "another backend": (
    {"backend": "cpu", "chips": False},
    "host-2: JAX runs on cpu, but on tpu on host-0",
  ),
  "fewer devices": ({"devices": "3 x TPU v5e"}, "host-2: has 3 x TPU v5e, but host-0 has 4 x TPU"),
  "other code": (
    {"code": "git revision def"},
    "host-2: runs git revision def, but host-0 runs git",
  ),
  "another config": (
    {"config": "d"},
    "host-2: was started with another config or --mode than",
  ),
  "other flags of XLA": (
    {"compiler": "libtpu 1, XLA_FLAGS: --xla_a"},
    "host-2: compiles with libtpu 1, XLA_FLAGS: --xla_a, but host-0 with libtpu 1; have the",
  ),
  "its own disk": ({"workdir": ""}, "host-2: does not see the config.json that host-0 has written"),
  "a full disk": ({"unwritable": "--workdir=x: can't be written"}, "host-2: --workdir=x: can't be"),
  "no memory": ({"free": 2**26}, "host-2: has 64 MiB of memory free, less than 128"),
  "a wrong clock": ({"clock": 1070.0}, "host-2: its clock is 70 s ahead of that of host-0"),
  "a late clock": ({"clock": 900.0}, "host-3: its clock is 103 s ahead of that of host-2"),
}


# Two processes whose devices have each other's numbers, as where a TPU's hosts are told wrong ones.
SWAPPED = """
import sys
import jax
from jax._src import distributed
from vr_jax import main
from vr_jax.parallel import asked_backend

def start_swapped(start=asked_backend.start):
  state = distributed.global_state
  own, state.process_id = state.process_id, 1 - state.process_id
  start()
  state.process_id = own

asked_backend.start = start_swapped
sys.exit(main.cli())
"""


@pytest.mark.parametrize("name", CASES)
def test_the_host_that_differs_is_named(name):
  changes, line = CASES[name]
  assert not list(preflight.problems(FINE))
  everyone = [*FINE[:2], dataclasses.replace(FINE[2], **changes), FINE[3]]
  found = list(preflight.problems(everyone))
  assert found[0].startswith(line)
  assert all("\n" not in each for each in found)


def test_a_process_that_is_alone_finds_that_it_can_not_write(tmp_path):
  config = nano.config()
  (tmp_path / "config.json").write_text("{}")
  preflight.check(config, tmp_path, "rl", tmp_path / "cache")
  file = tmp_path / "file"
  file.write_text("")
  with pytest.raises(errors.InputError, match=r"the compilation cache=.*file/cache: can't be writ"):
    preflight.check(config, tmp_path, "rl", file / "cache")


def test_processes_with_other_configs_all_stop_with_the_same_line(tmp_path):
  at = (f"--coordinator_address=localhost:{local.free_port()}", "--num_processes=2")
  together = [
    nano.start(
      nano.arguments(tmp_path, *at, f"--process_id={index}", f"--config.seed={index}", mode="data")
    )
    for index in range(2)
  ]
  said = [process.communicate(timeout=120)[1] for process in together]
  assert [process.returncode for process in together] == [2, 2], said
  lines = [[line for line in each.splitlines() if "vr-jax: " in line] for each in said]
  assert lines[0] == lines[1]
  (line,) = lines[0]
  assert "was started with another config or --mode than" in line
  assert {path.name for path in tmp_path.iterdir()} == {"config.json", "health"}


def test_devices_with_other_numbers_than_their_processes_are_found(tmp_path):
  at = (f"--coordinator_address=localhost:{local.free_port()}", "--num_processes=2")
  together = [
    subprocess.Popen(
      [
        *(sys.executable, "-c", SWAPPED),
        *nano.arguments(tmp_path, *at, f"--process_id={index}", mode="data"),
      ],
      cwd=nano.ROOT,
      env=os.environ,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  said = [process.communicate(timeout=120)[1] for process in together]
  assert [process.returncode for process in together] == [2, 2], said
  line = "has joined as process 0, but its devices are those of process 1; leave out --process_id"
  assert all(line in each for each in said), said


@pytest.mark.parametrize(
  ("joined", "seen", "line"),
  [
    (2, 1, "has joined a run of 2 processes, but its devices are of a slice of 1"),
    (1, 4, "is one of 4 hosts of a slice, but has joined none of them"),
  ],
)
def test_all_hosts_of_a_slice_and_no_other_have_to_join(tmp_path, monkeypatch, joined, seen, line):
  monkeypatch.setattr(preflight.processes, "count_joined", lambda: joined)
  monkeypatch.setattr(preflight.jax, "process_count", lambda: seen)
  with pytest.raises(errors.InputError, match=line):
    preflight.check(nano.config(), tmp_path, "rl", tmp_path / "cache")


def test_in_the_workdir_the_first_process_alone_makes_directories(tmp_path, monkeypatch):
  monkeypatch.setattr(preflight.processes, "is_first", lambda: False)
  own, shared = tmp_path / "disk" / "cache", tmp_path / "run" / "compilations"
  both = {"--workdir": tmp_path / "run", "the compilation cache": shared, "own": own}
  assert preflight._unwritable(both, tmp_path / "run") == ""
  assert own.is_dir() and not (tmp_path / "run").exists()
  monkeypatch.setattr(preflight.processes, "is_first", lambda: True)
  assert preflight._unwritable(both, tmp_path / "run") == ""
  assert shared.is_dir()
