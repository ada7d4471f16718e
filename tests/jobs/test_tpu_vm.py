"""launch.tpu_vm calls gcloud as its reference says, and passes on what it answers."""

import importlib
import os
from pathlib import Path
import subprocess
import sys

import pytest

from launch import commands as commands_lib
from launch import tpu_vm

ROOT = Path(__file__).resolve().parents[2]

PLACE = "--project=my-project --zone=us-east5-a"
CREATE = f"gcloud compute tpus queued-resources create lamps {PLACE} --node-id=lamps"
SCOPES = "--scopes=https://www.googleapis.com/auth/cloud-platform --labels=vr-jax-job=lamps"
DESCRIBE = (
  f"gcloud compute tpus queued-resources describe lamps {PLACE} --format=value(state.state)"
)
DELETE = f"gcloud compute tpus queued-resources delete lamps {PLACE} --force --quiet"
COPY = f"gcloud compute tpus tpu-vm scp runs/launch/lamps.sh lamps:vr_jax_lamps.sh {PLACE}"
SSH = f"gcloud compute tpus tpu-vm ssh lamps {PLACE} --worker=all --command=bash vr_jax_lamps.sh"
START = [f"{COPY} --worker=all", f"{SSH} setup", f"{SSH} start"]


def state(name):
  return ("describe", 0, f"{name}\n", "")


@pytest.mark.parametrize(
  ("flags", "line"),
  [
    ([], f"{CREATE} --accelerator-type=v5p-16 --runtime-version=v2-alpha-tpuv5 {SCOPES}"),
    (
      ["--slice=v5e-16", "--provisioning=spot"],
      f"{CREATE} --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot "
      f"{SCOPES}",
    ),
    (
      ["--slice=v6e-8", "--provisioning=reserved", "--reservation=ours"],
      f"{CREATE} --accelerator-type=v6e-8 --runtime-version=v2-alpha-tpuv6e --reservation=ours "
      f"{SCOPES}".replace("gcloud", "gcloud alpha", 1),
    ),
    (
      ["--provisioning=flex_start", "--max_run_duration=48h"],
      f"{CREATE} --accelerator-type=v5p-16 --runtime-version=v2-alpha-tpuv5 "
      f"--provisioning-model=flex-start --max-run-duration=48h {SCOPES}".replace(
        "gcloud", "gcloud alpha", 1
      ),
    ),
    (
      ["--slice=2xv5p-64"],
      f"{CREATE.replace('--node-id=lamps', '--node-count=2 --node-prefix=lamps')} "
      f"--accelerator-type=v5p-64 --runtime-version=v2-alpha-tpuv5 {SCOPES}",
    ),
    (
      [
        *("--tpu_vm.runtime_version=v2-alpha-tpuv5-2", "--tpu_vm.network=ours"),
        "--tpu_vm.service_account=me@my-project.iam.gserviceaccount.com",
      ],
      f"{CREATE} --accelerator-type=v5p-16 --runtime-version=v2-alpha-tpuv5-2 "
      "--service-account=me@my-project.iam.gserviceaccount.com "
      f"{SCOPES.replace(' --labels', ' --network=ours --labels')}",
    ),
  ],
)
def test_create_asks_for_the_slice_in_the_way_it_is_bought(job_toml, commands, flags, line):
  assert tpu_vm.main(["create", job_toml, *flags]) == 0
  assert commands.lines() == [line]


def test_run_copies_the_script_to_all_hosts_then_installs_then_starts(job_toml, commands, tmp_path):
  commands.answer(state("ACTIVE"))
  assert tpu_vm.main(["run", job_toml]) == 0
  assert commands.lines() == [DESCRIBE, *START]
  script = (tmp_path / "runs/launch/lamps.sh").read_text()
  assert script.startswith("#!/bin/bash\nNAME=lamps\nPROJECT=my-project\nIMAGE=us-docker.pkg.dev/")
  assert "\nRESTARTS=5\nBUCKETS=(my-bucket)\nSECRETS=()\n" in script
  assert '\n"$@"; exit' in script


