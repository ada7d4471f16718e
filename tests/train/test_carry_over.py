"""Steps whose last replies leave slots free: the next step's replies begin there."""

import itertools
import json

import numpy as np
import pytest

from tests.train import counting, nano
from vr_jax import errors
from vr_jax.envs import registry
from vr_jax.rollout import refill_sampler
from vr_jax.train import config_checks, learner, metrics, rl_loop


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
  nano.use_devices(monkeypatch, 1)
  monkeypatch.setattr(refill_sampler, "CHUNK", 4)
  monkeypatch.setitem(registry.ENVIRONMENTS, "moss_chatv", counting.Counting)


def _config(data, *, carries=True, **changes):
  fields = {"sft__steps": 0, "rl__steps": 4, "rl__checkpoint_every": 2, "rl__decode_slots": 5}
  return nano.config(data__directory=str(data), rl__carry_over=carries, **{**fields, **changes})


def _values(workdir):
  """Metrics of each step, without those of time and memory."""
  return [
    {n: v for n, v in line["values"].items() if not n.startswith(("perf/", "vision/"))}
    for line in metrics.read(workdir / "metrics.jsonl")
  ]


def test_with_weights_that_stay_a_run_samples_what_it_would_without(data, tmp_path):
  values = {}
  for carries in (False, True):
    workdir = tmp_path / str(carries)
    rl_loop.train(_config(data, carries=carries, rl__learning_rate=1e-30), workdir)
    values[carries] = _values(workdir)
  for plain, carried in zip(values[False], values[True], strict=True):
    fraction = carried.pop("sampling/carried_fraction")
    assert (fraction > 0) == (carried is not values[True][0])
    assert plain.keys() == carried.keys()
    # Means of numbers that a changed token would move by more.
    for name in ("completions/mean_length", "rewards/luck/mean", "num_tokens"):
      np.testing.assert_allclose(carried[name], plain[name], rtol=1e-6, err_msg=name)
    assert carried["sampling/sampling_logp_difference/mean"] < 1e-4


def test_after_updates_the_first_tokens_of_carried_replies_are_stale(data, tmp_path):
  rl_loop.train(_config(data, rl__learning_rate=3e-3), tmp_path)
  found = [values["sampling/sampling_logp_difference/mean"] for values in _values(tmp_path)]
  assert found[0] < 1e-4  # nothing was begun before it
  assert min(found[1:]) > 1e-3


def test_an_interrupted_run_goes_on_with_the_begun_replies_bit_for_bit(data, tmp_path, monkeypatch):
  config = _config(data, rl__learning_rate=3e-3)
  rl_loop.train(config, tmp_path / "whole")
  launch, calls = learner.Learner.launch, itertools.count(1)

  def ends_at_the_third(*arguments):
    if next(calls) == 3:
      raise KeyboardInterrupt
    return launch(*arguments)

  monkeypatch.setattr(learner.Learner, "launch", ends_at_the_third)
  with pytest.raises(KeyboardInterrupt):
    rl_loop.train(config, tmp_path / "broken")
  monkeypatch.setattr(learner.Learner, "launch", launch)
  rl_loop.train(config, tmp_path / "broken")
  assert json.dumps(_values(tmp_path / "broken")) == json.dumps(_values(tmp_path / "whole"))


@pytest.mark.parametrize(
  "changes",
  [
    {"rl__decode_slots": 0},
    {"rl__decode_slots": 10_000},
    {"rl__one_step_off_policy": True},
    {"rl__dynamic_sampling_max_batches": 2},
  ],
)
def test_what_would_carry_nothing_is_refused(data, changes):
  with pytest.raises(errors.InputError, match=r"^--config.rl.carry_over=True: "):
    config_checks.check(_config(data, **changes))
