"""A run that is killed again and again has the same metrics as one that never was, bit for bit."""

from collections.abc import Callable
import json
from pathlib import Path
import re
import signal
import time

import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.train import nano
from vr_jax import process_state
from vr_jax.train import metrics

DIFFERS = ("perf/",)  # prefixes of metrics that differ from run to run
SECONDS = 240  # timeout of a run


def _lines(workdir: Path, stage: str) -> int:
  path = workdir / "metrics.jsonl"
  return path.read_text().count(f'"stage": "{stage}"') if path.exists() else 0


def _wrote(stage: str, lines: int) -> Callable[[Path], bool]:
  return lambda workdir: _lines(workdir, stage) >= lines


# In the order in which a run reaches them. Checkpoints are written at steps 2 and 4 of each stage;
# tests/faults/test_kills.py has kills inside their writes.
MOMENTS = (
  ("simulating", lambda workdir: any((workdir / "data").glob("*.partial")), signal.SIGKILL),
  ("decoding", lambda workdir: (workdir / "data" / "shards.partial").exists(), signal.SIGINT),
  ("before the first checkpoint", _wrote("sft", 1), signal.SIGKILL),
  ("at the end of a stage", _wrote("sft", 4), signal.SIGTERM),
  ("before RL's first checkpoint", _wrote("rl", 1), signal.SIGTERM),
  ("between two checkpoints", _wrote("rl", 3), signal.SIGINT),
)


def _arguments(workdir: Path) -> list[str]:
  return nano.arguments(workdir, "--config.eval.blind=False", "--config.eval.shuffled_frames=False")


def _start(workdir: Path, *more: str):
  return nano.start([*_arguments(workdir), *more], module="tests.train.counting")


def _finish(workdir: Path, *more: str) -> None:
  process = _start(workdir, *more)
  _, errors = process.communicate(timeout=SECONDS)
  assert process.returncode == 0, errors


def _is_at_work(workdir: Path, pid: int) -> bool:
  states = process_state.read_all(workdir)
  return any(each.pid == pid and each.state == "running" for each in states)


def _interrupt(workdir: Path, moment: Callable[[Path], bool], number: signal.Signals):
  """Sends the signal at this moment of a run; returns (exit code, stderr).

  What an earlier process has written may look like that moment: this one has to be at work.
  """
  process = _start(workdir)
  deadline = time.monotonic() + SECONDS
  while not _is_at_work(workdir, process.pid) or not moment(workdir):
    if process.poll() is not None or time.monotonic() > deadline:
      break
    time.sleep(0.001)
  process.send_signal(number)
  _, errors = process.communicate(timeout=SECONDS)
  return process.returncode, errors


@pytest.fixture(scope="module")
def untouched(tmp_path_factory) -> Path:
  workdir = tmp_path_factory.mktemp("untouched")
  _finish(workdir, "--config.log.profile_steps=2:3")
  return workdir


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory) -> tuple[Path, dict[str, tuple[int, str]]]:
  """The workdir of a run that was killed at every moment, and how each process ended."""
  workdir = tmp_path_factory.mktemp("interrupted")
  ends = {name: _interrupt(workdir, moment, number) for name, moment, number in MOMENTS}
  _finish(workdir)
  return workdir, ends


def _reproducible(workdir: Path) -> list[dict]:
  lines = metrics.read(workdir / "metrics.jsonl")
  for line in lines:
    line["values"] = {k: v for k, v in line["values"].items() if not k.startswith(DIFFERS)}
  return lines


def _saved(workdir: Path, stage: str) -> dict:
  path = workdir / "checkpoints" / stage / "4"
  with ocp.PyTreeCheckpointer() as reader:
    return reader.restore(path / "state")


def test_every_signal_came_while_the_run_was_under_way(interrupted):
  _, ends = interrupted
  codes = {name: code for name, (code, _) in ends.items()}
  own = {signal.SIGINT: 130, signal.SIGTERM: 75}
  assert codes == {name: own.get(number, -number) for name, _, number in MOMENTS}


def test_a_machine_that_is_taken_away_first_saves_the_step_that_it_is_in(interrupted):
  _, said = interrupted[1]["before RL's first checkpoint"]
  step = re.search(r"vr-jax: SIGTERM: rl is saved at step (\d); the same command goes on", said)
  assert step and 1 <= int(step[1]) <= 2, said


def test_each_stage_has_a_trace_of_the_steps_that_were_asked_for(untouched):
  for stage in ("sft", "rl"):
    for name in ("*.xplane.pb", "perfetto_trace.json.gz"):
      (trace,) = (untouched / "profile" / stage).rglob(name)
      assert trace.stat().st_size > 1000


def test_metrics_are_those_of_the_run_that_was_not_killed(interrupted, untouched):
  expected = _reproducible(untouched)
  assert [(line["stage"], line["step"]) for line in expected] == [
    (stage, step) for stage in ("sft", "rl") for step in (1, 2, 3, 4)
  ]
  assert json.dumps(_reproducible(interrupted[0])) == json.dumps(expected)


