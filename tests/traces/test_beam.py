"""The trace stage as a Beam pipeline: any number of workers writes the same as one process."""

import sys

import pytest

from tests.rewards import judge_server
from tests.traces import test_vlm_client, trace_runs
from vr_jax import errors
from vr_jax.envs import videop2r
from vr_jax.traces import pipeline, proposers
from vr_jax.traces import stage as traces_stage

FILES = ("traces.jsonl", "rejected.jsonl", "summary.json")

data = trace_runs.data
server = test_vlm_client.server


def written(made, workdir):
  traces_stage.write(made, workdir)
  return [(workdir / "traces" / name).read_text() for name in FILES]


def half_knowing(data):
  """An endpoint that knows some answers, leaves tags out of some replies and is wrong elsewhere."""
  right = test_vlm_client.knowing(data)

  def answer(request):
    text, kind = right(request).text, len(test_vlm_client.shown(request)[1]) % 3
    return judge_server.Reply(text=text if kind else text.replace("<think>", ""))

  return answer


IN_THIS_PROCESS = ("--runner=DirectRunner", "--direct_running_mode=in_memory")


def test_an_endpoints_traces_are_the_same_from_any_number_of_workers(data, tmp_path, server):
  server.answer = half_knowing(data)
  made = [
    written(test_vlm_client.config(data, server, **how), tmp_path / str(number))
    for number, how in enumerate(
      (
        {"traces__workers": 0},
        {"traces__workers": 2},
        {"traces__workers": 1, "traces__beam": IN_THIS_PROCESS},
      )
    )
  ]
  assert made[0] == made[1] == made[2]
  assert made[0][0]
  assert made[0][1]


def test_the_samplers_traces_are_the_same_and_its_replies_are_asked_for_once(
  data, tmp_path, monkeypatch
):
  single = written(trace_runs.config(data), tmp_path / "single")
  made = trace_runs.config(data, traces__workers=1, traces__beam=IN_THIS_PROCESS)
  with monkeypatch.context() as patch:
    patch.setattr(pipeline.Pipeline, "run", _interrupted)
    with pytest.raises(KeyboardInterrupt):
      written(made, tmp_path / "several")
  monkeypatch.setattr(proposers.sampler, "sample", None)
  assert written(made, tmp_path / "several") == single


def test_what_a_sampler_wrote_is_judged_and_kept_alike_with_beam_and_without(
  data, tmp_path, monkeypatch
):
  def say(example):
    blind = videop2r.format_reply("Nothing to be seen.", "So be it.", example.answer)
    return trace_runs.reference(example) if len(example.question) % 3 else blind

  def make(config, workdir):
    writer = trace_runs.Told(config, say)
    writer.environment = proposers.judged(config, workdir)  # as a worker does
    return writer

  monkeypatch.setattr(proposers, "make", make)
  alone = written(trace_runs.config(data), tmp_path / "alone")
  made = trace_runs.config(data, traces__workers=1, traces__beam=IN_THIS_PROCESS)
  assert written(made, tmp_path / "beam") == alone
  assert alone[0]
  assert "insufficient" in alone[1]


def _interrupted(*_):
  raise KeyboardInterrupt


def test_what_a_worker_meets_is_one_line(data, tmp_path, server):
  server.answer = lambda request: (
    judge_server.Reply()
    if isinstance(request.text, str)
    else judge_server.Reply(status=401, text=judge_server.KEY)
  )
  made = test_vlm_client.config(data, server, traces__workers=1, traces__beam=IN_THIS_PROCESS)
  with pytest.raises(errors.InputError, match=r"refuses its key .status 401") as error:
    traces_stage.write(made, tmp_path)
  assert "\n" not in str(error.value)


def test_without_beam_it_is_said_which_extra_brings_it(data, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "apache_beam", None)
  monkeypatch.setattr(traces_stage.proposers, "make", None)  # it is said before
  with pytest.raises(errors.InputError, match=r"pip install 'vr_jax\[beam\]', or set workers to 0"):
    traces_stage.write(trace_runs.config(data, traces__workers=2), tmp_path)
  assert not list(tmp_path.iterdir())
