"""A workdir belongs to one config, and its metrics survive a kill in the middle of a line."""

from concurrent import futures
import contextlib
import datetime
import errno
import json
import os
import pathlib

import pytest
from tensorboard.backend.event_processing import event_file_loader

from tests.train import nano
from vr_jax import errors, main
from vr_jax.train import metrics, tensorboard_log, workdir


def test_a_workdir_says_what_made_it(tmp_path):
  workdir.claim(tmp_path / "run", nano.config(), "all")
  written = json.loads((tmp_path / "run" / "config.json").read_text())
  assert written["config"]["rl"]["steps"] == 4
  assert written["versions"]["jax"]
  assert "git_revision" in written
  assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


def _made(directory):
  """Makes a workdir as a stage that has begun leaves it."""
  (directory / "data").mkdir(parents=True)
  (directory / "data" / "shard").touch()


def test_the_same_config_may_come_back(tmp_path):
  _made(tmp_path)
  workdir.claim(tmp_path, nano.config(), "all")
  before = json.loads((tmp_path / "config.json").read_text())["config"]
  workdir.claim(tmp_path, nano.config(), "all")
  assert json.loads((tmp_path / "config.json").read_text())["config"] == before


def test_every_start_is_kept_and_the_last_one_stands_on_top(tmp_path, monkeypatch):
  for revision, mode in (("one", "data"), ("two", "rl")):
    monkeypatch.setattr(workdir, "_git_revision", lambda revision=revision: revision)
    workdir.claim(tmp_path, nano.config(), mode)
  written = json.loads((tmp_path / "config.json").read_text())
  assert written["git_revision"] == "two"
  starts = [(start["git_revision"], start["mode"]) for start in written["history"]]
  assert starts == [("one", "data"), ("two", "rl")]
  for start in written["history"]:
    assert start["versions"] == written["versions"]
    assert datetime.datetime.fromisoformat(start["time"]).tzinfo


def test_another_config_is_refused_with_the_field_that_differs(tmp_path):
  workdir.claim(tmp_path, nano.config(), "all")
  _made(tmp_path)
  before = (tmp_path / "config.json").read_text()
  with pytest.raises(errors.InputError) as error:
    workdir.claim(tmp_path, nano.config(data__quality=80), "all")
  assert "config.data.quality=90, now 80" in str(error.value)
  assert str(tmp_path / "config.json") in str(error.value)
  assert (tmp_path / "config.json").read_text() == before


def test_what_a_start_found_wrong_may_be_put_right(tmp_path):
  run, given = tmp_path / "run", tmp_path / "videos"
  given.mkdir()
  (given / "broken.mp4").write_bytes(b"no video")
  record = {"id": "1", "video": "broken.mp4", "question": "Who?", "answer": "me"}
  (tmp_path / "one.jsonl").write_text(json.dumps({**record, "problem_type": "free-form"}))
  fields = {"simulate.videos": 0, "annotations": tmp_path / "one.jsonl"}
  fields = [f"--config.data.{name}={value}" for name, value in fields.items()]
  command = ["x", "--config=configs/moss_chatv.py:tiny", f"--workdir={run}", "--mode=data"]
  for videos in (tmp_path / "mistyped", given, tmp_path):
    assert main.cli([*command, *fields, f"--config.data.videos={videos}"]) == 2
  written = json.loads((run / "config.json").read_text())
  assert written["config"]["data"]["videos"] == str(tmp_path)
  assert len(written["history"]) == 3


def test_a_field_that_a_newer_version_added_counts_as_empty(tmp_path):
  older = nano.config()
  with older.unlocked():
    del older.model["rope_after_video"]
  (tmp_path / "checkpoints" / "sft" / "4").mkdir(parents=True)
  _made(tmp_path)
  workdir.claim(tmp_path, older, "all")
  workdir.claim(tmp_path, nano.config(), "all")
  with pytest.raises(errors.InputError, match=r"config\.model\.rope_after_video='', now 'largest'"):
    workdir.claim(tmp_path, nano.config(model__rope_after_video="largest"), "all")


def test_what_was_made_in_another_directory_belongs_to_the_config_as_well(tmp_path):
  run, fields = tmp_path / "run", {"data__directory": str(tmp_path / "data")}
  for fps in (2.0, 4.0):
    workdir.claim(run, nano.config(data__fps=fps, **fields), "data")
  _made(tmp_path)
  with pytest.raises(errors.InputError, match=r"config\.data\.fps=4\.0, now 2\.0"):
    workdir.claim(run, nano.config(data__fps=2.0, **fields), "sft")


def test_how_it_is_evaluated_may_change(tmp_path):
  _made(tmp_path)
  workdir.claim(tmp_path, nano.config(), "all")
  workdir.claim(tmp_path, nano.config(eval__examples=3), "all")
  assert json.loads((tmp_path / "config.json").read_text())["config"]["eval"]["examples"] == 3


@pytest.mark.parametrize(
  "content",
  [b"", b"{", b"[]", b"5", b'{"config": 5}', b'{"config": {}, "history": 5}', b"\xff\xfe"],
)
def test_a_damaged_config_is_named(tmp_path, content):
  (tmp_path / "config.json").write_bytes(content)
  with pytest.raises(errors.InputError, match=r"config\.json: damaged"):
    workdir.claim(tmp_path, nano.config(), "all")


class _Device:
  def __init__(self, stats):
    self.memory_stats = lambda: stats


