"""Runs with several processes on this host match a run with one process and as many devices."""

import dataclasses
import json
import operator
import os
from pathlib import Path
import shutil
import signal
import subprocess
import sys
import time

import pytest

from launch import local
from tests.train import nano
from vr_jax import main
from vr_jax.eval import evaluated_parts
from vr_jax.train import metrics

# Enough supervised steps for replies that get rewards, so that the processes share rewards as well.
LONGER = {
  "sft.steps": 150,
  "sft.learning_rate": 1e-2,
  "sft.warmup_steps": 10,
  "sft.checkpoint_every": 150,
  "rl.steps": 2,
  "rl.max_new_tokens": 72,
  # Five examples in batches of two a process: one has a batch more than the other.
  "rl.eval_every": 2,
  "rl.eval_split": "test",
  "rl.eval_examples": 5,
}
# Several turns: an untrained reply leads to another turn.
TURNS = {
  "data.simulate.world.behaviours": ("flicker",),
  "data.simulate.world.families": ("moment",),
  "data.simulate.world.fps": 1,
  "data.frames": 8,
  "env.frame_budget": 4,
  "env.turns": 2,
  "model.prefix_buckets": (256,),
  "turns.episode_buckets": (128,),
  "turns.frame_buckets": (1,),
  "sft.steps": 0,
  "rl.steps": 1,
  "rl.advantage_estimator": "episode",
}
RECIPES = {nano.RECIPE: LONGER, "configs/video_mtr.py": TURNS}