def test_several_slices_are_reached_as_one_queued_resource(job_toml, commands):
  commands.answer(state("ACTIVE"))
  assert tpu_vm.main(["run", job_toml, "--slice=2xv5p-16"]) == 0
  everywhere = "--worker=all --node=all"
  name = "gcloud compute tpus queued-resources"
  assert commands.lines()[1:] == [
    f"{name} scp runs/launch/lamps.sh lamps:vr_jax_lamps.sh {PLACE} {everywhere}",
    f"{name} ssh lamps {PLACE} {everywhere} --command=bash vr_jax_lamps.sh setup",
    f"{name} ssh lamps {PLACE} {everywhere} --command=bash vr_jax_lamps.sh start",
  ]


def test_run_does_not_start_on_a_slice_that_is_not_there(job_toml, commands, capsys):
  commands.answer(state("WAITING_FOR_RESOURCES"))
  assert tpu_vm.main(["run", job_toml]) == 2
  line = "tpu_vm: lamps: is WAITING_FOR_RESOURCES, not yet ACTIVE; --wait waits for it\n"
  assert capsys.readouterr().err == line
  commands.answer(state("SUSPENDED"))
  assert tpu_vm.main(["run", job_toml, "--wait"]) == 2
  assert capsys.readouterr().err == "tpu_vm: lamps: is SUSPENDED; resume asks for it again\n"
  assert commands.lines() == [DESCRIBE, DESCRIBE]


def test_run_waits_for_a_slice_if_it_is_asked_to(job_toml, commands, capsys, monkeypatch):
  commands.answer(state("PROVISIONING"))
  waits = []

  def sleep(seconds):
    waits.append(seconds)
    commands.answer(state("ACTIVE"))

  monkeypatch.setattr(tpu_vm.time, "sleep", sleep)
  assert tpu_vm.main(["run", job_toml, "--wait"]) == 0
  assert commands.lines() == [DESCRIBE, DESCRIBE, *START]
  assert len(waits) == 1 and capsys.readouterr().err == "lamps: PROVISIONING\n"


def test_a_failed_installation_starts_no_host(job_toml, commands, capsys):
  commands.answer(state("ACTIVE"), ("setup", 1, "", "Warning: x\nno such image\n\n"))
  assert tpu_vm.main(["run", job_toml]) == 1
  assert commands.lines() == [DESCRIBE, *START[:2]]
  assert capsys.readouterr().err.splitlines()[-1] == "tpu_vm: gcloud ended with 1: no such image"


@pytest.mark.parametrize("command", ["create", "run", "status", "logs", "resume", "delete"])
def test_an_exit_code_of_gcloud_is_passed_on_with_its_last_line(
  job_toml, commands, capsys, command
):
  commands.answer(("gcloud", 7, "", "ERROR: first\nERROR: (gcloud) quota of TPUs exceeded\n"))
  assert tpu_vm.main([command, job_toml]) == 7
  lines = capsys.readouterr().err.splitlines()
  assert lines[0] == "ERROR: first"
  assert lines[-1] == "tpu_vm: gcloud ended with 7: ERROR: (gcloud) quota of TPUs exceeded"
  # Only deletion goes on: it lists what still costs money.
  assert len(commands.calls()) == (3 if command == "delete" else 1)


def test_resume_replaces_a_slice_that_was_preempted(job_toml, commands, capsys, monkeypatch):
  commands.answer(state("SUSPENDED"))
  assert tpu_vm.main(["resume", job_toml, "--provisioning=spot"]) == 0
  again = f"{CREATE} --accelerator-type=v5p-16 --runtime-version=v2-alpha-tpuv5 --spot {SCOPES}"
  assert commands.lines() == [DESCRIBE, DELETE, again]
  assert "asked for again" in capsys.readouterr().out


