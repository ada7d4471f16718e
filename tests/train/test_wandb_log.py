"""Weights & Biases: what is sent, to which run; without the package, with a stand-in for it.

`WANDB_MODE=offline` with the package itself was run by hand: the tests install no account's client.
"""

import importlib
import json
import types

import numpy as np
import pytest

from tests.train import nano
from vr_jax import errors
from vr_jax.train import config_checks, metrics, rollout_samples, wandb_log


class _Refused(Exception):
  """Stands for wandb.Error."""


class _Run:
  def __init__(self):
    self.defined, self.logged, self.finished = [], [], None

  def define_metric(self, name, **options):
    self.defined.append((name, options))

  def log(self, values):
    self.logged.append(values)

  def finish(self, exit_code):
    self.finished = exit_code


@pytest.fixture
def sent(monkeypatch):
  """Runs that were started, as (options, run)."""
  runs = []

  def init(**options):
    if options["project"] == "forbidden":
      raise _Refused("api_key not configured (no-tty).\nsecond line")
    runs.append((options, _Run()))
    return runs[-1][1]

  module = types.SimpleNamespace(
    init=init,
    Settings=lambda **options: options,
    Table=lambda columns, data: [dict(zip(columns, row, strict=True)) for row in data],
    Image=lambda pixels: ("image", pixels.shape),
    Error=_Refused,
  )
  import_module = importlib.import_module
  monkeypatch.setattr(
    wandb_log.importlib,
    "import_module",
    lambda name: module if name == "wandb" else import_module(name),
  )
  monkeypatch.setattr(wandb_log, "check", lambda project: None)
  return runs


def _config(project="mine"):
  config = nano.config()
  config.log.wandb = project
  return config


def _pair():
  reply = {"text": "red", "rewards": {"total": 1.0}, "advantages": {"reply": 0.5}}
  line = {"example": "a", "prompt": "Who?", "answer": "red", "replies": [reply, reply]}
  line |= {"step": 2, "video": "v.mp4"}
  return rollout_samples.SampledPair(row=0, line=line, best=0, worst=1)


def test_all_stages_and_restarts_of_a_workdir_are_one_run(sent, tmp_path):
  (tmp_path / "run").mkdir()
  for stage in ("sft", "rl", "rl"):
    log = metrics.MetricsLog(tmp_path / "run", stage, first_step=1, config=_config())
    log.write(1, {"loss": 0.5, "kl": float("nan")})
    log.write_samples(2, _pair(), np.zeros((4, 6, 3), np.uint8))
    log.close()
  (options, run), *_ = sent
  assert len({options["id"] for options, _ in sent}) == 1
  assert (options["project"], options["name"], options["resume"]) == ("mine", "run", "allow")
  assert options["config"]["rl"]["steps"] == 4
  assert run.defined == [("sft/step", {}), ("sft/*", {"step_metric": "sft/step"})]
  scalars, samples = run.logged
  assert scalars == {"sft/step": 1, "sft/loss": 0.5}
  assert samples["sft/frames"] == ("image", (4, 6, 3))
  assert [row["which"] for row in samples["sft/completions"]] == ["best", "worst"]
  assert samples["sft/completions"][0]["reply"] == "red"
  assert run.finished == 0
  json.dumps(scalars)


def test_a_run_that_fails_is_marked_so(sent, tmp_path):
  log = metrics.MetricsLog(tmp_path, "rl", first_step=1, config=_config())
  try:
    raise KeyboardInterrupt
  except KeyboardInterrupt:
    log.close()
  assert sent[0][1].finished == 1


def test_a_refusal_is_one_line_that_says_what_to_set(sent, tmp_path):
  with pytest.raises(errors.InputError) as error:
    metrics.MetricsLog(tmp_path, "rl", first_step=1, config=_config("forbidden"))
  assert str(error.value) == (
    "--config.log.wandb=forbidden: api_key not configured (no-tty); "
    "set WANDB_API_KEY, or WANDB_MODE=offline"
  )


def test_nothing_is_sent_unless_a_project_is_named(sent, tmp_path):
  metrics.MetricsLog(tmp_path, "rl", first_step=1, config=_config("")).close()
  metrics.MetricsLog(tmp_path, "rl", first_step=1).close()
  assert not sent and not (tmp_path / "wandb").exists()


def test_without_the_package_the_extra_is_named_before_anything_runs(monkeypatch):
  """Also where a directory `wandb`, which Python takes for a package, is all that there is."""
  for found in (None, types.SimpleNamespace(origin=None)):
    monkeypatch.setattr(wandb_log.importlib.util, "find_spec", lambda name, found=found: found)
    with pytest.raises(errors.InputError, match=r"pip install 'vr_jax\[wandb\]'"):
      config_checks.check(_config())