def launch(
  workdir: Path, mode: str, *flags: str, processes: int, devices: int, recipe: str = nano.RECIPE
):
  counts = [f"--processes={processes}", f"--devices={devices}"]
  fields = [f"--config.{name}={value}" for name, value in RECIPES[recipe].items()]
  return subprocess.run(
    [
      *(sys.executable, "-m", "launch.local", *counts, "--"),
      *nano.arguments(workdir, *fields, *flags, mode=mode, recipe=recipe),
    ],
    cwd=nano.ROOT,
    capture_output=True,
    text=True,
    timeout=240,
    check=False,
  )


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """Workdirs of RL from the same warm start: with one process of two devices, and two of one."""
  root = tmp_path_factory.mktemp("launch")
  directory = nano.make_data(root / "data")
  data = f"--config.data.directory={directory}"
  fields = {name.replace(".", "__"): value for name, value in LONGER.items()}
  with pytest.MonkeyPatch.context() as patch:
    nano.use_devices(patch, 1)
    config = nano.config(**fields, data__directory=str(directory))
    main.run(config, root / "start", "sft")
  found = []
  for processes in (1, 2):
    workdir = root / f"processes-{processes}"
    initial = f"--config.rl.init_checkpoint={root / 'start' / 'checkpoints' / 'sft'}"
    done = launch(workdir, "rl", data, initial, processes=processes, devices=2 // processes)
    assert done.returncode == 0, done.stderr
    found.append(workdir)
  return found


def reproducible(line):
  values = {k: v for k, v in line["values"].items() if not k.startswith("perf/")}
  return {**line, "values": values}


def test_two_processes_train_as_one_process_with_two_devices_does(runs):
  one, two = (
    [reproducible(line) for line in metrics.read(workdir / "metrics.jsonl")] for workdir in runs
  )
  assert len(one) == len(two) == LONGER["rl.steps"]
  for alone, together in zip(one, two, strict=True):
    _pop_rounding(alone["values"], together["values"])
    assert together["values"] == pytest.approx(alone["values"], rel=1e-5, abs=1e-7)


def _pop_rounding(*several):
  """On policy the sampler and the trainer differ by rounding alone, which devices change."""
  for values in several:
    rounding = [name for name in values if "logp_difference/" in name]
    assert len(rounding) == 4
    assert all(values.pop(name) < 1e-4 for name in rounding)


def test_the_runs_compared_have_rewards_to_carry_between_processes(runs):
  last = metrics.read(runs[0] / "metrics.jsonl")[-1]["values"]
  assert last["rewards/total/std"] > 0.1
  assert last["eval/rewards/total/mean"] > 0.1
  assert last["eval/completions/mean_length"] > 1


def test_each_process_writes_the_rollouts_that_it_scored(runs):
  one, two = (
    {path.name: path.read_text().splitlines() for path in (workdir / "rollouts").iterdir()}
    for workdir in runs
  )
  for step in (1, 2):
    parts = [two.pop(f"step-00000{step}.{share}-of-2.jsonl") for share in (0, 1)]
    together = [json.loads(line) for part in parts for line in part]
    alone = [json.loads(line) for line in one.pop(f"step-00000{step}.jsonl")]
    assert [len(part) for part in parts] == [2, 2]
    key = operator.itemgetter("example", "prompt")
    for left, right in zip(sorted(alone, key=key), sorted(together, key=key), strict=True):
      for mine, theirs in zip(left.pop("replies"), right.pop("replies"), strict=True):
        for name in ("rewards", "advantages"):
          assert theirs.pop(name) == pytest.approx(mine.pop(name), rel=1e-4, abs=1e-5)
        assert mine == theirs
      assert left == right
  assert not one and not two


def test_processes_keep_the_best_checkpoint_together(runs):
  kept = [sorted(p.name for p in (w / "checkpoints" / "rl_best").iterdir()) for w in runs]
  assert kept == [["2"], ["2"]]


def test_a_checkpoint_goes_on_with_other_devices_and_processes(runs, tmp_path):
  """Two processes of a device each, then one of four: as two devices that stay two."""
  found = []
  for number, (workdir, devices) in enumerate(zip(runs, (2, 4), strict=True)):
    own = tmp_path / str(number)
    shutil.copytree(workdir, own)
    data = f"--config.data.directory={runs[0].parent / 'data'}"
    initial = f"--config.rl.init_checkpoint={runs[0].parent / 'start' / 'checkpoints' / 'sft'}"
    done = launch(own, "rl", data, initial, "--config.rl.steps=4", processes=1, devices=devices)
    assert done.returncode == 0, done.stderr
    lines = [reproducible(line) for line in metrics.read(own / "metrics.jsonl")]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    groups = (own / "rollouts" / "step-000003.jsonl").read_text().splitlines()
    replies = [
      (group["example"], [reply["text"] for reply in group["replies"]])
      for group in map(json.loads, groups)
    ]
    found.append((lines, replies))
  (two, texts_of_two), (four, texts_of_four) = found
  assert texts_of_four == texts_of_two
  for one, other in zip(two, four, strict=True):
    _pop_rounding(one["values"], other["values"])
    assert other["values"] == pytest.approx(one["values"], rel=1e-4, abs=1e-6)


def test_processes_play_learn_and_count_episodes_as_one_does(tmp_path):
  recipe, found = "configs/video_mtr.py", []
  fields = {name.replace(".", "__"): value for name, value in TURNS.items()}
  directory = nano.make_data(tmp_path / "data", recipe, **fields)
  with pytest.MonkeyPatch.context() as patch:
    nano.use_devices(patch, 2)
    config = nano.config(recipe, **fields, data__directory=str(directory))
    main.run(config, tmp_path / "one", "rl")
  data = f"--config.data.directory={directory}"
  done = launch(tmp_path / "two", "rl", data, processes=2, devices=1, recipe=recipe)
  assert done.returncode == 0, done.stderr
  for workdir in (tmp_path / "one", tmp_path / "two"):
    found += [reproducible(line)["values"] for line in metrics.read(workdir / "metrics.jsonl")]
  alone, together = found
  assert together == pytest.approx(alone, rel=1e-5, abs=1e-7)
  assert alone["turns"] > 1 and alone["invalid_action_rate"] > 0


def test_halves_of_two_processes_sample_and_train_as_one_mesh_does(tmp_path):
  recipe, found = "configs/video_mtr.py", []
  fields = {**TURNS, "rl.steps": 3, "rl.one_step_off_policy": True}
  fields = {name.replace(".", "__"): value for name, value in fields.items()}
  directory = nano.make_data(tmp_path / "data", recipe, **fields)
  with pytest.MonkeyPatch.context() as patch:
    nano.use_devices(patch, 2)
    config = nano.config(recipe, **fields, data__directory=str(directory))
    main.run(config, tmp_path / "one", "rl")
  flags = [f"--config.rl.{name}=True" for name in ("one_step_off_policy", "disjoint_meshes")]
  flags += [f"--config.data.directory={directory}", "--config.rl.steps=3"]
  done = launch(tmp_path / "two", "rl", *flags, processes=2, devices=2, recipe=recipe)
  assert done.returncode == 0, done.stderr
  for workdir in (tmp_path / "one", tmp_path / "two"):
    found.append([reproducible(x)["values"] for x in metrics.read(workdir / "metrics.jsonl")])
  assert len(found[1]) == 3
  for alone, together in zip(*found, strict=True):
    assert together == pytest.approx(alone, rel=1e-5, abs=1e-7)
    assert alone["turns"] > 1


def test_when_one_process_is_taken_away_all_save_the_same_step_and_stop(runs, tmp_path):
  address = f"localhost:{local.free_port()}"
  fields = {**LONGER, "rl.steps": 500, "rl.eval_every": 500, "rl.checkpoint_every": 500}
  start = runs[0].parent / "start" / "checkpoints" / "sft"
  flags = [
    *(f"--config.{name}={value}" for name, value in fields.items()),
    *(f"--config.data.directory={runs[0].parent / 'data'}", "--num_processes=2"),
    *(f"--config.rl.init_checkpoint={start}", f"--coordinator_address={address}"),
  ]
  together = [
    nano.start(nano.arguments(tmp_path, *flags, f"--process_id={index}", mode="rl"))
    for index in range(2)
  ]
  log, deadline = tmp_path / "metrics.jsonl", time.monotonic() + 120
  while not (log.exists() and log.read_text().count("\n") > 1) and time.monotonic() < deadline:
    time.sleep(0.05)
  together[1].send_signal(signal.SIGTERM)
  said = [process.communicate(timeout=120)[1] for process in together]
  assert [process.returncode for process in together] == [75, 75], said
  step = metrics.read(log)[-1]["step"]
  assert step < fields["rl.steps"]
  for index, each in enumerate(said):
    assert f"vr-jax: SIGTERM: rl is saved at step {step}; the same command goes on" in each
    # After the first step, and at the end.
    counts = [line for line in each.splitlines() if line.startswith(f"process {index} on ")]
    assert len([line for line in counts if "programs: " in line]) == 2, each
    state = json.loads((tmp_path / "health" / f"{index}.json").read_text())
    assert state["state"] == "preempted" and counts[-1].endswith(state["programs"])
  assert [path.name for path in (tmp_path / "checkpoints" / "rl").iterdir()] == [str(step)]


def test_bad_input_of_a_job_ends_all_processes_with_its_exit_code(tmp_path):
  job = ["--name=bad", "--recipe=grpo:tiny", "--mode=data", f"--workdir={tmp_path / 'run'}"]
  done = subprocess.run(
    [
      *(sys.executable, "-m", "launch.local", "run", *job, "--processes=2"),
      *("--config.data.simulate.videos=0", "--paths.videos=none", "--paths.annotations=none"),
    ],
    cwd=tmp_path,
    env={**os.environ, "PYTHONPATH": str(nano.ROOT)},
    capture_output=True,
    text=True,
    timeout=240,
    check=False,
  )
  assert done.returncode == 2, done.stderr
  logs = sorted((tmp_path / "runs" / "launch" / "bad").iterdir())
  assert [path.name for path in logs] == ["process-0.log", "process-1.log"]
  assert sum(path.read_text().count("vr-jax: ") for path in logs) == 1
  assert logs[0].read_text() == done.stdout


def test_two_processes_evaluate_as_one_does(runs):
  """Both ways of RL ended with the same policy, to rounding; here one policy is evaluated twice."""
  found = []
  for processes in (1, 2):
    workdir = runs[0].parent / f"evaluated-{processes}"
    data = f"--config.data.directory={runs[0].parent / 'data'}"
    policy = f"--config.rl.init_checkpoint={runs[0].parent / 'start' / 'checkpoints' / 'sft'}"
    # Five questions in batches of two a process: one process has a batch more than the other.
    flags = (data, policy, "--config.eval.examples=5", "--config.eval.report_samples=3")
    done = launch(workdir, "eval", *flags, processes=processes, devices=2 // processes)
    assert done.returncode == 0, done.stderr
    assert (workdir / "report.html").stat().st_size > 10_000
    result = json.loads((workdir / "eval" / "before_rl.json").read_text())
    lines = (workdir / "eval" / "before_rl.jsonl").read_text().splitlines()
    found.append((result, [json.loads(line) for line in lines]))
  (one, alone), (two, together) = found
  assert [line["id"] for line in together] == [line["id"] for line in alone]
  assert len(alone) == one["examples"] == 5
  for mine, theirs in zip(alone, together, strict=True):
    assert theirs == mine
  assert two["metrics"] == pytest.approx(one["metrics"])
  assert two["intervals"] == one["intervals"]
  assert one["metrics"]["accuracy_chance"] > 0


def test_parts_of_processes_come_together_in_the_order_of_the_examples(monkeypatch):
  def part(*ids):
    values = {"length": dict(enumerate(map(float, ids))), "odd": {0: 1.0} if ids[0] % 2 else {}}
    replies = [{"id": each} for each in ids]
    return evaluated_parts.EvaluatedPart(values=values, chances={}, replies=replies)

  parts = [part(0, 3, 6), part(1, 4), part(2, 5)]
  gathered = [[each % 3, dataclasses.asdict(parts[each % 3])] for each in range(6)]
  monkeypatch.setattr(
    evaluated_parts.processes,
    "all_gather_json",
    lambda own: json.loads(json.dumps(gathered)),
  )
  whole = evaluated_parts.merge(parts[1], 1, 3)
  assert [reply["id"] for reply in whole.replies] == list(range(7))
  assert whole.values["length"] == {index: float(index) for index in range(7)}
  assert whole.values["odd"] == {1: 1.0}
