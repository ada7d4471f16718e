"""With --log_format=json every line says when, how bad, and of which process of which host."""

import datetime
import io
import json
import os
import socket
import subprocess
import sys

import pytest

from launch import local
from tests.train import nano
from vr_jax import json_lines, main

CHILD = """
import sys
import jax
from vr_jax import main
from vr_jax.parallel import processes
from vr_jax.train import console

def work(config, workdir, mode):
  with console.progress("rl", 20) as tick:
    tick(2, values={"accuracy": 0.25})
    console.print_line("two\\nlines")
    console.print_note("a judge\\x1b[2J is slow")
    print("a library says", end=" ")
    print("so")
    processes.first_alone("all", lambda: None)
    if jax.process_index():
      raise RuntimeError("no such luck")
    processes.first_alone("never", lambda: None)

main.run = work
sys.exit(main.cli())
"""


def read(text):
  return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def test_each_of_two_processes_writes_objects_with_its_index(tmp_path):
  address = f"localhost:{local.free_port()}"
  words = [
    *("--config=moss_chatv:tiny", f"--workdir={tmp_path}", "--log_format=json"),
    *(f"--coordinator_address={address}", "--num_processes=2"),
  ]
  started = [
    subprocess.Popen(
      [sys.executable, "-c", CHILD, *words, f"--process_id={index}"],
      cwd=nano.ROOT,
      env={**os.environ, "JAX_PLATFORMS": "cpu"},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  said = [each.communicate(timeout=120) for each in started]
  assert started[1].returncode == 1, said
  out, progress = (read(text) for text in said[0])
  assert [line["message"] for line in out] == ["two\nlines", "a library says so"]
  found = [(line["severity"], line["message"]) for line in progress[:2]]
  assert found == [("INFO", "rl 2/20  accuracy 0.25"), ("WARNING", "a judge\\x1b[2J is slow")]
  for line in out + progress[:2]:
    assert (line["process"], line["host"], line["stage"]) == (0, socket.gethostname(), "rl")
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(line["time"])
    assert 0 <= age.total_seconds() < 120
  (_, other) = (read(text) for text in said[1])
  assert [line["message"] for line in read(said[1][0])] == ["a library says so"]
  assert [(line["process"], line["severity"]) for line in other] == [(1, "ERROR")]
  assert other[0]["message"].startswith("Traceback")
  assert other[0]["message"].endswith("\nRuntimeError: no such luck")


def test_bad_input_is_one_object_and_the_streams_are_as_before(tmp_path, capsys):
  before = sys.stdout, sys.stderr
  words = ["vr-jax", "--config=grpo:tiny", f"--workdir={tmp_path}", "--log_format=json"]
  assert main.cli([*words, "--config.rl.stepz=2"]) == 2
  assert (sys.stdout, sys.stderr) == before
  (line,) = capsys.readouterr().err.splitlines()
  assert json.loads(line)["severity"] == "ERROR"
  assert json.loads(line)["message"].startswith("vr-jax: --config.rl.stepz: no such field")


def test_lines_are_written_when_they_are_complete():
  stream = io.StringIO()
  lines = json_lines.JsonLines(stream, "ERROR")
  for text in ("a", "b\n\n", "", "c\nd\ne"):
    lines.write(text)
  assert [line["message"] for line in read(stream.getvalue())] == ["ab", "c\nd"]
  lines.end()
  assert [line["message"] for line in read(stream.getvalue())] == ["ab", "c\nd", "e"]


@pytest.mark.parametrize(
  ("flags", "asked"),
  [
    (["--log_format=json"], True),
    (["--log_format", "json"], True),
    (["-log_format=json"], True),
    (["--log_format=json", "--log_format=text"], False),
    (["--workdir=json"], False),
    ([], False),
  ],
)
def test_the_flag_is_read_as_the_command_line_reads_it(flags, asked):
  assert json_lines.is_asked(["vr-jax", *flags, "--mode=check"]) == asked


ON_TPU = {"TPU_WORKER_ID": "3"}
ON_SLURM = {"SLURM_NTASKS": "4", "SLURM_PROCID": "2"}


@pytest.mark.parametrize(
  ("flags", "environment", "process"),
  [
    ([], {}, None),
    (["--process_id=7"], {}, 7),
    (["--process_id", "0"], ON_TPU, 0),
    (["--process_id=seven"], {}, None),
    ([], ON_TPU, 3),
    ([], ON_TPU | {"MEGASCALE_SLICE_ID": "1"}, None),
    ([], ON_SLURM, 2),
    ([], ON_SLURM | {"SLURM_NTASKS": "1"}, None),
  ],
)
def test_before_the_processes_have_joined_a_line_has_the_index_that_is_known(
  flags, environment, process, capsys, monkeypatch
):
  for name in ("TPU_WORKER_ID", "MEGASCALE_SLICE_ID", "SLURM_NTASKS", "SLURM_PROCID"):
    monkeypatch.delenv(name, raising=False)
  for name, value in environment.items():
    monkeypatch.setenv(name, value)
  assert main.cli(["vr-jax", "--config=none:tiny", "--log_format=json", *flags]) == 2
  (line,) = read(capsys.readouterr().err)
  assert line["process"] == process