def test_resume_makes_a_slice_that_is_not_there(job_toml, commands):
  commands.answer(("describe", 1, "", "ERROR: NOT_FOUND: no resource\n"))
  assert tpu_vm.main(["resume", job_toml]) == 0
  assert [line.split()[4] for line in commands.lines()] == ["describe", "create"]


def test_resume_starts_a_run_on_a_slice_that_is_there(job_toml, commands):
  commands.answer(state("ACTIVE"))
  assert tpu_vm.main(["resume", job_toml]) == 0
  assert commands.lines() == [DESCRIBE, DESCRIBE, *START]


def test_status_asks_the_hosts_if_there_are_any(job_toml, commands, capsys):
  commands.answer(state("ACTIVE"))
  assert tpu_vm.main(["status", job_toml]) == 0
  assert commands.lines() == [DESCRIBE, f"{SSH} status"]
  commands.answer(state("FAILED"))
  assert tpu_vm.main(["status", job_toml]) == 0
  assert commands.lines()[2:] == [DESCRIBE]
  assert capsys.readouterr().out == "lamps: ACTIVE\nlamps: FAILED\n"


def test_logs_of_one_host_and_of_all(job_toml, commands, capsys):
  assert tpu_vm.main(["logs", job_toml, "--worker=1", "--lines=7", "--follow"]) == 0
  one = SSH.replace("--worker=all", "--worker=1")
  assert commands.lines() == [f"{one} logs 7 follow"]
  assert tpu_vm.main(["logs", job_toml, "--worker=all"]) == 0
  assert commands.lines()[1:] == [f"{SSH} logs 100"]
  for flag in ("--worker=first", "--lines=0", "--lines=x"):
    assert tpu_vm.main(["logs", job_toml, flag]) == 2
  assert len(capsys.readouterr().err.splitlines()) == 3


@pytest.mark.parametrize(("worker", "place"), [(1, "1 --node=0"), (2, "0 --node=1")])
def test_hosts_of_several_slices_are_counted_through(job_toml, commands, capsys, worker, place):
  assert tpu_vm.main(["logs", job_toml, "--slice=2xv5p-16", f"--worker={worker}"]) == 0
  ssh = f"gcloud compute tpus queued-resources ssh lamps {PLACE} --worker={place}"
  assert commands.lines() == [f"{ssh} --command=bash vr_jax_lamps.sh logs 100"]
  assert tpu_vm.main(["logs", job_toml, "--slice=2xv5p-16", "--worker=4"]) == 2
  assert "--worker=4: the hosts are 0 to 3" in capsys.readouterr().err


def test_fetch_copies_from_the_bucket(job_toml, commands, capsys):
  assert tpu_vm.main(["fetch", job_toml]) == 0
  assert tpu_vm.main(["fetch", job_toml, "--path=report.html", "--to=here"]) == 0
  copy = "gcloud storage cp --recursive gs://my-bucket/runs/lamps"
  assert commands.lines() == [
    f"{copy}/export . --project=my-project",
    f"{copy}/report.html here --project=my-project",
  ]
  assert tpu_vm.main(["fetch", job_toml, "--path=../other"]) == 2
  assert tpu_vm.main(["fetch", job_toml, "--workdir=/tmp/a"]) == 2
  assert "/tmp/a is on the disk of one host, and gone with it" in capsys.readouterr().err


def test_delete_deletes_the_slice_and_lists_what_still_costs_money(job_toml, commands):
  assert tpu_vm.main(["delete", job_toml]) == 0
  assert commands.lines() == [
    DELETE,
    f"gcloud compute tpus queued-resources list {PLACE}",
    f"gcloud compute tpus tpu-vm list {PLACE}",
  ]


