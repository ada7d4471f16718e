"""Runs whose files are in a bucket, mounted: with hierarchical namespace, and without one.

tests/fake_gcsfuse.py is the bucket; Linux lets root alone mount it.
"""

import collections
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

from tests import fake_gcsfuse
from tests.train import nano, test_lease, test_shared_cache
from vr_jax import atomic, errors
from vr_jax.train import checkpoints, metrics, shared_cache

MOVED = 3  # files that are moved before a kill


def _can_mount(directory: Path) -> bool:
  try:
    os.close(fake_gcsfuse.mount(directory))
  except (OSError, AttributeError):
    return False
  fake_gcsfuse.unmount(directory)
  return True


@pytest.fixture
def host(tmp_path, monkeypatch):
  """A host with `gcsfuse`; `host(flat=…)` is where it mounts the bucket `mine`."""
  if not _can_mount(tmp_path):
    pytest.skip("file systems can't be mounted here")
  command = tmp_path / "bin" / "gcsfuse"
  command.parent.mkdir()
  command.write_text(
    f'#!/bin/sh\ncd {nano.ROOT}\nexec {sys.executable} -m tests.fake_gcsfuse "$@"\n'
  )
  command.chmod(0o755)
  monkeypatch.setenv("HOME", str(tmp_path))
  monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
  monkeypatch.setenv("FAKE_GCSFUSE_HURRY", "0.1")
  monkeypatch.setenv("FAKE_GCSFUSE_LOG", str(tmp_path / "written"))
  place = tmp_path / ".cache" / "vr_jax" / "gcs" / "mine"

  def bucket(*, flat: bool, mount: bool = True) -> Path:
    monkeypatch.setenv("FAKE_GCSFUSE_FLAT", str(int(flat)))
    if mount:
      place.mkdir(parents=True)
      subprocess.run(["gcsfuse", "mine", str(place)], check=True)
    return place

  yield bucket
  fake_gcsfuse.unmount(place)


def _fill(directory: Path) -> dict[str, bytes]:
  files = {
    f"{part}/{index}": bytes([index]) * 10_000 for part in ("a", "b/c") for index in range(3)
  }
  for name, content in files.items():
    (directory / name).parent.mkdir(parents=True, exist_ok=True)
    (directory / name).write_bytes(content)
  (directory / "empty").mkdir()
  return files


def _read(directory: Path) -> dict[str, bytes]:
  files = (path for path in directory.rglob("*") if path.is_file())
  return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def _kill_after(monkeypatch: pytest.MonkeyPatch, moves: int) -> None:
  """After so many files have got their names, the process is killed, as it were."""
  replace, done = os.replace, []

  def count(old, new):
    if not str(old).endswith(atomic.PARTIAL) and Path(old).is_file():
      done.append(old)
      if len(done) > moves:
        raise KeyboardInterrupt
    replace(old, new)

  monkeypatch.setattr(os, "replace", count)


@pytest.mark.parametrize("flat", [False, True])
def test_a_directory_gets_its_name_when_it_is_whole(host, flat):
  final = host(flat=flat) / "data"
  with atomic.directory(final) as partial:
    files = _fill(partial)
    assert not final.exists()
  assert _read(final) == files
  assert (final / "empty").is_dir()
  assert [path.name for path in final.parent.iterdir()] == ["data"]
  with pytest.raises(errors.InputError, match="nothing was kept"), atomic.directory(final):
    pass
  assert _read(final) == files


def test_a_kill_between_two_files_leaves_what_the_next_start_completes(host, monkeypatch):
  final = host(flat=True) / "data"
  with monkeypatch.context() as patched:
    _kill_after(patched, MOVED)
    with pytest.raises(KeyboardInterrupt), atomic.directory(final) as partial:
      files = _fill(partial)
  assert len(_read(final)) == MOVED
  assert not atomic.is_whole(final)
  atomic.finish_move(final)
  assert atomic.is_whole(final)
  assert _read(final) == files
  assert [path.name for path in final.parent.iterdir()] == ["data"]


def _open(directory: Path) -> checkpoints.Checkpoints:
  return checkpoints.Checkpoints(directory, architecture={"layers": 2})


def _tree(step: int) -> dict:
  return {"weights": jnp.arange(1000.0) + step}


def test_a_checkpoint_counts_when_all_its_files_have_their_place(host, monkeypatch):
  directory = host(flat=True) / "sft"
  store = _open(directory)
  for step in (2, 4):
    store.save(step, _tree(step), {})
  store.close()
  partial = directory / "4.orbax-checkpoint-tmp"
  atomic.move_directory(directory / "4", partial)
  with monkeypatch.context() as patched:
    _kill_after(patched, MOVED)
    with pytest.raises(KeyboardInterrupt):
      atomic.move_directory(partial, directory / "4")
  store = _open(directory)
  assert store.latest() == 2
  np.testing.assert_array_equal(store.restore(_tree(0)).tree["weights"], _tree(2)["weights"])
  store.close()
  store = _open(directory)
  store.set_damaged_aside()
  assert store.latest() == 4
  np.testing.assert_array_equal(store.restore(_tree(0)).tree["weights"], _tree(4)["weights"])
  store.close()


