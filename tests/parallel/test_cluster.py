"""Processes of a run find each other, by flags and under Slurm, or say in one line why not."""

import os
import socket
import subprocess
import sys
import time

from absl import flags
import pytest

from launch import local
from vr_jax import errors
from vr_jax.parallel import cluster, cluster_flags

SCRIPT = """
import pathlib, sys
from absl import flags
import jax
from vr_jax.parallel import cluster, cluster_flags
values = flags.FlagValues()
cluster_flags.define_flags(values)
values(sys.argv)
cluster.join(cluster_flags.Cluster.from_flags(values))
listening = [
  line.split()[1].rpartition(":")[0]
  for kind in ("tcp", "tcp6")
  for line in pathlib.Path(f"/proc/net/{kind}").read_text().splitlines()[1:]
  if line.split()[1].endswith(f":{int(sys.argv[1]):04X}") and line.split()[3] == "0A"
]
print(jax.process_index(), jax.process_count(), *listening)
"""
LOOPBACK = {  # 127.0.0.1, ::1, and the former written as the latter, as /proc has them
  "0100007F",
  "00000000000000000000000001000000",
  "0000000000000000FFFF00000100007F",
}


def start(port, *words, script=SCRIPT, **environment):
  return subprocess.Popen(
    [sys.executable, "-c", script, str(port), *words],
    env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def finish(processes):
  """The last line that each prints."""
  said = [process.communicate(timeout=60) for process in processes]
  assert [process.returncode for process in processes] == [0] * len(processes), said
  return [out.splitlines()[-1].split() for out, _ in said]


def test_processes_join_by_flags_and_nobody_else_can_connect_to_a_local_one():
  port = local.free_port()
  words = (f"--coordinator_address=localhost:{port}", "--num_processes=2")
  found = finish([start(port, *words, f"--process_id={index}") for index in range(2)])
  assert [line[:2] for line in found] == [["0", "2"], ["1", "2"]]
  listening = {address for line in found for address in line[2:]}
  assert listening and listening <= LOOPBACK


def test_processes_join_by_themselves_under_slurm_unless_told_not_to():
  port = local.free_port()
  step = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
  ranks = [{"SLURM_PROCID": str(index), "SLURM_LOCALID": str(index)} for index in range(2)]
  chosen = f"--coordinator_address=localhost:{port}"
  together = finish([start(port, chosen, **step, **rank) for rank in ranks])
  assert [line[:2] for line in together] == [["0", "2"], ["1", "2"]]
  (alone,) = finish([start(port, "--distributed=off", **step, **ranks[1])])
  assert alone[:2] == ["0", "1"]


@pytest.mark.parametrize("index", [0, 1])
def test_a_process_that_waits_in_vain_says_so_in_one_line(index):
  port = local.free_port()
  words = (f"--coordinator_address=localhost:{port}", "--num_processes=2")
  process = start(port, *words, f"--process_id={index}", "--initialization_timeout=2")
  _, said = process.communicate(timeout=60)
  assert process.returncode == 75
  (line,) = [each for each in said.splitlines() if "vr-jax: " in each]
  assert f", process {index}: can't join the others at localhost:{port}: not all" in line


def test_a_process_that_waits_leaves_once_another_host_has_ended_for_good(tmp_path):
  """For the one that has the coordinator, tests/jobs/test_tpu_vm_worker.py."""
  port, stopped = local.free_port(), tmp_path / "lamps.stopped"
  words = (f"--coordinator_address=localhost:{port}", "--num_processes=2", "--process_id=1")
  with socket.socket() as coordinator:  # it listens and never answers
    coordinator.bind(("localhost", port))
    coordinator.listen()
    process = start(port, *words, **{cluster_flags.STOPPED: str(stopped)})
    coordinator.settimeout(30)
    coordinator.accept()
    assert process.poll() is None
    stopped.write_text("host-1: was told to stop\n")
    began = time.monotonic()
    _, said = process.communicate(timeout=60)
  assert time.monotonic() - began < 2 * cluster.LOOK
  assert process.returncode == 75
  (line,) = [each for each in said.splitlines() if "vr-jax: " in each]
  assert f", process 1: can't join the others at localhost:{port}: the job has stopped" in line
  assert line.endswith("(host-1: was told to stop); start it again on all hosts")


def wait_for_listener(port):
  until = time.monotonic() + 30
  while True:
    with socket.socket() as probe:
      if not probe.connect_ex(("localhost", port)):
        return
    assert time.monotonic() < until
    time.sleep(0.05)


def test_an_id_that_is_given_twice_ends_all_in_time(tmp_path):
  port = local.free_port()
  words = (f"--coordinator_address=localhost:{port}", "--num_processes=3")
  ids = (0, 1, 1)  # 2 is missing
  processes = [
    start(port, *words, f"--process_id={index}", "--initialization_timeout=8") for index in ids
  ]
  said = [process.communicate(timeout=60)[1] for process in processes]
  ours = [line for each in said for line in each.splitlines() if "vr-jax: " in line]
  assert all(process.returncode for process in processes), said
  assert any("each with another --process_id where that is given" in line for line in ours)
  # JAX aborts one of the two, with the reason.
  assert all("vr-jax: " in each or "newer incarnation" in each for each in said), said


def test_an_id_that_a_run_has_already_ends_the_run(tmp_path):
  port = local.free_port()
  words = (f"--coordinator_address=localhost:{port}", "--num_processes=2")
  script = SCRIPT + "\nprint('joined', flush=True)\nimport time; time.sleep(60)"
  run = [start(port, *words, f"--process_id={index}", script=script) for index in range(2)]
  for process in run:
    assert [process.stdout.readline() for _ in range(2)][1] == "joined\n"
  late = start(port, *words, "--process_id=1", "--initialization_timeout=3")
  said = [process.communicate(timeout=50)[1] for process in (*run, late)]
  assert all(process.returncode for process in (*run, late))
  assert all("JAX distributed service detected fatal errors" in each for each in said[:2])
  assert ", process 1: can't join the others" in said[2]


def test_processes_that_jax_can_not_find_need_all_three_flags():
  process = start(1, "--num_processes=2")
  _, said = process.communicate(timeout=60)
  assert "InputError: --coordinator_address, --process_id: missing; JAX does not find it" in said


@pytest.mark.parametrize(
  ("words", "said"),
  [
    (("--coordinator_address=somewhere",), "--coordinator_address=somewhere: needs a host and"),
    (("--coordinator_address=:80",), "--coordinator_address=:80: needs a host and a port"),
    (("--coordinator_address=a:99999",), "--coordinator_address=a:99999: needs a host and a port"),
    (("--process_id=2", "--num_processes=2"), "--process_id=2: is none of 0 to 1"),
    (("--distributed=off", "--process_id=0"), "--process_id: has no effect with --distributed=off"),
  ],
)
def test_flags_that_can_not_be_are_refused(words, said):
  values = flags.FlagValues()
  cluster_flags.define_flags(values)
  values(["", *words])
  with pytest.raises(errors.InputError, match=said):
    cluster_flags.Cluster.from_flags(values)
