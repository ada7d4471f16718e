"""launch.local takes the same jobs: N processes here, started again as on a pod."""

import functools
import json
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest

from launch import local

# Stands in for a process of the run: says its index and words, and ends with a code of codes.json
# for each attempt.
WORKER = """
import json, os, sys, time
words, (address, processes, index) = sys.argv[1:-3], [w.partition("=")[2] for w in sys.argv[-3:]]
codes = json.load(open("codes.json"))
attempt = len(os.listdir("attempts")) // int(processes) if os.path.isdir("attempts") else 0
os.makedirs("attempts", exist_ok=True)
print(f"process {index} of {processes}", flush=True)
time.sleep(0.2)
open(f"attempts/{attempt}-{index}", "w").write(json.dumps([address, words]))
time.sleep(0.2)
sys.exit(codes[min(attempt, len(codes) - 1)])
"""
ROOT = Path(__file__).resolve().parents[2]
HERE = ["--workdir=runs/lamps", "--paths.videos=v", "--paths.annotations=a", "--paths.pretrained="]


@pytest.fixture
def worker(job_toml, tmp_path, monkeypatch):
  """Runs the stand-in; call it with the exit codes of the attempts."""
  (tmp_path / "worker.py").write_text(WORKER)
  monkeypatch.setattr(local, "_WORKER", (sys.executable, "-S", str(tmp_path / "worker.py")))
  monkeypatch.setattr(local, "_PAUSE", 0.0)
  return lambda *codes: (tmp_path / "codes.json").write_text(json.dumps(codes))


def attempts(tmp_path):
  found = sorted((tmp_path / "attempts").iterdir())
  return [(path.name, *json.loads(path.read_text())) for path in found]


def test_a_job_runs_in_processes_that_share_its_flags(job_toml, worker, tmp_path, capfd):
  worker(0)
  assert local.main(["run", job_toml, *HERE, "--processes=2"]) == 0
  (first, address, words), (second, other_address, other_words) = attempts(tmp_path)
  assert (first, second) == ("0-0", "0-1")
  assert words == other_words and address == other_address
  assert words == [
    *("--config=moss_chatv:7b", "--config.data.videos=v", "--config.data.annotations=a"),
    *("--config.rl.steps=200", "--config.rl.microbatches=2"),
    "--config.mesh=(4,-1,1,1)",
    *("--workdir=runs/lamps", "--mode=rl"),
  ]
  assert capfd.readouterr().out == "process 0 of 2\n"  # the other one's output is in its log
  assert local.main(["logs", job_toml, *HERE, "--worker=1"]) == 0
  assert capfd.readouterr().out == "process 1 of 2\n"


def test_a_preempted_job_starts_again_at_another_port(job_toml, worker, tmp_path, capfd):
  worker(75, 1, 0)
  assert local.main(["run", job_toml, *HERE, "--processes=1"]) == 0
  assert [name for name, _, _ in attempts(tmp_path)] == ["0-0", "1-0", "2-0"]
  assert len({address for _, address, _ in attempts(tmp_path)}) > 1
  lines = capfd.readouterr().err.splitlines()
  assert lines == [
    "local: lamps ended with 75 after 0 restarts",
    "local: lamps ended with 1 after 1 restarts",
  ]


@pytest.mark.parametrize(("code", "count"), [(2, 1), (3, 1), (75, 3)])
def test_a_job_ends_with_its_exit_code(job_toml, worker, tmp_path, code, count):
  worker(code)
  assert local.main(["run", job_toml, *HERE, "--processes=1", "--restarts=2"]) == code
  assert len(attempts(tmp_path)) == count


@pytest.mark.parametrize(
  ("flags", "line"),
  [
    ([], "job.toml: workdir: gs://my-bucket/runs/lamps is in a bucket, launch.local has files"),
    (["--workdir=runs/a"], "job.toml: paths.videos: gs://my-bucket/videos is in a bucket"),
    ([*HERE, "--processes=0"], "--processes, --devices: need numbers above 0"),
    ([*HERE, "--name=Lamps"], "--name: 'Lamps' is not"),
  ],
)
def test_what_is_not_on_this_machine_is_refused(job_toml, worker, tmp_path, capsys, flags, line):
  assert local.main(["run", job_toml, *flags]) == 2
  error = capsys.readouterr().err
  assert error.startswith(f"local: {line}") and error.count("\n") == 1
  assert not (tmp_path / "attempts").exists()


def test_secrets_are_variables_of_this_environment(job_toml, worker, tmp_path, capsys, monkeypatch):
  worker(0)
  with (tmp_path / "job.toml").open("a") as file:
    file.write('[secrets]\nLAMPS_KEY = "lamps-key"\n')
  assert local.main(["run", job_toml, *HERE]) == 2
  line = "local: job.toml: secrets.LAMPS_KEY: LAMPS_KEY is not set here; export it\n"
  assert capsys.readouterr().err == line
  monkeypatch.setenv("LAMPS_KEY", "canary-8fK2")
  assert local.main(["run", job_toml, *HERE, "--dry-run"]) == 0
  assert local.main(["run", job_toml, *HERE]) == 0
  assert "canary" not in capsys.readouterr().out + json.dumps(attempts(tmp_path))


