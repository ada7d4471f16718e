"""The trace stage and a judge behind an endpoint: no trace is lost if it fails or has no budget."""

import itertools

import pytest

from tests.rewards import judge_server
from tests.traces import trace_runs
from vr_jax import main
from vr_jax.envs import registry
from vr_jax.traces import proposers
from vr_jax.train import judge_factory

FILES = ("traces.jsonl", "rejected.jsonl", "summary.json")
BROKEN = judge_server.Reply(status=500)
VARIABLE = "TRACES_TEST_JUDGE_KEY"

data = trace_runs.data
server = judge_server.fixture(VARIABLE)


@pytest.fixture
def run(data, server, monkeypatch):
  """Runs the stage; the writer is right except for what `say` returns. Returns the exit code."""

  def make(config, workdir):
    writer = trace_runs.Told(config, run.say)
    judge = judge_factory.make_judge(config.judge, workdir / "judge.sqlite")
    writer.environment = registry.make_environment(config, judge=judge)
    return writer

  def run(workdir, **overrides):
    fields = {
      "judge__kind": "openai",
      "judge__model": "m",
      "judge__base_url": server.url("openai"),
      "judge__key_variable": VARIABLE,
      "judge__retries": 1,
    }
    made = trace_runs.config(data, **{**fields, **overrides})
    monkeypatch.setattr(main, "parse_flags", lambda words: (made, workdir, "traces"))
    return main.cli(["vr-jax"])

  run.say = trace_runs.reference
  monkeypatch.setattr(proposers, "make", make)
  return run


def written(workdir):
  return [(workdir / "traces" / name).read_bytes() for name in FILES]


def chunks(workdir):
  return sorted(path.name for path in (workdir / "traces" / "chunks").iterdir())


def problem(capsys):
  (line,) = capsys.readouterr().err.splitlines()
  return line


@pytest.mark.parametrize("answered", [1, 4, 6])
def test_a_judge_that_dies_stops_the_run_and_the_same_command_goes_on(
  tmp_path, server, run, capsys, answered
):
  assert run(tmp_path / "whole") == 0
  cases = itertools.count()  # not the greetings
  server.answer = lambda request: (
    BROKEN if "<observation-" in request.text and next(cases) >= answered else judge_server.Reply()
  )
  assert run(tmp_path / "cut") == 2
  assert "config.judge: left" in problem(capsys)
  assert chunks(tmp_path / "cut") == chunks(tmp_path / "whole")[: answered // 4]
  server.answer = lambda request: judge_server.Reply()
  assert run(tmp_path / "cut") == 0
  assert written(tmp_path / "cut") == written(tmp_path / "whole")
  assert b"no verdict" not in written(tmp_path / "cut")[1]


def test_a_budget_that_is_spent_stops_the_run_and_it_goes_on_with_another(
  tmp_path, server, run, capsys
):
  assert run(tmp_path / "whole") == 0
  for budget in (6, 4):
    assert run(tmp_path / "cut", judge__budget=budget) == 2
    assert "config.judge.budget: is spent" in problem(capsys)
  assert 0 < len(chunks(tmp_path / "cut")) < len(chunks(tmp_path / "whole"))
  assert run(tmp_path / "cut", judge__budget=0) == 0
  assert written(tmp_path / "cut") == written(tmp_path / "whole")


def test_one_case_of_several_that_fails_to_its_last_retry_is_one_without_a_verdict(
  tmp_path, server, run, data
):
  odd = trace_runs.all_examples(data / "shards", "train")[1]

  def say(example):
    said = trace_runs.reference(example)
    return said.replace("<observation>", "<observation>Odd: ") if example.id == odd.id else said

  run.say = say
  server.answer = lambda request: BROKEN if "Odd: " in request.text else judge_server.Reply()
  assert run(tmp_path) == 0
  rejected = trace_runs.lines(tmp_path / "traces" / "rejected.jsonl")
  assert [(line["problem_id"], line["reason"]) for line in rejected] == [(odd.id, "no verdict")]
