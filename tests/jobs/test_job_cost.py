"""Costs are chips x hours x the user's price."""

import json

import pytest

from launch import gke, local, tpu_vm

PLAN = {
  "topology": "v5p:2x2x2",
  "chips": 8,
  "fits": True,
  "step": {"seconds": 14.4, "chip_hours": 0.032},
}


@pytest.mark.parametrize("launcher", [local, tpu_vm, gke])
def test_hours_times_chips_times_price(job_toml, commands, capsys, launcher):
  flags = ["--hours=2.5", "--price_per_chip_hour=4.2"]
  assert launcher.main(["cost", job_toml, *flags, "--slice=2xv5p-64"]) == 0
  assert capsys.readouterr().out == (
    "2xv5p-64: 64 chips x 2.50 h = 160.0 chip-hours\n160.0 chip-hours x 4.2 = 672.00\n"
  )
  assert not commands.calls()


def test_hours_come_from_a_plan_and_the_steps_of_the_job(job_toml, tmp_path, capsys):
  (tmp_path / "plan.json").write_text(json.dumps(PLAN))
  flags = ["--plan=plan.json", "--price_per_chip_hour=2"]
  assert tpu_vm.main(["cost", job_toml, *flags]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == "v5p-16: 8 chips x 0.80 h (200 steps of 14.4 s) = 6.4 chip-hours"
  assert lines[1] == "6.4 chip-hours x 2 = 12.80"
  assert lines[2].startswith("A plan's time is the least ")
  assert tpu_vm.main(["cost", job_toml, *flags, "--steps=1000"]) == 0
  assert "(1000 steps of 14.4 s)" in capsys.readouterr().out


def test_without_an_override_the_steps_are_the_recipes(tmp_path, monkeypatch, capsys):
  monkeypatch.chdir(tmp_path)
  (tmp_path / "plan.json").write_text(json.dumps(PLAN))
  flags = ["--name=a", "--recipe=moss_chatv:7b", "--slice=v5p-16", "--plan=plan.json"]
  assert tpu_vm.main(["cost", *flags, "--price_per_chip_hour=2"]) == 0
  assert "(1000 steps of 14.4 s)" in capsys.readouterr().out


@pytest.mark.parametrize(
  ("flags", "line"),
  [
    (["--hours=1"], "--price_per_chip_hour: needs your price of a chip for an hour"),
    (["--hours=1", "--price_per_chip_hour=0"], "--price_per_chip_hour: needs your price"),
    (["--hours=1", "--price_per_chip_hour=nan"], "--price_per_chip_hour: needs your price"),
    (["--price_per_chip_hour=1"], "--hours: needs hours, or --plan=FILE with what plan.py"),
    (["--hours=0", "--price_per_chip_hour=1"], "--hours=0.0: needs a number above 0"),
    (
      ["--plan=plan.json", "--price_per_chip_hour=1", "--steps=0"],
      "config.rl.steps=0: needs a number above 0",
    ),
    (["--plan=no.json", "--price_per_chip_hour=1"], "--plan=no.json: No such file or directory"),
    (
      ["--plan=plan.json", "--price_per_chip_hour=1", "--slice=v5p-32"],
      "--plan=plan.json: is for 8 chips (v5p:2x2x2), v5p-32 has 16",
    ),
    (
      ["--plan=tight.json", "--price_per_chip_hour=1"],
      "--plan=tight.json: says that the job does not fit this slice",
    ),
    (
      ["--plan=part.json", "--price_per_chip_hour=1"],
      "--plan=part.json: is of a part of the step; plan without --layers and --programs",
    ),
    (
      ["--plan=job.toml", "--price_per_chip_hour=1"],
      "--plan=job.toml: is not what launch/plan.py --json prints (without --sweep)",
    ),
    (
      ["--plan=sweep.json", "--price_per_chip_hour=1"],
      "--plan=sweep.json: is not what launch/plan.py --json prints (without --sweep)",
    ),
    (["--slice=", "--hours=1", "--price_per_chip_hour=1"], "--slice: cost needs it"),
  ],
)
def test_what_can_not_be_multiplied_is_one_line(job_toml, tmp_path, capsys, flags, line):
  (tmp_path / "plan.json").write_text(json.dumps(PLAN))
  (tmp_path / "tight.json").write_text(json.dumps(PLAN | {"fits": False, "step": None}))
  (tmp_path / "part.json").write_text(json.dumps(PLAN | {"fits": None, "step": None}))
  (tmp_path / "sweep.json").write_text(json.dumps({"best": None}))
  assert tpu_vm.main(["cost", job_toml, *flags]) == 2
  error = capsys.readouterr().err
  assert error.startswith(f"tpu_vm: {line}") and error.count("\n") == 1
