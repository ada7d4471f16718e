"""The step timer: which part of a step the seconds count as, and when the devices were idle."""

import time

import pytest

from tests.train import nano, test_multi_turn
from vr_jax.envs import moss_chatv, video_mtr
from vr_jax.rollout import dialogue
from vr_jax.train import data_stage, experience, learner, metrics, rl_loop, sft_loop, step_timer

SLOW = 0.4  # seconds; much longer than a part of a nano step
STEPS = 3


def test_laps_add_up_and_a_step_begins_where_the_one_before_ended(monkeypatch):
  times = iter((0.0, 1.0, 3.0, 6.0, 10.0, 12.0))
  monkeypatch.setattr(time, "perf_counter", lambda: next(times))
  first = step_timer.StepTimer()
  first.record("data", device_idle=True)
  first.record("rollout", idle_seconds=0.5)
  first.record("data")
  values = first.metrics(tokens=12)
  assert (values["perf/time/data"], values["perf/time/rollout"], values["perf/time/step"]) == (
    4,
    2,
    6,
  )
  assert values["perf/exposed_host_fraction"] == pytest.approx(1.5 / 6)
  assert values["perf/tokens_per_second"] == 2
  second = step_timer.StepTimer(after=first)
  second.record("rollout")
  values = second.metrics(tokens=0)
  assert (values["perf/time/log"], values["perf/time/step"]) == (4, 6)
  assert values["perf/exposed_host_fraction"] == pytest.approx(4 / 6)


def _slowly(function, seconds=SLOW):
  def slow(*arguments, **options):
    time.sleep(seconds)
    return function(*arguments, **options)

  return slow


def _logged(workdir, stage, step):
  """The metrics of a stage's step; not of the first one, which compiles."""
  lines = metrics.read(workdir / "metrics.jsonl")
  return [line["values"] for line in lines if line["stage"] == stage][step - 1]


def _exposed(values):
  return values["perf/exposed_host_fraction"] * values["perf/time/step"]


@pytest.fixture
def run(data, tmp_path, monkeypatch):
  """A function that runs a stage of the nano recipe, and returns its second step's metrics."""
  nano.use_devices(monkeypatch, 1)

  def trained(stage, **changes):
    steps = {"sft__steps": STEPS * (stage == "sft"), "rl__steps": STEPS * (stage == "rl")}
    config = nano.config(data__directory=str(data), **steps, **changes)
    (sft_loop if stage == "sft" else rl_loop).train(config, tmp_path)
    return _logged(tmp_path, stage, 2)

  return trained


def test_a_slow_judge_is_the_reward_and_devices_without_a_reference_wait_for_it(run, monkeypatch):
  monkeypatch.setattr(moss_chatv.MossChatV, "score", _slowly(moss_chatv.MossChatV.score))
  values = run("rl", rl__kl_weight=0.0)
  assert values["perf/time/reward"] > 0.9 * SLOW
  assert _exposed(values) > 0.9 * SLOW


def test_a_pass_that_launching_waits_for_is_no_time_of_the_host(run, monkeypatch):
  scores = learner.Learner._log_probs

  def waited_for(self, *arguments):
    found = scores(self, *arguments)
    time.sleep(SLOW)
    return [x if x is None else x.block_until_ready() for x in found]

  monkeypatch.setattr(learner.Learner, "_log_probs", waited_for)
  values = run("rl", rl__kl_weight=0.1)
  assert values["perf/time/update"] > 0.9 * SLOW
  assert values["perf/time/reward"] < 0.5 * SLOW
  assert _exposed(values) < 0.5 * SLOW


def test_batches_that_are_there_late_are_data_that_devices_wait_for(run, monkeypatch):
  monkeypatch.setattr(sft_loop, "prepare_batch", _slowly(sft_loop.prepare_batch))
  values = run("sft")
  assert values["perf/time/data"] > 0.9 * SLOW
  assert _exposed(values) > 0.9 * SLOW


def test_replies_of_turns_that_wait_for_frames_and_their_judging_leave_devices_idle(
  tmp_path, monkeypatch
):
  nano.use_devices(monkeypatch, 1)
  # Each of the sixteen episodes of a step observes once or twice.
  observe = _slowly(dialogue.Dialogue.observe, seconds=SLOW / 16)
  monkeypatch.setattr(dialogue.Dialogue, "observe", observe)
  finish_batch = _slowly(video_mtr.VideoMTR.finish_batch)
  monkeypatch.setattr(video_mtr.VideoMTR, "finish_batch", finish_batch)
  config = test_multi_turn.config(
    tmp_path, rl__steps=2, rl__advantage_estimator="episode", critic__kl_weight=0.0
  )
  data_stage.prepare(config, tmp_path)
  rl_loop.train(config, tmp_path)
  values = _logged(tmp_path, "rl", 2)
  assert values["perf/time/rollout"] > 0.9 * SLOW < values["perf/time/reward"]
  assert _exposed(values) > 1.8 * SLOW


def test_batches_put_together_for_signal_count_as_data(run, monkeypatch):
  together = _slowly(experience.Collector._join)
  monkeypatch.setattr(experience.Collector, "_join", together)
  values = run("rl", rl__dynamic_sampling_max_batches=1, rl__kl_weight=0.1)
  assert values["dynamic_sampling/batches"] == 2
  assert values["perf/time/data"] > 0.9 * SLOW
  assert _exposed(values) > 0.9 * SLOW