def test_rollouts_are_those_of_the_run_that_was_not_killed(interrupted, untouched):
  expected = {path.name: path.read_bytes() for path in (untouched / "rollouts").iterdir()}
  actual = {path.name: path.read_bytes() for path in (interrupted[0] / "rollouts").iterdir()}
  assert sorted(expected) == [f"step-00000{step}.jsonl" for step in (1, 2, 3, 4)]
  assert actual == expected


def test_every_line_tells_how_training_goes_and_where_its_time_went(untouched):
  always = {
    "entropy",
    "grad_norm",
    "loss",
    "perf/host_peak_mib",
    "completions/mean_length",
    "completions/min_length",
    "completions/max_length",
    "learning_rate",
    "num_tokens",
    "nonfinite_updates",
  }
  times = {"perf/tokens_per_second", *(f"perf/time/{name}" for name in ("data", "update", "step"))}
  rewards = {
    f"rewards/{name}/{what}"
    for what in ("mean", "std", "zero_ratio")
    for name in ("accuracy", "format", "process", "total")
  }
  ratios = {
    "policy_ratio",
    "sampling/importance_sampling_ratio/mean",
    "sampling/k3",
    "sampling/reply_k3",
    *(
      f"sampling/{of}_logp_difference/{what}"
      for of in ("sampling", "reply")
      for what in ("mean", "p99")
    ),
    "sampling/tis_capped_fraction",
    "clip_ratio/low_mean",
    "clip_ratio/high_mean",
  }
  of_rl = {"perf/time/rollout", "perf/time/reward", "frac_reward_zero_std", *rewards, *ratios}
  for line in metrics.read(untouched / "metrics.jsonl"):
    assert line["values"].keys() >= always | times | (of_rl if line["stage"] == "rl" else set())
    parts = ("log", "data", "rollout", "reward", "update")
    whole = sum(line["values"].get(f"perf/time/{name}", 0) for name in parts)
    assert whole == pytest.approx(line["values"]["perf/time/step"])


def test_lengths_enclose_their_mean_and_tokens_add_up(untouched):
  before = {"sft": 0, "rl": 0}
  for line in metrics.read(untouched / "metrics.jsonl"):
    values, (prompts, group) = line["values"], {"sft": (4, 1), "rl": (4, 4)}[line["stage"]]
    low, mean, high = (values[f"completions/{name}_length"] for name in ("min", "mean", "max"))
    assert 1 <= low <= mean <= high <= 80
    seen = values["num_tokens"] - before[line["stage"]]
    before[line["stage"]] = values["num_tokens"]
    # What is no reply is one prompt of 16 to 96 tokens a group.
    assert 16 * prompts <= seen - prompts * group * mean <= 96 * prompts
    assert values["learning_rate"] == pytest.approx(_learning_rate(line["stage"], line["step"]))


def _learning_rate(stage: str, step: int) -> float:
  """The stages' schedules are constant, at 2e-3 behind one warm-up step, and at 3e-4."""
  if stage == "rl":
    return 3e-4
  return 2e-3 if step > 1 else 0.0


def test_training_moved_the_parameters(untouched):
  lines = _reproducible(untouched)
  assert all(line["values"]["grad_norm"] > 0 for line in lines)
  assert {line["values"].get("frac_reward_zero_std", 0.0) for line in lines} == {0.0}


@pytest.mark.parametrize("stage", ["sft", "rl"])
def test_parameters_and_optimizer_are_bit_for_bit_the_same(interrupted, untouched, stage):
  expected, actual = _saved(untouched, stage), _saved(interrupted[0], stage)
  assert expected.keys() == actual.keys()
  assert any(name.startswith("optimizer_state") for name in expected)
  for name, value in expected.items():
    np.testing.assert_array_equal(actual[name], value, err_msg=name)


def test_the_evaluations_are_the_same(interrupted, untouched):
  for name in ("before_rl", "after_rl"):
    actual, expected = (
      json.loads((workdir / "eval" / f"{name}.json").read_text())
      for workdir in (interrupted[0], untouched)
    )
    assert actual["metrics"] == expected["metrics"]
    replies = [workdir / "eval" / f"{name}.jsonl" for workdir in (interrupted[0], untouched)]
    assert replies[0].read_bytes() == replies[1].read_bytes()


def test_an_interrupt_is_one_line(interrupted):
  _, ends = interrupted
  _, stderr = ends["between two checkpoints"]
  assert "Traceback" not in stderr
  assert stderr.strip().splitlines()[-1].startswith("vr-jax: interrupted")


def test_a_complete_run_is_not_trained_again(untouched):
  before = (untouched / "metrics.jsonl").read_bytes()
  process = _start(untouched)
  output, errors = process.communicate(timeout=SECONDS)
  assert process.returncode == 0, errors
  assert "sft: complete at step 4" in output
  assert "rl: complete at step 4" in output
  assert (untouched / "metrics.jsonl").read_bytes() == before
