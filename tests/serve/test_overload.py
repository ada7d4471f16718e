"""Clients that send slowly, hang up while they wait or ask for much, and an engine that fails."""

import asyncio
from concurrent import futures
import contextlib
import json
import socket
import threading
import time
import urllib.parse

import jax
import pytest

from tests.serve import live_server
from vr_jax.models.common import resize
from vr_jax.serve import (
  app,
  chat_request,
  engine,
  preparation,
  request_body,
  request_error,
  serving_slots,
)

QUESTION = {"messages": [{"role": "user", "content": "Why?"}], "max_tokens": 3}
BODY = json.dumps(QUESTION).encode()


@contextlib.contextmanager
def _listening(served, **settings):
  """Another address of the same policy, with other settings."""
  decoder, preparer = served.server.decoder, served.server.preparer
  server = app.ChatServer(decoder, preparer, app.AppSettings(model="run", **settings))
  with contextlib.closing(server), live_server.listening(served.run, server) as live:
    yield live


@contextlib.contextmanager
def _sending(live, sent=BODY, length=0):
  """A client that has sent its head, and this part of its body. length: of all; 0: of BODY."""
  length = length or len(BODY)
  address = urllib.parse.urlsplit(live.url)
  with socket.create_connection((address.hostname, address.port), 20) as client:
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address.netloc}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    client.sendall(head.encode() + sent)
    yield client


def _wait_until(condition) -> None:
  end = time.monotonic() + 30
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.01)


def test_a_body_that_comes_too_slowly_is_given_up(served):
  with _listening(served, body_seconds=0.2) as live:
    for length in (len(BODY), 300_000):
      sent = b" " * (270_000 if length == 300_000 else 9)
      with _sending(live, sent, length) as client:
        answer = client.makefile("rb").read()  # to the end of the connection
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"too_slow" in answer
    assert live.server.waiting == 0
    assert live.post(QUESTION).status == 200


def test_clients_that_send_slowly_keep_nobody_else_waiting(served):
  with _listening(served) as live, contextlib.ExitStack() as slow:
    for _ in range(40):
      slow.enter_context(_sending(live, BODY[:9]))
    _wait_until(lambda: live.server.waiting == 40)
    begun = time.monotonic()
    assert live.post(QUESTION).status == 200
    assert time.monotonic() - begun < 20
    slow.close()
    _wait_until(lambda: live.server.waiting == 0)


def test_a_client_that_hangs_up_before_its_turn_leaves_the_queue(served):
  with _listening(served) as live:
    live.server.read_ahead = asyncio.Semaphore(0)  # as if too many were ahead
    with _sending(live):
      _wait_until(lambda: live.server.waiting == 1)
    _wait_until(lambda: live.server.waiting == 0)
    live.server.read_ahead.release()
    assert live.post(QUESTION).status == 200


def test_a_stream_whose_client_leaves_before_its_first_event_frees_its_slot(served, monkeypatch):
  with live_server.serving(served.run, "--max_tokens=1500", endless=True) as live:
    decoder = live.server.decoder
    server = app.ChatServer(decoder, live.server.preparer, app.AppSettings(model="run"))
    submit, submitted, sent = decoder.submit, [], []
    monkeypatch.setattr(decoder, "submit", lambda job: (submitted.append(job), submit(job)))
    body = json.dumps({**QUESTION, "max_tokens": 1500, "stream": True}).encode()
    pieces = [{"type": "http.request", "body": body}]

    async def receive():
      while not (pieces or submitted):
        await asyncio.sleep(0.001)
      return pieces.pop() if pieces else {"type": "http.disconnect"}

    async def send(message):
      sent.append(message)
      await asyncio.sleep(0.05)  # the client leaves while the head is sent

    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
    scope |= {"query_string": b"", "asgi": {"spec_version": "2.3"}}
    with contextlib.closing(server):
      asyncio.run(server.app(scope, receive, send))
    assert not [each for each in sent if each.get("body")]
    assert [job.cancelled for job in submitted] == [True]
    assert server.waiting == 0
    _wait_until(lambda: decoder.cancelled == 1 and decoder.running == 0)


def test_bodies_have_so_many_bytes_together(served):
  large = json.dumps({**QUESTION, "user": "x" * 1_000_000}).encode()
  with _listening(served, max_body_bytes=len(large)) as live, contextlib.ExitStack() as slow:
    for _ in range(4):
      slow.enter_context(_sending(live, large[:300_000], len(large)))
    _wait_until(lambda: live.server.waiting == 4)
    with futures.ThreadPoolExecutor(1) as pool:
      time.sleep(0.2)  # the four have their share
      fifth = pool.submit(live.post, QUESTION)
      with pytest.raises(futures.TimeoutError):
        fifth.result(0.5)
      slow.close()
      assert fifth.result(30).status == 200


