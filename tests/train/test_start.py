"""What RL starts from: a complete warm start, and the same one after a kill."""

import dataclasses

import pytest

from tests.train import nano
from vr_jax import buckets, errors
from vr_jax.train import checkpoints as checkpoints_lib
from vr_jax.train import initialization, metrics, rl_loop, run_context, sft_loop
from vr_jax.train import train_state as train_state_lib

WARMED = {"recent": [2.0], "validation": [1.0, 0]}  # of a checkpoint of the warm start


@pytest.fixture
def context(data, monkeypatch):
  made = nano.build(data)
  monkeypatch.setattr(run_context, "make_run_context", lambda config, workdir, **_: made)
  return made


def _save(context, directory, step, tree, loop):
  store = checkpoints_lib.Checkpoints(directory, architecture=context.architecture)
  store.save(step, tree, loop)
  store.close()


def test_rl_does_not_start_from_half_a_warm_start(context, tmp_path):
  tree = {"params": initialization.fresh_params(context)}
  _save(context, tmp_path / "checkpoints" / "sft", 2, tree, WARMED)
  with pytest.raises(
    errors.InputError, match=r"sft: at step 2, before the warm start was done; finish"
  ):
    rl_loop.train(context.config, tmp_path)
  _save(context, tmp_path / "checkpoints" / "sft", 4, tree, WARMED)
  assert initialization.describe_start(context, tmp_path) == {"path": "checkpoints/sft", "step": 4}


def test_a_warm_start_ends_where_its_loss_is_low_enough_also_when_it_was_interrupted(
  data, tmp_path, monkeypatch
):
  fields = {"sft__steps": 14, "sft__checkpoint_every": 8, "sft__target_loss": 100.0}
  context = nano.build(data, **fields)
  monkeypatch.setattr(run_context, "make_run_context", lambda config, workdir, **_: context)
  write = metrics.MetricsLog.write

  def interrupted(log, step, values):
    if step == 9:
      raise KeyboardInterrupt
    write(log, step, values)

  monkeypatch.setattr(metrics.MetricsLog, "write", interrupted)
  with pytest.raises(KeyboardInterrupt):
    sft_loop.train(context.config, tmp_path)
  monkeypatch.setattr(metrics.MetricsLog, "write", write)
  assert initialization.last_step(context, tmp_path / "checkpoints" / "sft") == 8
  for _ in range(2):
    sft_loop.train(context.config, tmp_path)
    assert initialization.describe_start(context, tmp_path) == {
      "path": "checkpoints/sft",
      "step": 10,
    }


def test_a_warm_start_from_elsewhere_may_end_at_any_step(context, tmp_path):
  _save(context, tmp_path / "sft", 2, {"params": initialization.fresh_params(context)}, {})
  config = context.config.copy_and_resolve_references()
  config.rl.init_checkpoint = str(tmp_path / "sft")
  made = dataclasses.replace(context, config=config)
  assert initialization.describe_start(made, tmp_path) == {"path": str(tmp_path / "sft"), "step": 2}


def test_a_start_in_a_bucket_is_the_same_wherever_it_is_mounted(context, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  monkeypatch.setattr(buckets, "MOUNTS", tmp_path / "gcs")
  found = []
  for root in (tmp_path / "gcs", tmp_path / "home" / ".cache" / "vr_jax" / "gcs"):
    directory = root / "mine" / "sft"
    _save(context, directory, 2, {"params": initialization.fresh_params(context)}, {})
    config = context.config.copy_and_resolve_references()
    config.rl.init_checkpoint = str(directory)
    made = dataclasses.replace(context, config=config)
    found.append(initialization.describe_start(made, tmp_path))
    older = {"path": str(directory), "step": 2}  # as runs saved it before
    rl_loop.check_origin(tmp_path, older, found[0])
  assert found == [{"path": "gs://mine/sft", "step": 2}] * 2
  with pytest.raises(errors.InputError, match="the start is now"):
    rl_loop.check_origin(tmp_path, {"path": "gs://other/sft", "step": 2}, found[0])


def test_a_run_does_not_go_on_from_another_start_than_it_began_with(context, tmp_path):
  params = initialization.fresh_params(context)
  _save(context, tmp_path / "checkpoints" / "sft", 4, {"params": params}, WARMED)
  optimizer = train_state_lib.make_optimizer(context.config.rl, context.abstract_params, ())
  state = train_state_lib.create(params, optimizer, context.mesh)
  begun = {"path": "checkpoints/sft", "step": 3}
  _save(context, tmp_path / "checkpoints" / "rl", 2, state, {"start": begun})
  with pytest.raises(errors.InputError) as error:
    rl_loop.train(context.config, tmp_path)
  assert str(begun) in str(error.value)
  assert str({**begun, "step": 4}) in str(error.value)
