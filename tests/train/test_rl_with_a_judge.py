"""RL with a judge behind an endpoint that sometimes fails: missing verdicts, metrics, the key."""

import collections
import itertools
import logging
import traceback

import pytest

from tests.rewards import judge_server
from tests.train import nano
from vr_jax import errors, json_lines, main
from vr_jax.envs import environment, videop2r
from vr_jax.train import metrics

VARIABLE = "RL_JUDGE_KEY"


def test_replies_that_an_endpoint_leaves_without_a_verdict_are_counted_and_the_key_is_nowhere(
  tmp_path, monkeypatch, capfd, caplog
):
  caplog.set_level(logging.INFO)
  nano.use_devices(monkeypatch, 1)
  monkeypatch.setenv("NO_PROXY", "127.0.0.1")
  monkeypatch.setenv(VARIABLE, judge_server.KEY)
  numbers, asked = itertools.count(), collections.Counter()
  score = videop2r.VideoP2R.score
  quoted = f"the key {judge_server.KEY}"
  failures = itertools.cycle(
    (
      judge_server.Reply(status=500, body=quoted),
      judge_server.Reply(status=429, body=quoted),
      judge_server.Reply(drop=True),
      judge_server.Reply(status=503, body=quoted),
    )
  )

  def score_labelled(task, examples, replies):
    texts = [
      [
        videop2r.format_reply(f"kind {(number := next(numbers)) % 4} seen {number}", "So.", "A")
        for _ in group
      ]
      for group in replies.texts
    ]
    made = environment.Replies.from_texts(texts, replies.segment)
    return score(task, examples, made)

  def answer(request):
    asked[request.text] += 1
    always = "kind 0" in request.text
    fails = always or ("kind 1" in request.text and asked[request.text] == 1)
    return next(failures) if fails else judge_server.Reply()

  monkeypatch.setattr(videop2r.VideoP2R, "score", score_labelled)
  with judge_server.serve(answer) as server:
    config = nano.config(
      "configs/videop2r.py",
      sft__steps=0,
      rl__steps=2,
      judge__kind="openai",
      judge__model="m",
      judge__base_url=server.url("openai"),
      judge__key_variable=VARIABLE,
      judge__retries=1,
    )
    for mode, form in (("data", "text"), ("rl", "json")):
      with json_lines.written([f"--log_format={form}"]):
        main.run(config, tmp_path, mode)
    server.answer = lambda _: judge_server.Reply(status=401, body=quoted)
    with pytest.raises(errors.InputError, match="refuses its key") as refused:
      main.run(config, tmp_path, "rl")
  values = metrics.read(tmp_path / "metrics.jsonl")[-1]["values"]
  # Of 16 replies 4 fail twice, and 4 once.
  expected = {"asked": 16, "cached": 0, "failed": 4, "requests": 24, "retries": 8}
  assert {name: values[f"judge/{name}"] for name in expected} == expected
  assert values["unscored_ratio/perception"] == pytest.approx(0.25)
  assert values["unscored_ratio/reasoning"] == 0
  assert values["rewards/perception/accuracy/mean"] == 1  # of those that have a verdict
  files = [path for path in tmp_path.rglob("*") if path.is_file()]
  assert {"config.json", "metrics.jsonl", "judge.sqlite"} <= {path.name for path in files}
  assert not [path for path in files if judge_server.KEY.encode() in path.read_bytes()]
  shown = capfd.readouterr()
  said = "".join(traceback.format_exception(refused.value))
  assert judge_server.KEY not in shown.out + shown.err + said + caplog.text
