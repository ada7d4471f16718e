"""Whether a run is well, over HTTP."""

import dataclasses
import json
import socket
import struct
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
    assert _get(f"http://127.0.0.1:{port}/", Host="evil.example:80")[0] == 403
    assert _get(f"http://127.0.0.1:{port}/", Host=f"localhost:{port}")[0] == code
  assert (found, body["well"]) == (code, code == 200)
  assert [each["host"] for each in body["processes"]] == ["host-0", "host-1"]
  assert body["status"][0] == f"{tmp_path}: moss_chatv"
  with pytest.raises(error.URLError):
    request.urlopen(f"http://127.0.0.1:{port}/", timeout=5)


def _get(url, **headers):
  try:
    with request.urlopen(request.Request(url, headers=headers), timeout=10) as answer:
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


def test_a_process_that_is_missing_is_not_well(tmp_path, monkeypatch):
  states = [dataclasses.replace(RUNNING, time=100.0)]
  assert health_endpoint.is_well(states, 1, 100.0)
  assert not health_endpoint.is_well(states, 2, 100.0)


def test_an_empty_address_would_be_all_of_them_and_is_refused(tmp_path):
  with (
    pytest.raises(errors.InputError, match="health_address=: needs an address"),
    health_endpoint.served(tmp_path, "", local.free_port()),
  ):
    pass


def test_a_client_that_hangs_up_is_not_spoken_of(tmp_path, capsys):
  port = local.free_port()
  with health_endpoint.served(tmp_path, "127.0.0.1", port):
    with socket.create_connection(("127.0.0.1", port)) as client:
      client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
      client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert _get(f"http://127.0.0.1:{port}/")[0] == 503
  assert capsys.readouterr().err == ""


def test_without_a_port_nothing_listens(tmp_path):
  with health_endpoint.served(tmp_path, "127.0.0.1", 0):
    assert not list(tmp_path.iterdir())
