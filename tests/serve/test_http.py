"""The HTTP side: who may ask, limits, a full queue, clients that hang up, and what errors say."""

import contextlib
import json
import time

import openai
import pytest

from tests.serve import live_server
from vr_jax.serve import app

QUESTION = {"messages": [{"role": "user", "content": "Why?"}], "max_tokens": 3}
LONG = {"temperature": 0, "max_tokens": 1500}


@contextlib.contextmanager
def _listening(served, **settings):
  """Another address of the same policy, with other settings."""
  decoder, preparer = served.server.decoder, served.server.preparer
  server = app.ChatServer(decoder, preparer, app.AppSettings(model="run", **settings))
  with contextlib.closing(server), live_server.listening(served.run, server) as live:
    yield live


@pytest.fixture(scope="module")
def endless(served, root):
  """A server whose replies end at their limit only; it has the programs of the other one."""
  flags = f"--allowed_root={root}", "--max_tokens=1500"
  with live_server.serving(served.run, *flags, endless=True) as server:
    yield server


def _health(served) -> dict:
  return json.loads(served.post(None, "/health").content)


def _wait_until(served, **wanted) -> dict:
  """Waits until the server's health says so."""
  end = time.monotonic() + 60
  while time.monotonic() < end:
    told = _health(served)
    if all(told[name] == value for name, value in wanted.items()):
      return told
    time.sleep(0.01)
  raise AssertionError(f"{told}, not {wanted}")


def test_the_model_is_listed_and_the_server_is_well(served):
  client = served.client()
  assert [model.id for model in client.models.list()] == ["run"]
  assert client.models.retrieve("run").owned_by == "vr-jax"
  with pytest.raises(openai.NotFoundError, match="'other' is not served here"):
    client.models.retrieve("other")
  assert _health(served)["status"] == "ok"


def test_only_who_has_the_token_may_ask(served):
  with _listening(served, token="a word that is kept") as guarded:
    for key in ("none", "a word that is kep", "a word that is kept, or not"):
      with pytest.raises(openai.AuthenticationError) as caught:
        guarded.client(api_key=key).models.list()
      assert "a word" not in caught.value.message
    assert guarded.post(QUESTION).status == 401
    assert guarded.post(QUESTION, Authorization="Basic a word that is kept").status == 401
    client = guarded.client(api_key="a word that is kept")
    assert [model.id for model in client.models.list()] == ["run"]
    assert guarded.post(None, "/health").status == 200


def test_what_can_not_be_answered_has_a_status_and_openai_s_form(served):
  for response, status in (
    (served.post(None, "/v1/completions"), 404),
    (served.post(None), 405),
    (served.post(QUESTION, **{"Content-Type": "text/plain"}), 415),
    (served.post(QUESTION, Host="evil.example"), 403),
    (served.post(b"{"), 400),
    (served.post(b"[" * 100_000), 400),
    (served.post(b"\xff\xfe"), 400),
    (served.post(b'{"messages": NaN}'), 400),
    (served.post([QUESTION]), 400),
  ):
    assert response.status == status
    assert set(response.error) == {"message", "type", "param", "code"}
    assert "Traceback" not in response.content.decode()


def test_a_body_above_the_limit_is_refused(served, root):
  with _listening(served, max_body_bytes=2000) as small:
    assert small.post(QUESTION).status == 200
    response = small.post({**QUESTION, "user": "x" * 3000})
    assert response.status == 413
    assert response.error["code"] == "too_large"
    with pytest.raises(openai.APIStatusError) as caught:
      small.ask([live_server.part("video", live_server.embedded(root / "clip.mp4"))])
    assert caught.value.status_code == 413


def test_a_full_queue_says_so_and_clients_that_hang_up_leave_it(endless, root):
  content = live_server.about(root / "clip.mp4")
  with _listening(endless, queue=1) as busy, contextlib.ExitStack() as streams:
    before = _health(busy)["cancelled"]
    running = []
    for _ in range(4):
      running.append(streams.enter_context(busy.ask(content, stream=True, **LONG)))
      told = [next(running[-1]) for _ in range(2)]
      assert told[-1].choices[0].delta.content  # it has a slot
    _wait_until(busy, running=4, waiting=0)
    waiting = streams.enter_context(busy.ask(content, stream=True, **LONG))
    _wait_until(busy, running=4, waiting=1)
    error = busy.refused(content)
    assert error.status_code == 429
    assert error.response.headers["Retry-After"]
    waiting.close()
    _wait_until(busy, waiting=0, cancelled=before + 1)
    for stream in running[1:]:
      stream.close()
    told = _wait_until(busy, running=1, cancelled=before + 4)
    assert live_server.text(busy.ask(content, max_tokens=4)) is not None
    assert _health(busy)["completed"] >= told["completed"] + 1
  _wait_until(endless, running=0, cancelled=before + 5)


def test_a_client_that_does_not_wait_for_its_reply_frees_its_slot(endless, root):
  before = _health(endless)["cancelled"]
  impatient = endless.client(timeout=0.5)
  with pytest.raises(openai.APITimeoutError):
    impatient.chat.completions.create(
      model="run",
      messages=[{"role": "user", "content": live_server.about(root / "clip.mp4")}],
      **LONG,
    )
  _wait_until(endless, running=0, waiting=0, cancelled=before + 1)
