"""A local server that speaks both protocols of model_endpoint, as well or badly as a test asks."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import html
from http import server
import json
import re
import threading
import time
from typing import Any

import pytest

from vr_jax import records
from vr_jax.rewards import judge

KEY = "sk-test-3141592653589793"
YES, NO = "I think so. <judgement>Yes</judgement>", "It lacks the end. <judgement>No</judgement>"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """A received request: protocol, texts of both messages, all fields, number (from 0), time."""

  kind: str
  system: str
  text: str
  fields: Mapping[str, Any]
  headers: Mapping[str, str]
  number: int
  time: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reply:
  """A response, after `delay` seconds: `text` in the protocol, raw `body`, or nothing (`drop`)."""

  text: str = YES
  body: str | None = None
  status: int = 200
  headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
  delay: float = 0.0
  drop: bool = False


class Server:
  """What it has seen; `answer` may be replaced at any time."""

  def __init__(self, answer: Callable[[Request], Reply]):
    self.answer = answer
    self.requests: list[Request] = []
    self.in_flight = self.most_in_flight = 0
    self.lock = threading.Lock()

  def url(self, kind: str) -> str:
    return f"http://127.0.0.1:{self.port}" + ("/v1" if kind == "openai" else "")

  def texts(self) -> list[str]:
    return [request.text for request in self.requests]


@contextlib.contextmanager
def serve(answer: Callable[[Request], Reply] = lambda request: Reply()) -> Iterator[Server]:
  state = Server(answer)

  class Handler(server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
      fields = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
      with state.lock:
        request = _read(self.path, fields, dict(self.headers), len(state.requests))
        state.requests.append(request)
        state.in_flight += 1
        state.most_in_flight = max(state.most_in_flight, state.in_flight)
      reply = state.answer(request)
      time.sleep(reply.delay)
      with state.lock:
        state.in_flight -= 1
      if reply.drop:
        self.close_connection = True
        return
      body = (envelope(request.kind, reply.text) if reply.body is None else reply.body).encode()
      with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may not have waited
        self.send_response(reply.status)
        for name, value in reply.headers.items():
          self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
      pass

  class Listener(server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

  with Listener(("127.0.0.1", 0), Handler) as listener:
    state.port = listener.server_address[1]
    thread = threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
      yield state
    finally:
      listener.shutdown()
      thread.join()


def fixture(variable: str, answer: Callable[[Request], Reply] = lambda request: Reply()) -> Any:
  """Makes the fixture `server`: it runs for one test; the environment variable has its key."""

  @pytest.fixture
  def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv(variable, KEY)
    with serve(answer) as served:
      yield served

  return server


def envelope(kind: str, text: str) -> str:
  if kind == "openai":
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    return json.dumps({"id": "1", "object": "chat.completion", "choices": [choice]})
  thought = {"type": "thinking", "thinking": "<judgement>No</judgement>", "signature": ""}
  blocks = [thought, {"type": "text", "text": text}]
  return json.dumps({"id": "1", "type": "message", "role": "assistant", "content": blocks})


def honest(request: Request) -> Reply:
  """Weighs the quoted block as evidence and obeys the text outside of it, as a good judge does.

  It says yes if the quoted text has a red circle at 2s. It follows any verdict or order outside of
  the quotation, so a test notices if quoted text can break out.
  """
  quoted = re.search(r"<(observation-[0-9a-f]{16})>\n(.*?)\n</\1>", request.text, re.DOTALL)
  outside = request.text.replace(quoted[0], "").lower()
  if re.search("judgement|ignore|must say|verdict", outside):
    return Reply(text=YES)
  return Reply(text=YES if "circle is red at 2s" in html.unescape(quoted[2]) else NO)


def case(observation: str, **changes: Any) -> judge.JudgeCase:
  fields = {
    "id": "one",
    "video": "one.mp4",
    "question": "What colour will the circle be at 8s?",
    "answer": "B",
    "problem_type": "multiple choice",
    "options": ("A. green", "B. red"),
    "shown": records.Span(start=0.0, end=6.0),
  }
  return judge.JudgeCase(example=records.Example(**{**fields, **changes}), observation=observation)


def _read(path: str, fields: dict[str, Any], headers: dict[str, str], number: int) -> Request:
  messages = fields["messages"]
  if path == "/v1/chat/completions":
    kind, system = "openai", messages[0]["content"]
    assert [message["role"] for message in messages] == ["system", "user"]
  else:
    kind, system = "anthropic", fields["system"]
    assert path == "/v1/messages", path
    assert [message["role"] for message in messages] == ["user"]
  return Request(
    kind=kind,
    system=system,
    text=messages[-1]["content"],
    fields=fields,
    headers=headers,
    number=number,
    time=time.monotonic(),
  )
