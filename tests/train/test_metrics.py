"""TensorBoard's own reader finds what a run logs, in order, also after a resume."""

import pytest
from tensorboard.backend.event_processing import event_accumulator

from vr_jax.train import metrics


def _scalars(workdir, name):
  """The (step, value) pairs that TensorBoard shows for a metric of the RL stage."""
  reader = event_accumulator.EventAccumulator(str(workdir / "tensorboard" / "rl"))
  reader.Reload()
  return [(each.step, each.value) for each in reader.Scalars(name)]


def _log(workdir, first_step, losses):
  log = metrics.MetricsLog(workdir, "rl", first_step=first_step)
  for step, loss in enumerate(losses, first_step):
    log.write(step, {"loss": loss, "rewards/total/mean": float("nan")})
  log.close()


def test_tensorboard_reads_the_values_of_each_step(tmp_path):
  _log(tmp_path, 1, [0.5, 0.25, 0.125])
  assert _scalars(tmp_path, "loss") == [(1, 0.5), (2, 0.25), (3, 0.125)]
  assert len(_scalars(tmp_path, "rewards/total/mean")) == 3


def test_of_a_resumed_run_tensorboard_shows_each_step_once(tmp_path):
  _log(tmp_path, 1, [0.5, 0.25, 0.125])
  _log(tmp_path, 2, [4.0, 2.0])
  assert _scalars(tmp_path, "loss") == [(1, 0.5), (2, 4.0), (3, 2.0)]
  lines = metrics.read(tmp_path / "metrics.jsonl")
  assert [line["values"]["loss"] for line in lines] == pytest.approx([0.5, 4.0, 2.0])