@pytest.mark.parametrize(
  ("flags", "line"),
  [
    (["--slice=tpu7x-64"], "--slice: there are no TPU VMs of tpu7x; use launch.gke"),
    (["--image="], "--image: launch.tpu_vm needs an image, or what to install: "),
    (["--zone="], "--zone: launch.tpu_vm needs it"),
    (["--bucket="], "--bucket: launch.tpu_vm needs it"),
    (["--workdir=runs/a"], "--workdir: runs/a is on the disk of one host, and gone with it; "),
    (["--processes=2"], "--processes=2: not a flag; --help lists them"),
    (["--zne=a"], "--zne=a: not a flag; --help lists them"),
    (["other.toml"], "other.toml: not a flag; --help lists them"),
  ],
)
def test_what_tpu_vms_can_not_do_is_refused_before_anything_runs(
  job_toml, commands, capsys, flags, line
):
  assert tpu_vm.main(["create", job_toml, *flags]) == 2
  error = capsys.readouterr().err
  assert error.startswith(f"tpu_vm: {line}") and error.count("\n") == 1
  assert not commands.calls()


def test_a_command_that_is_none_and_a_machine_without_gcloud(job_toml, capsys, monkeypatch):
  assert tpu_vm.main(["start", job_toml]) == 2
  assert tpu_vm.main([]) == 2
  monkeypatch.setenv("PATH", "/nonexistent")
  assert tpu_vm.main(["create", job_toml]) == 2
  assert capsys.readouterr().err.splitlines() == [
    "tpu_vm: start: no such command; one of create, run, status, logs, resume, fetch, delete, cost",
    "tpu_vm: needs a command; one of create, run, status, logs, resume, fetch, delete, cost",
    "tpu_vm: gcloud: not found; install the Google Cloud CLI",
  ]


@pytest.mark.parametrize(
  "command", ["create", "run", "status", "logs", "resume", "fetch", "delete"]
)
def test_a_dry_run_prints_what_would_run_and_runs_nothing(
  job_toml, commands, capsys, tmp_path, command
):
  before = sorted(path.name for path in tmp_path.iterdir())
  assert tpu_vm.main([command, job_toml, "--dry-run"]) == 0
  assert capsys.readouterr().out.strip()
  assert not commands.calls()
  assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("launcher", ["tpu_vm", "gke", "local"])
def test_help_lists_commands_and_fields(capsys, launcher):
  module = importlib.import_module(f"launch.{launcher}")
  with pytest.raises(SystemExit) as ended:
    module.main(["create", "--help"])
  assert ended.value.code == 0
  printed = capsys.readouterr().out
  for name in (*commands_lib.COMMANDS, "--zone", "--gke.cluster", "--price_per_chip_hour"):
    assert name in printed


def test_output_that_nobody_reads_is_no_error(job_toml):
  words = [*(sys.executable, "-m", "launch.tpu_vm", "run", job_toml, "--dry-run")]
  with subprocess.Popen(
    words,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    env={**os.environ, "PYTHONPATH": str(ROOT)},
  ) as process:
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
  assert process.returncode == 141


def test_the_lines_of_a_dry_run_do_in_a_shell_what_the_command_does(
  job_toml, commands, capfd, tmp_path
):
  commands.answer(state("ACTIVE"))
  override = '--config.env.instruction=it\'s "$HOME"\nand `date`'
  assert tpu_vm.main(["run", job_toml, override]) == 0
  calls, script = commands.calls(), (tmp_path / "runs/launch/lamps.sh").read_text()
  (tmp_path / "runs/launch/lamps.sh").unlink()
  capfd.readouterr()
  assert tpu_vm.main(["run", job_toml, override, "--dry-run"]) == 0
  printed = capfd.readouterr().out
  subprocess.run(["bash", "-e", "-c", printed], check=True, stdin=subprocess.DEVNULL)
  assert commands.calls() == calls + calls
  assert (tmp_path / "runs/launch/lamps.sh").read_text() == script


