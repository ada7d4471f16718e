"""Evaluation during RL: training stays as it was, and the best checkpoint is kept and used."""

from collections.abc import Mapping
import dataclasses
import json

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.train import counting, nano
from vr_jax import atomic, errors
from vr_jax.envs import metric, registry
from vr_jax.train import (
  config_checks,
  export_stage,
  held_out,
  initialization,
  metrics,
  rl_loop,
  run_context,
)

STEPS = 3


class Counted(counting.Counting):
  """An environment that counts its replies, as a judge's does, and prefers long replies."""

  best_metric = "completions/mean_length"
  _asked = 0

  def score(self, examples, replies):
    self._asked += len(examples)
    return super().score(examples, replies)

  def counts(self) -> Mapping[str, float]:
    asked, self._asked = self._asked, 0
    return {"judge/asked": float(asked)}


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
  """The same run without evaluations, and with one after each step."""
  found = []
  with pytest.MonkeyPatch.context() as patch:
    nano.use_devices(patch, 1)
    patch.setitem(registry.ENVIRONMENTS, "moss_chatv", Counted)
    for every in (0, 1):
      workdir = tmp_path_factory.mktemp(f"every-{every}")
      rl_loop.train(_config(data, every), workdir)
      found.append(workdir)
  return found


def _config(data, every):
  fields = {"rl__eval_split": "test", "rl__eval_examples": 5} if every else {}
  return nano.config(
    data__directory=str(data), sft__steps=0, rl__steps=STEPS, rl__eval_every=every, **fields
  )


def _values(workdir, *, evaluated):
  """The metrics of each step that don't differ by nature: of evaluations, or all others."""
  lines = metrics.read(workdir / "metrics.jsonl")
  return [
    {
      name: value
      for name, value in line["values"].items()
      if not name.startswith("perf/") and name.startswith("eval/") == evaluated
    }
    for line in lines
  ]


def test_evaluations_change_no_metric_of_training_and_no_rollout(runs):
  plain, evaluated = (_values(workdir, evaluated=False) for workdir in runs)
  assert json.dumps(plain) == json.dumps(evaluated)
  assert [values["judge/asked"] for values in plain] == [4] * STEPS
  plain, evaluated = (
    {path.name: path.read_bytes() for path in (workdir / "rollouts").iterdir()} for workdir in runs
  )
  assert len(plain) == STEPS and plain == evaluated


def test_evaluations_change_no_parameter_and_no_moment_of_the_optimizer(runs):
  states = []
  for workdir in runs:
    with ocp.PyTreeCheckpointer() as reader:
      states.append(reader.restore(workdir / "checkpoints" / "rl" / str(STEPS) / "state"))
  assert states[0].keys() == states[1].keys()
  for name, value in states[0].items():
    np.testing.assert_array_equal(states[1][name], value, err_msg=name)


def test_each_evaluation_is_logged_and_timed(runs):
  for line, values in zip(
    metrics.read(runs[1] / "metrics.jsonl"), _values(runs[1], evaluated=True), strict=True
  ):
    names = {"accuracy", "completions/mean_length"}
    names |= {f"rewards/{name}/mean" for name in ("accuracy", "format", "process", "total")}
    assert values.keys() == {f"eval/{name}" for name in names}
    assert line["values"]["perf/time/evaluation"] > 0
  assert not any(_values(runs[0], evaluated=True))


def test_the_best_checkpoint_is_the_first_of_the_highest_values_and_has_its_parameters(
  runs, data, monkeypatch
):
  values = [each["eval/completions/mean_length"] for each in _values(runs[1], evaluated=True)]
  best = 1 + int(np.argmax(values))
  nano.use_devices(monkeypatch, 1)
  context = run_context.make_run_context(_config(data, 1), runs[1])
  where, step = export_stage.find_checkpoint(context, runs[1], "best")
  assert (where.name, step) == ("rl_best", best)
  params = initialization.load_params(context, where)
  thread = held_out.futures.ThreadPoolExecutor(1)
  again = held_out.HeldOut(context=context, cache=None, thread=thread).evaluate(params)
  assert again["eval/completions/mean_length"] == values[best - 1]
  assert not (runs[0] / "checkpoints" / "rl_best").exists()


@pytest.fixture(scope="module")
def context(data):
  return nano.build(data)


def _offer(context, workdir, values, *, first_step=1, better=1):
  """Offers parameters that are the step's number everywhere; returns which step is kept."""
  made = held_out.BestCheckpoint(_as_context(context, better), workdir, first_step=first_step)
  with made.closing():
    for step, value in enumerate(values, first_step):
      params = jax.tree.map(
        lambda x, step=step: np.full(x.shape, step, x.dtype), context.abstract_params
      )
      made.offer(step, params, {"eval/accuracy": value})
    made.wait()
  store = initialization.open_checkpoints(context, held_out.directory_of(workdir))
  found = store.latest()
  store.close()
  return found


def _as_context(context, better):
  declared = {"accuracy": metric.Metric(title="Accuracy", better=better)}
  environment = type("Env", (type(context.environment),), {"metrics": declared})
  return dataclasses.replace(context, environment=environment(**context.config.env.to_dict()))


def test_only_a_better_value_takes_the_place_of_the_best(context, tmp_path, capsys):
  assert _offer(context, tmp_path, [0.25, 0.5, 0.5, float("nan"), 0.375]) == 2
  assert "the best accuracy on the validation split is 0.5, of step 2" in capsys.readouterr().out
  # Resumed from a checkpoint of step 1: what is trained again is as good, then something is better.
  assert _offer(context, tmp_path, [0.5, 0.5], first_step=2) == 2
  assert _offer(context, tmp_path, [0.75], first_step=2) == 2
  assert "is 0.75, of step 2" in capsys.readouterr().out
  # A stage that begins anew knows no earlier best.
  assert _offer(context, tmp_path, [0.125]) == 1


def test_a_best_checkpoint_that_a_kill_left_on_the_way_to_its_name_gets_it(context, tmp_path):
  assert _offer(context, tmp_path, [0.25, 0.5]) == 2
  whole = held_out.directory_of(tmp_path) / "2"
  partial = whole.with_name("2.orbax-checkpoint-tmp")
  partial.mkdir()
  (whole / "loop").rename(partial / "loop")
  whole.with_name(f"2{atomic.MOVING}").write_text(partial.name)
  assert _offer(context, tmp_path, [0.375], first_step=2) == 2
  assert (whole / "loop").is_dir()
  whole.with_name(f"2{atomic.MOVING}").write_text(partial.name)
  assert _offer(context, tmp_path, [0.75], first_step=2) == 2


def test_where_the_metric_declares_it_lower_is_better(context, tmp_path):
  assert _offer(context, tmp_path, [0.5, 0.25, 0.375], better=-1) == 2


def test_a_metric_that_no_evaluation_has_is_named(context, tmp_path):
  best = held_out.BestCheckpoint(context, tmp_path, first_step=1)
  match = r"best_metric='accuracy'.*which are luck"
  with pytest.raises(errors.InputError, match=match), best.closing():
    best.offer(1, {}, {"eval/luck": 0.5})


def test_evaluations_need_a_split_to_evaluate_on():
  with pytest.raises(errors.InputError, match=r"rl\.eval_every=2: needs a validation split"):
    config_checks.check(nano.config(rl__eval_every=2))
  config_checks.check(nano.config(rl__eval_every=2, data__validation_fraction=0.2))
  config_checks.check(nano.config(rl__eval_every=2, rl__eval_split="test"))