def test_compiled_programs_are_copied_to_a_bucket_and_back(host, tmp_path):
  bucket = host(flat=True) / "compilations"
  cache, other = tmp_path / "one", tmp_path / "other"
  cache.mkdir()
  content = test_shared_cache.entry(b"program")
  (cache / "step-cache").write_bytes(content)
  assert shared_cache.copy_missing(cache, bucket) == shared_cache.copy_missing(bucket, other) == 1
  assert (other / "step-cache").read_bytes() == content


def test_of_two_hosts_that_start_at_once_one_has_the_workdir(host, tmp_path):
  ends = test_lease.race(host(flat=True) / "run", tmp_path / "go", test_lease.OWN_LOCKS)
  assert sorted((held, code) for held, code, _ in ends) == [(False, 2), (True, 0)], ends
  assert "another run has begun in it" in next(said for held, _, said in ends if not held)


def test_other_hosts_see_metrics_before_a_checkpoint_that_follows_them(host, tmp_path):
  run = host(flat=True) / "run"
  (run / "health").mkdir(parents=True)
  log = metrics.MetricsLog(run, "rl", first_step=1)
  for step in (1, 2):
    log.write(step, {"loss": 0.5})
    log.wait()  # the machine may be lost now
    seen = {}  # object -> size; the mount itself has what no other host sees
    for each in map(json.loads, (tmp_path / "written").read_text().splitlines()):
      seen[each["name"]] = each["size"]
    files = [path for path in run.rglob("*") if path.is_file()]
    assert {path.name.partition(".")[0] for path in files} == {"metrics", "times", "events"}
    for path in files:
      assert seen[path.relative_to(run.parent).as_posix()] == path.stat().st_size > 0, path
  log.close()
  assert [line["step"] for line in metrics.read(run / "metrics.jsonl")] == [1, 2]


def test_a_run_that_has_all_in_a_flat_bucket_is_killed_and_goes_on(host, tmp_path):
  place = host(flat=True, mount=False)
  flags = (
    *("--config.sft.steps=2", "--config.rl.steps=3", "--config.rl.checkpoint_every=1"),
    *("--config.eval.blind=False", "--config.eval.shuffled_frames=False"),
    "--config.eval.examples=2",
  )
  arguments = nano.arguments(Path("run"), *flags)
  arguments = [word.replace("--workdir=run", "--workdir=gs://mine/run") for word in arguments]
  run, killed = place / "run", nano.start(arguments)
  end = time.monotonic() + 600
  while killed.poll() is None and not atomic.is_whole(run / "checkpoints" / "rl" / "1"):
    assert time.monotonic() < end
    time.sleep(0.05)
  killed.send_signal(signal.SIGKILL)
  killed.communicate()
  assert killed.returncode == -signal.SIGKILL

  def finish(*words: str) -> None:
    process = nano.start([*arguments, *words])
    said = process.communicate(timeout=600)[1]
    assert process.returncode == 0, said

  finish()
  finish("--mode=export", "--config.export.directory=gs://mine/model")
  # The sizes are those of the exported model.
  arguments = [word for word in arguments if not word.startswith("--config.model.architecture")]
  finish(
    *("--mode=sft", "--workdir=gs://mine/other", "--config.data.directory=gs://mine/run/data"),
    *("--config.model.pretrained=gs://mine/model", "--config.sft.steps=1"),
  )
  lines = [(line["stage"], line["step"]) for line in metrics.read(run / "metrics.jsonl")]
  assert lines == [("sft", 1), ("sft", 2), ("rl", 1), ("rl", 2), ("rl", 3)]
  assert {"after_rl.json", "before_rl.json"} <= {path.name for path in (run / "eval").iterdir()}
  assert (run / "report.html").is_file()
  assert (place / "other" / "checkpoints" / "sft" / "1").is_dir()
  left = {path.name for path in place.rglob("*") if path.suffix in (".partial", atomic.MOVING)}
  assert not left
  waited = collections.Counter()
  for each in map(json.loads, (tmp_path / "written").read_text().splitlines()):
    if "orbax" not in each["name"] and "moss_video" not in each["name"]:  # others write those
      waited[each["name"]] += each["waited"]
  # Seconds, some of them of a busy machine: the bucket takes an object once a second, so one that
  # each step sends would wait more.
  assert max(waited.values()) < 3, waited.most_common(5)