def test_memory_of_the_device_is_told_where_it_is_counted(monkeypatch):
  counted = {"peak_bytes_in_use": 2**21, "bytes_in_use": 2**20}
  monkeypatch.setattr(metrics.jax, "local_devices", lambda: [_Device(counted)])
  found = metrics.memory()
  assert (found["perf/device_peak_mib"], found["perf/device_memory_mib"]) == (2, 1)
  for stats in (None, {"bytes_limit": 5}):
    monkeypatch.setattr(metrics.jax, "local_devices", lambda stats=stats: [_Device(stats)])
    assert list(metrics.memory()) == ["perf/host_peak_mib"]


def _write(path, stage, steps, first_step=1):
  log = metrics.MetricsLog(path, stage, first_step=first_step)
  for step in steps:
    log.write(step, {"loss": 1 / step})
  log.close()


def _steps(path):
  return [(line["stage"], line["step"]) for line in metrics.read(path / "metrics.jsonl")]


def test_lines_after_the_checkpoint_that_is_resumed_are_written_anew(tmp_path):
  _write(tmp_path, "sft", [1, 2])
  _write(tmp_path, "rl", [1, 2, 3])
  _write(tmp_path, "rl", [3], first_step=3)
  assert _steps(tmp_path) == [("sft", 1), ("sft", 2), ("rl", 1), ("rl", 2), ("rl", 3)]


@pytest.mark.parametrize("cut", [1, 10, 30, 45])
def test_a_last_line_that_a_kill_cut_short_is_dropped(tmp_path, cut):
  _write(tmp_path, "rl", [1, 2, 3])
  path = tmp_path / "metrics.jsonl"
  lines = path.read_text().splitlines(keepends=True)
  path.write_text("".join(lines[:2]) + lines[2][:cut])
  _write(tmp_path, "rl", [3, 4], first_step=3)
  assert path.read_text().splitlines(keepends=True)[:3] == lines
  assert _steps(tmp_path) == [("rl", 1), ("rl", 2), ("rl", 3), ("rl", 4)]


@pytest.mark.parametrize("bad", ["not json", "5", "[]", "{}"])
def test_any_other_line_that_is_none_of_ours_is_named(tmp_path, bad):
  _write(tmp_path, "rl", [1, 2])
  path = tmp_path / "metrics.jsonl"
  lines = path.read_text().splitlines()
  path.write_text("\n".join([lines[0], bad, lines[1]]) + "\n")
  with pytest.raises(errors.InputError, match=r"metrics\.jsonl:2: "):
    metrics.MetricsLog(tmp_path, "rl", first_step=3)


@pytest.mark.parametrize("asked", ["write", "wait", "close"])
def test_a_line_that_can_not_be_written_is_an_error_of_the_run(tmp_path, monkeypatch, asked):
  def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

  log = metrics.MetricsLog(tmp_path, "rl", first_step=1)
  monkeypatch.setattr(log, "_put", full)
  log.write(1, {"loss": 0.5})
  futures.wait(log._writer._unwritten)
  arguments = (2, {"loss": 0.5}) if asked == "write" else ()
  with pytest.raises(OSError, match="No space left"):
    getattr(log, asked)(*arguments)


@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="a device of Linux")
def test_where_the_disk_is_full_the_metrics_file_is_named(tmp_path):
  log = metrics.MetricsLog(tmp_path, "rl", first_step=1)
  path = tmp_path / "metrics.jsonl"
  log = metrics.MetricsLog(tmp_path, "rl", first_step=1)
  full = os.open("/dev/full", os.O_WRONLY)
  os.dup2(full, log._file.fileno())
  os.close(full)
  log.write(1, {"loss": 0.5})
  with pytest.raises(OSError, match="No space left on device") as error, contextlib.closing(log):
    log.wait()
  assert error.value.filename == str(path)


def test_what_is_written_after_a_clock_was_set_back_is_shown_by_tensorboard(tmp_path, monkeypatch):
  now = 2e9
  monkeypatch.setattr(tensorboard_log.time, "time", lambda: now)
  for first in (1, 3, 5):
    log = tensorboard_log.TensorBoardLog(tmp_path, first_step=first)
    log.write_scalars(first, {"loss": first})
    log.close()
    now -= 3600
  steps = [
    event.step
    for path in sorted(tmp_path.iterdir())
    for event in event_file_loader.EventFileLoader(str(path)).Load()
    if event.summary.value
  ]
  assert steps == [1, 3, 5]


def test_values_that_are_not_finite_are_written_as_null(tmp_path):
  log = metrics.MetricsLog(tmp_path, "rl", first_step=1)
  log.write(1, {"loss": float("nan"), "norm": float("inf"), "kl": 0.5})
  log.close()
  (line,) = metrics.read(tmp_path / "metrics.jsonl")
  assert line["values"] == {"loss": None, "norm": None, "kl": 0.5}


def test_sources_that_differ_have_another_digest(tmp_path, monkeypatch):
  def digest(text):
    (tmp_path / "module.py").write_text(text)
    return workdir.source_digest.__wrapped__()

  assert workdir.source_digest() == workdir.source_digest.__wrapped__()
  monkeypatch.setattr(workdir.vr_jax, "__file__", str(tmp_path / "__init__.py"))
  one, other = digest("one"), digest("two")
  assert len(one) == len(other) == 12
  assert one != other
  assert digest("one") == one
