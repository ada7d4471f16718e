"""A job's file, and recording commands on PATH."""

import os
import subprocess

import pytest

from tests.jobs import recorders

JOB = """
name = "lamps"
recipe = "moss_chatv:7b"
mode = "rl"
slice = "v5p-16"
project = "my-project"
zone = "us-east5-a"
image = "us-docker.pkg.dev/my-project/images/vr-jax:1"
bucket = "gs://my-bucket"
restarts = 5

[paths]
videos = "gs://my-bucket/videos"
annotations = "gs://my-bucket/lamps.jsonl"
pretrained = "gs://my-bucket/Qwen2.5-VL-7B-Instruct"

[overrides]
rl.steps = 200
rl.microbatches = 2
mesh = "(4,-1,1,1)"

[gke]
cluster = "my-cluster"
"""


@pytest.fixture
def job_toml(tmp_path, monkeypatch):
  """Path of a job's file, in the working directory."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / "job.toml").write_text(JOB)
  return "job.toml"


@pytest.fixture
def commands(tmp_path, monkeypatch):
  """Recording gcloud, kubectl and gcluster, before all others on PATH."""
  found = recorders.Recorders(tmp_path / "bin", "gcloud", "kubectl", "gcluster")
  monkeypatch.setenv("PATH", f"{found.directory}{os.pathsep}{os.environ['PATH']}")
  return found


@pytest.fixture
def same_in_a_shell(commands, capfd):
  """Runs a command of a launcher, then the script that its dry run prints: both do the same.

  Returns the exit code and the calls of one of them.
  """

  def compare(launcher, words):
    before = len(commands.calls())
    code = launcher.main(words)
    calls = commands.calls()[before:]
    capfd.readouterr()
    assert launcher.main([*words, "--dry-run"]) == 0
    script = capfd.readouterr().out
    assert commands.calls()[before:] == calls
    done = subprocess.run(
      ["bash", "-c", script], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert commands.calls()[before + len(calls) :] == calls, script
    assert done.returncode == code, done.stderr
    return code, calls

  return compare