def test_who_asked_first_for_bytes_gets_them_first():
  async def play() -> list[str]:
    budget, order = request_body.ByteBudget(10), []

    async def take(name: str, size: int) -> None:
      await budget.take(size)
      order.append(name)

    await take("first", 8)
    large = asyncio.create_task(take("large", 9))
    await asyncio.sleep(0)
    gone = asyncio.create_task(take("gone", 9))
    small = asyncio.create_task(take("small", 1))
    await asyncio.sleep(0.01)
    assert order == ["first"]
    gone.cancel()
    budget.give_back(8)
    await asyncio.gather(large, small)
    return order

  assert asyncio.run(play()) == ["first", "large", "small"]


def test_a_request_is_parsed_and_prepared_on_a_thread_without_the_devices(
  served, root, monkeypatch
):
  parse, prepare, seen = chat_request.parse, preparation.Preparer.prepare, []

  def watched_parse(body):
    seen.append(threading.current_thread().name)
    return parse(body)

  def watched_prepare(self, *given):
    seen.append(threading.current_thread().name)
    with jax.transfer_guard("disallow"):  # of this thread
      return prepare(self, *given)

  monkeypatch.setattr(chat_request, "parse", watched_parse)
  monkeypatch.setattr(preparation.Preparer, "prepare", watched_prepare)
  served.ask(live_server.about(root / "clip.mp4"), seed=17, max_tokens=3)
  assert [name.startswith("prepare") for name in seen] == [True, True]


def test_work_of_clients_that_have_gone_is_not_kept_for_the_threads(served, monkeypatch):
  prepare, go_on, begun = preparation.Preparer.prepare, threading.Event(), []

  def slow_prepare(self, *given):
    begun.append(1)
    assert go_on.wait(30)
    return prepare(self, *given)

  monkeypatch.setattr(preparation.Preparer, "prepare", slow_prepare)
  with _listening(served) as live, contextlib.ExitStack() as first:
    submitted, submit = [], live.server._threads.submit
    monkeypatch.setattr(
      live.server._threads, "submit", lambda *given: submitted.append(1) or submit(*given)
    )
    for _ in range(4):
      first.enter_context(_sending(live))
    _wait_until(lambda: len(begun) == 4)
    with contextlib.ExitStack() as later:
      for _ in range(6):
        later.enter_context(_sending(live))
      _wait_until(lambda: live.server.waiting == 10)
      time.sleep(0.1)
    _wait_until(lambda: live.server.waiting == 4)
    assert len(submitted) == 4
    go_on.set()
    assert live.post(QUESTION).status == 200


def test_what_does_not_fit_is_refused_before_it_is_resized(served, root, monkeypatch):
  def fail(*_):
    raise AssertionError("a frame was resized")

  content, most = live_server.about(root / "clip.mp4"), 2**31 - 1
  picture = live_server.part("image", live_server.embedded(root / "picture.png", "image/png"))
  monkeypatch.setattr(resize, "resample", fail)
  for limits in ({"min_pixels": most, "max_pixels": most}, {"max_pixels": most}):
    error = served.refused(content, mm_processor_kwargs=limits)
    assert "is 2147483647; the model's prompts hold" in error.message
  error = served.refused([*[picture] * 9, live_server.words("Which?")])
  assert "9 temporal patches, but the largest bucket has 8" in error.message


def test_when_the_engine_can_not_go_on_all_get_to_know(served, monkeypatch):
  """Decoding fails, and there is no memory for new slots: slots, queue and later requests."""
  with live_server.serving(served.run, "--max_tokens=1500", endless=True) as live:
    decoder, decode = live.server.decoder, serving_slots.ServingSlots.decode
    go_on = threading.Event()

    def failing_decode(self, replies):
      if self is not decoder._slots:
        return decode(self, replies)
      assert go_on.wait(30)
      raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    def no_memory(*_, **__):
      raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(serving_slots.ServingSlots, "decode", failing_decode)
    monkeypatch.setattr(engine.Engine, "_open_slots", no_memory)
    with futures.ThreadPoolExecutor(7) as pool:
      asked = [pool.submit(live.post, {**QUESTION, "max_tokens": 900}) for _ in range(7)]
      _wait_until(lambda: decoder.running + len(decoder._waiting) == 7)
      go_on.set()
      statuses = [each.result(30).status for each in asked]
    assert statuses == [500] * 7
    assert live.post(QUESTION).status == 503
    assert live.post(None, "/health").status == 503
    prepared = live.server.preparer.prepare(chat_request.parse(BODY))
    with pytest.raises(request_error.RequestError, match="has failed"):
      decoder.submit(engine.ServingJob(prepared, print))
