"""gs:// paths on a command line become those of mounted buckets."""

import json
import os
from pathlib import Path

import pytest

from tests.train import nano
from vr_jax import buckets, errors, main
from vr_jax.eval import stage
from vr_jax.train import workdir


@pytest.fixture
def machine(tmp_path, monkeypatch):
  """A machine without mounts. `gcsfuse` counts its calls and marks the directory as a mount."""
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  monkeypatch.setattr(buckets, "MOUNTS", tmp_path / "gcs")
  monkeypatch.setattr(buckets, "_FAILURES", {})
  monkeypatch.setattr(os.path, "ismount", lambda path: Path(path, ".mounted").exists())
  return tmp_path


def install(machine, monkeypatch, body):
  script = machine / "bin" / "gcsfuse"
  script.parent.mkdir()
  script.write_text(f"#!/bin/sh\n{body}\n")
  script.chmod(0o755)
  monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")


def test_buckets_of_a_machine_that_launch_started_are_where_it_mounts_them(machine):
  for bucket in ("a-1", "b.2"):
    (machine / "gcs" / bucket).mkdir(parents=True)
    (machine / "gcs" / bucket / ".mounted").touch()
  root = machine / "gcs"
  for word, expected in {
    "gs://a-1/clip.mp4": f"{root}/a-1/clip.mp4",
    "--workdir=gs://a-1/runs/x": f"--workdir={root}/a-1/runs/x",
    "--workdir=gs://a-1": f"--workdir={root}/a-1",
    "--config.x=('gs://a-1/y', \"gs://b.2/z\")": f"--config.x=('{root}/a-1/y', \"{root}/b.2/z\")",
    "--config.env.instruction=Say gs://c/d": "--config.env.instruction=Say gs://c/d",
    "--config.data.videos=videos": "--config.data.videos=videos",
    "--workdir=gs://A_B/x": "--workdir=gs://A_B/x",  # is no bucket's name: refused later
  }.items():
    assert buckets.mounted([word]) == [expected]


def test_elsewhere_a_bucket_is_mounted_once(machine, monkeypatch):
  calls = machine / "calls"
  mark = 'for last; do :; done; touch "$last/.mounted"'
  install(machine, monkeypatch, f'echo "$@" >> {calls}; {mark}')
  own = machine / "home" / ".cache" / "vr_jax" / "gcs" / "mine"
  words = ["--workdir=gs://mine/run", "--config.data.videos=gs://mine/videos"]
  for _ in range(2):
    assert buckets.mounted(words) == [f"--workdir={own}/run", f"--config.data.videos={own}/videos"]
  assert calls.read_text().splitlines() == [
    f"--implicit-dirs --metadata-cache-ttl-secs=0 mine {own}"
  ]


def test_a_path_in_a_bucket_is_the_same_wherever_it_is_mounted(machine):
  own = machine / "home" / ".cache" / "vr_jax" / "gcs"
  for root in (machine / "gcs", own):
    assert buckets.as_addresses(f'"{root}/mine/videos"') == '"gs://mine/videos"'
  other = f'"/data{machine}/gcs/mine"'
  assert buckets.as_addresses(other) == other


def test_a_run_keeps_addresses_and_each_host_reads_its_own_paths(machine, monkeypatch):
  own = machine / "home" / ".cache" / "vr_jax" / "gcs" / "mine"
  own.mkdir(parents=True)
  (own / ".mounted").touch()
  config = nano.config(data__videos=f"{own}/videos", data__directory=f"{own}/data")
  run = machine / "run"
  workdir.claim(run, config, "data")
  (run / "metrics.jsonl").touch()  # from now on nothing may change
  text = (run / "config.json").read_text()
  assert '"gs://mine/videos"' in text and str(own) not in text
  assert workdir.config_of(run).data.videos == f"{own}/videos"
  # On a pod's host, and where there is neither a mount nor gcsfuse.
  monkeypatch.setenv("PATH", str(machine))
  for mounted in (machine / "gcs" / "mine", None):
    (own / ".mounted").unlink(missing_ok=True)
    if mounted:
      mounted.mkdir(parents=True)
      (mounted / ".mounted").touch()
    else:
      (machine / "gcs" / "mine" / ".mounted").unlink()
    there = workdir.config_of(run)
    assert there.data.videos == f"{machine}/gcs/mine/videos"
    workdir.claim(run, there, "data")
    assert json.loads((run / "config.json").read_text())["config"]["data"]["videos"] == (
      "gs://mine/videos"
    )


def test_an_evaluation_is_the_same_on_hosts_that_mount_its_bucket_elsewhere(machine):
  own = machine / "home" / ".cache" / "vr_jax" / "gcs"
  found = {
    stage._made_of(nano.config(model__pretrained=f"{root}/qwen"), root / "run/checkpoints/rl", 3)
    for root in (machine / "gcs" / "mine", own / "mine")
  }
  assert len(found) == 1
  other = nano.config(model__pretrained=f"{own}/others/qwen")
  assert stage._made_of(other, own / "mine/run/checkpoints/rl", 3) not in found


def test_what_gcsfuse_says_is_the_line(machine, monkeypatch, capsys):
  install(machine, monkeypatch, "echo Starting; echo 'bucket mine: 403 forbidden' >&2; exit 1")
  with pytest.raises(errors.InputError, match="gs://mine can't be mounted: bucket mine: 403"):
    buckets.mounted(["--workdir=gs://mine/run"])
  assert main.cli(["vr-jax", "status", "gs://mine/run"]) == 2
  assert "vr-jax: gs://mine/run: gs://mine can't be mounted" in capsys.readouterr().err


def test_a_bucket_that_fails_is_tried_once_and_where_it_is_needed_the_reason_is_told(
  machine, monkeypatch, capsys
):
  calls, videos = machine / "calls", machine / "gcs" / "mine" / "videos"
  install(machine, monkeypatch, f"echo >> {calls}; echo 'bucket mine: 403 forbidden' >&2; exit 1")
  run = machine / "run"
  changes = {"data__videos": str(videos), "data__annotations": f"{videos.parent}/a.jsonl"}
  workdir.claim(run, nano.config(**changes), "data")
  capsys.readouterr()
  assert main.cli(["vr-jax", f"--workdir={run}", "--mode=data"]) == 2
  (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
  assert str(videos.parent) in line
  assert line.endswith("(gs://mine can't be mounted: bucket mine: 403 forbidden)")
  assert calls.read_text().count("\n") == 1
  other = f"{videos.parent}-2/a: no such file"
  assert buckets.explained(other) == other


def test_without_gcsfuse_the_line_says_what_to_install(machine, monkeypatch):
  monkeypatch.setenv("PATH", str(machine))
  with pytest.raises(errors.InputError, match=r"install gcsfuse .*, or mount gs://mine at"):
    buckets.mounted(["--workdir=gs://mine/run"])