def test_the_other_commands_say_what_is_here(job_toml, tmp_path, capfd):
  def run(*words):
    assert local.main([words[0], job_toml, *HERE, *words[1:]]) == 0
    return capfd.readouterr().out

  assert run("create") == "lamps: nothing to create; its processes run on this machine\n"
  assert run("delete") == "lamps: nothing to delete; results stay in runs/lamps\n"
  assert run("status") == "runs/lamps: has not started\n"
  (tmp_path / "runs/lamps/export").mkdir(parents=True)
  (tmp_path / "runs/lamps/config.json").write_text("{}")
  assert run("status") == "runs/lamps: has started, no step yet\n"
  line = json.dumps({"stage": "rl", "step": 7, "values": {}})
  (tmp_path / "runs/lamps/metrics.jsonl").write_text(f"{line}\n")
  assert run("status") == "runs/lamps: step 7 of rl\n"
  (tmp_path / "runs/lamps/export/weights").write_text("x")
  assert run("fetch", "--to=here") == ""
  assert (tmp_path / "here/weights").read_text() == "x"
  assert run("logs", "--dry-run") == "tail -n 100 runs/launch/lamps/process-0.log\n"
  assert run("fetch", "--dry-run", "--path=report.html") == "cp -R runs/lamps/report.html .\n"


@pytest.mark.parametrize("codes", [(0,), (2,), (75, 1, 0), (1, 1, 1), (9, 3)])
def test_a_dry_run_is_a_script_that_starts_waits_and_starts_again(
  job_toml, worker, tmp_path, capfd, codes
):
  worker(*codes)
  words = ["run", job_toml, *HERE, "--processes=2", "--restarts=2"]
  code = local.main(words)
  done = [(name, flags) for name, _, flags in attempts(tmp_path)]
  said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("local: ")]
  shutil.rmtree(tmp_path / "attempts")
  logs = tmp_path / "runs" / "launch" / "lamps"
  printed = sorted((logs / "process-1.log").read_text().splitlines())
  shutil.rmtree(logs)
  assert local.main([*words, "--dry-run"]) == 0
  script = capfd.readouterr().out
  ended = subprocess.run(
    ["bash", "-c", script],
    env={**os.environ, "PYTHONPATH": str(ROOT)},
    stdin=subprocess.DEVNULL,
    capture_output=True,
    text=True,
    check=False,
  )
  assert ended.returncode == code, ended.stderr
  assert [(name, flags) for name, _, flags in attempts(tmp_path)] == done
  assert [line for line in ended.stderr.splitlines() if line.startswith("local: ")] == said
  assert sorted((logs / "process-1.log").read_text().splitlines()) == printed
  addresses = {address for _, address, _ in attempts(tmp_path)}
  assert len(addresses) == len({name.partition("-")[0] for name, _ in done})


def test_a_dry_run_of_what_runs_nothing_is_a_comment(job_toml, capfd):
  for command in ("create", "status", "delete"):
    assert local.main([command, job_toml, *HERE, "--dry-run"]) == 0
    assert all(line.startswith("# ") for line in capfd.readouterr().out.splitlines())


SAVES = """
import os, signal, sys, time
index = sys.argv[-1].partition("=")[2]
def save(*_):
  time.sleep(0.2 + 0.3 * int(index))
  open(f"saved-{index}", "w").close()
  sys.exit(75)
signal.signal(signal.SIGTERM, save)
open(f"begun-{index}-{time.time()}", "w").close()
time.sleep(60)
sys.exit(1)
"""


@pytest.mark.parametrize("way", ["launcher", "dry run"])
def test_sigterm_is_passed_on_and_all_processes_save(job_toml, worker, tmp_path, capfd, way):
  worker(0)
  (tmp_path / "worker.py").write_text(SAVES)
  words = ["run", job_toml, *HERE, "--processes=2"]

  def stop(kill):
    until = time.monotonic() + 30
    while len(list(tmp_path.glob("begun-*"))) < 2 and time.monotonic() < until:
      time.sleep(0.05)
    kill()

  if way == "launcher":
    itself = functools.partial(os.kill, os.getpid(), signal.SIGTERM)
    thread = threading.Thread(target=stop, args=(itself,))
    thread.start()
    code = local.main(words)
    thread.join()
  else:
    assert local.main([*words, "--dry-run"]) == 0
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    script = subprocess.Popen(["bash", "-c", capfd.readouterr().out], env=environment)
    stop(script.terminate)
    code = script.wait(timeout=30)
  assert code == 75
  assert sorted(path.name for path in tmp_path.glob("saved-*")) == ["saved-0", "saved-1"]
  assert len(list(tmp_path.glob("begun-*"))) == 2  # it is not started again