@pytest.mark.parametrize("wait", [(), ("--wait",)])
@pytest.mark.parametrize("found", ["ACTIVE", "SUSPENDED", "FAILED", "CREATING", "none", "denied"])
@pytest.mark.parametrize("command", ["run", "resume", "status"])
def test_a_dry_run_has_the_conditions_of_the_command(
  job_toml, commands, same_in_a_shell, monkeypatch, command, found, wait
):
  if (found, wait) == ("CREATING", ("--wait",)) and command != "status":
    return  # it would wait for ever: see the next test
  if (command, wait) == ("resume", ("--wait",)) and found != "ACTIVE":
    return  # as the next test, after it asked for another one
  answers = {
    "none": ("describe", 1, "", "NOT_FOUND: no such resource\n"),
    "denied": ("describe", 7, "", "PERMISSION_DENIED\n"),
  }
  commands.answer(answers.get(found, state(found)))
  code, calls = same_in_a_shell(tpu_vm, [command, job_toml, *wait])
  words = [" ".join(call["words"]) for call in calls]
  deleted = any(" delete " in line for line in words)
  created = any(" create " in line for line in words)
  assert deleted == (command == "resume" and found in ("SUSPENDED", "FAILED"))
  assert created == (command == "resume" and found in ("SUSPENDED", "FAILED", "none"))
  assert (code == 0) == (found == "ACTIVE" or created or (command == "status" and code == 0))


@pytest.mark.parametrize("command", ["run", "resume"])
def test_a_dry_run_waits_as_the_command_does(
  job_toml, commands, same_in_a_shell, monkeypatch, tmp_path, command
):
  monkeypatch.setattr(tpu_vm, "_POLL", 0.01)
  # Of three looks the first two find no slice yet: gcloud counts them.
  (commands.directory / "recorder").mkdir()
  (commands.directory / "gcloud").rename(commands.directory / "recorder" / "gcloud")
  commands.add(
    "gcloud",
    f"""#!/bin/bash
    {commands.directory}/recorder/gcloud "$@"
    [[ $* == *describe* ]] || exit 0
    echo >>{tmp_path}/looks
    case $(($(wc -l <{tmp_path}/looks) % 3)) in
      1) echo {"SUSPENDED" if command == "resume" else "WAITING_FOR_RESOURCES"} ;;
      2) echo PROVISIONING ;;
      0) echo ACTIVE ;;
    esac
    """,
  )
  commands.directory = commands.directory / "recorder"
  code, calls = same_in_a_shell(tpu_vm, [command, job_toml, "--wait"])
  words = [" ".join(call["words"]) for call in calls]
  assert code == 0 and sum(" describe " in line for line in words) == 3
  assert words[-1].endswith("vr_jax_lamps.sh start")


@pytest.mark.parametrize("failing", ["delete", "queued-resources list", "nothing"])
def test_a_dry_run_of_delete_goes_on_as_the_command_does(
  job_toml, commands, same_in_a_shell, failing
):
  commands.answer((failing, 5, "", "failed\n"))
  code, calls = same_in_a_shell(tpu_vm, ["delete", job_toml])
  assert (code, len(calls)) == (0 if failing == "nothing" else 5, 3)


@pytest.mark.parametrize("command", ["create", "logs", "fetch", "delete"])
def test_the_other_dry_runs_do_in_a_shell_what_the_command_does(
  job_toml, commands, same_in_a_shell, command
):
  code, calls = same_in_a_shell(tpu_vm, [command, job_toml])
  assert code == 0 and calls


def test_the_value_of_a_secret_appears_nowhere(job_toml, commands, capfd, tmp_path, monkeypatch):
  with (tmp_path / "job.toml").open("a") as file:
    file.write('[secrets]\nWANDB_API_KEY = "wandb-key"\n')
  monkeypatch.setenv("WANDB_API_KEY", "canary-8fK2")
  commands.answer(state("ACTIVE"))
  for command in ("create", "run", "status", "logs", "resume", "fetch", "delete"):
    assert tpu_vm.main([command, job_toml, "--dry-run"]) == 0
    assert tpu_vm.main([command, job_toml]) == 0
  printed = capfd.readouterr()
  files = [path for path in tmp_path.rglob("*") if path.is_file()]
  written = "".join(path.read_text() for path in files)
  assert "SECRETS=(WANDB_API_KEY=wandb-key)" in printed.out and "secrets versions" in written
  assert "canary" not in printed.out + printed.err + written
