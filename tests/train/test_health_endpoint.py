"""Whether a run is well, over HTTP."""

import dataclasses
import json
import socket
import time
from urllib import error, request

import pytest

from launch import local
from vr_jax import errors, process_state
from vr_jax.train import health_endpoint

RUNNING = process_state.ProcessState(
  host="host-0",
  process=0,
  pid=7,
  time=0.0,
  state="running",
  task="rl",
  done=12,
  total=60,
  activity="",
  seconds=0.0,
)


@pytest.mark.parametrize(
  ("changes", "code"),
  [
    ({}, 200),
    ({"state": "done", "age": 5000}, 200),
    ({"age": 5000}, 503),
    ({"state": "failed"}, 503),
    ({"state": "preempted"}, 503),
  ],
)
def test_it_says_whether_all_processes_are_well(tmp_path, changes, code):
  (tmp_path / "config.json").write_text(json.dumps({"config": {"recipe": "moss_chatv"}}))
  fine = dataclasses.replace(RUNNING, process=1, host="host-1", time=time.time())
  age = changes.pop("age", 0)
  other = dataclasses.replace(RUNNING, time=time.time() - age, **changes)
  for each in (fine, other):
    path = process_state.path(tmp_path, each.process)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(dataclasses.asdict(each)))
  port = local.free_port()
  with health_endpoint.served(tmp_path, "127.0.0.1", port):
    found, body = _get(f"http://127.0.0.1:{port}/")
    assert _get(f"http://127.0.0.1:{port}/config.json")[0] == 404
  assert (found, body["well"]) == (code, code == 200)
  assert [each["host"] for each in body["processes"]] == ["host-0", "host-1"]
  assert body["status"][0] == f"{tmp_path}: moss_chatv"
  with pytest.raises(error.URLError):
    request.urlopen(f"http://127.0.0.1:{port}/", timeout=5)


def _get(url):
  try:
    with request.urlopen(url, timeout=10) as answer:
      return answer.status, json.loads(answer.read())
  except error.HTTPError as refused:
    text = refused.read()
    return refused.code, json.loads(text) if text.startswith(b"{") else {}


def test_a_port_that_is_taken_is_one_line(tmp_path):
  with socket.socket() as taken:
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    port = taken.getsockname()[1]
    with (
      pytest.raises(errors.InputError, match=f"health_port={port}: can't listen at 127.0.0.1"),
      health_endpoint.served(tmp_path, "127.0.0.1", port),
    ):
      pass


def test_without_a_port_nothing_listens(tmp_path):
  with health_endpoint.served(tmp_path, "127.0.0.1", 0):
    assert not list(tmp_path.iterdir())
