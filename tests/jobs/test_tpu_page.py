"""docs/tpu.md shows what the commands print, the fields that a job has, and costs that add up."""

import json
from pathlib import Path
import re
import shlex
import sys

import pytest

from launch import gke, job_file, local, slices, tpu_vm

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "tpu.md").read_text(encoding="utf-8")
PODS = (ROOT / "docs" / "pods.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
SHOWN = [text for kind, text in BLOCKS if text.startswith("$ python -m launch.")]
LAUNCHERS = {"launch.tpu_vm": tpu_vm, "launch.gke": gke, "launch.local": local}
FREE = "…"  # a line that stands for any lines
PLAN = {"topology": "v5p:2x2x2", "chips": 8, "fits": True, "step": {"seconds": 9.1}}


def run(line, capsys):
  """What a command of the page prints, with the page's paths."""
  words = shlex.split(line)
  assert words[:3] == ["$", "python", "-m"]
  code = LAUNCHERS[words[3]].main(words[4:])
  printed = capsys.readouterr()
  assert code == 0, printed.err
  return printed.out.replace(sys.executable, "python").replace(f"{ROOT}/", "")


@pytest.fixture
def files(tmp_path, monkeypatch):
  """The files that the page names, in the working directory."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setenv("PATH", "/nonexistent")  # a dry run needs no command
  monkeypatch.delenv("XLA_FLAGS", raising=False)
  lamps, tiny = (text for kind, text in BLOCKS if kind == "toml")
  (tmp_path / "lamps.toml").write_text(lamps)
  (tmp_path / "tiny.toml").write_text(tiny)
  plain = re.sub(r"\[secrets\]\n.*\n\n|log\.wandb.*\n", "", lamps)
  assert "wandb" not in plain
  (tmp_path / "gcluster.toml").write_text(plain)
  (tmp_path / "plan.json").write_text(json.dumps(PLAN))


def test_the_page_has_every_command_of_both_launchers():
  commands = {tuple(text.split()[3:5]) for text in SHOWN}
  for launcher in ("launch.tpu_vm", "launch.gke"):
    for command in ("create", "run", "status", "logs", "resume", "delete"):
      assert (launcher, command) in commands
  assert {("launch.tpu_vm", "fetch"), ("launch.tpu_vm", "cost")} <= commands


@pytest.mark.parametrize("text", SHOWN, ids=lambda text: text.splitlines()[0])
def test_a_block_shows_what_its_command_prints(files, capsys, text):
  line, *shown = text.splitlines()
  assert "--dry-run" in line or " cost " in line
  printed = run(line, capsys).splitlines()
  if FREE not in shown:
    assert shown == printed
    return
  before, after = shown[: shown.index(FREE)], shown[shown.index(FREE) + 1 :]
  assert len(before) + len(after) < len(printed)
  assert printed[: len(before)] == before
  assert printed[-len(after) :] == after


def test_the_page_lists_the_fields_of_a_job():
  rows = [row for row in PAGE.splitlines() if re.match(r"\| `[a-z_.]+` \|", row)]
  expected = [f"| `{name}` | {about} |" for name, about in described()]
  assert [row for row in rows if row in expected] == expected


def described():
  """Each field with what --help says about it."""
  for name, default, about in job_file.options():
    yield name, f"{about}; default {default}" if default not in ("", 0) else about


def test_costs_are_those_of_the_plans():
  rows = re.findall(
    r"^\| ([^|]+), (?:[^|]+) \| (v\w+-\d+) \| (\d+) \| ([\d.]+) s \| (\d+) \| (\d+) P \|$",
    PAGE,
    flags=re.MULTILINE,
  )
  assert len(rows) >= 6
  for model, name, chips, seconds, chip_hours, cost in rows:
    assert slices.parse(name).chips == int(chips)
    assert round(int(chips) * float(seconds) * 1000 / 3600) == int(chip_hours) == int(cost)
    plans = [row for row in PODS.splitlines() if f"| {name} |" in row and row.startswith("| ")]
    size = model.split(",")[0].split()[0]
    assert any(row.startswith(f"| {size}") and f"| {seconds} s, " in row for row in plans), model


def test_every_line_that_the_page_explains_is_one_that_the_code_can_say():
  """Texts of ours in the table of failures stand in the sources, between what is formatted."""
  sources = "".join(
    path.read_text(encoding="utf-8")
    for folder in ("launch", "vr_jax/parallel")
    for path in [*(ROOT / folder).glob("*.py"), *(ROOT / folder).glob("*.sh")]
  )
  for text in (
    "can't join the others at ",
    "not all processes are there",
    "its TPU is held by process",
    "does not start again: ",
    " restarts are used up",
    " can't be mounted",
  ):
    assert text in sources and text.strip() in PAGE
