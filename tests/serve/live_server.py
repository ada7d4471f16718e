"""A server of a tiny policy on a free port of this machine, in a thread of the test's process."""

import base64
from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import json
from pathlib import Path
import threading
from typing import Any
import urllib.error
import urllib.request

import numpy as np
import openai
import pytest
import uvicorn

from tests import untrained
from tests.train import nano
from vr_jax import ask
from vr_jax.models.common import weight_mapping
from vr_jax.serve import app, command
from vr_jax.train import run_context

# Fields of requests that OpenAI's client doesn't know.
EXTRA = (
  *("top_k", "min_p", "reply", "video_start", "video_end"),
  *("media_io_kwargs", "mm_processor_kwargs", "recipe_instruction"),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Response:
  """A response, as it came."""

  status: int
  headers: Mapping[str, str]
  content: bytes

  @property
  def error(self) -> dict[str, Any]:
    """The error in it."""
    return json.loads(self.content)["error"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LiveServer:
  """A server that listens. run: the workdir of its policy. url: its address, without /v1."""

  run: Path
  url: str
  server: app.ChatServer

  def client(self, **options: Any) -> openai.OpenAI:
    """A client of this server, which does not try again."""
    settings = {"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0, "timeout": 60.0}
    return openai.OpenAI(**{**settings, **options})

  def ask(self, content: Any, **fields: Any) -> Any:
    """Sends a message of the user, or a list of messages as `messages`."""
    extra = {name: fields.pop(name) for name in list(fields) if name in EXTRA}
    messages = fields.pop("messages", [{"role": "user", "content": content}])
    return self.client().chat.completions.create(
      model="run", messages=messages, extra_body=extra, **fields
    )

  def post(self, body: Any, path: str = "/v1/chat/completions", **headers: str) -> Response:
    """Sends JSON, or bytes, without the official client. body: None for a GET."""
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    found = {"Content-Type": "application/json", **headers}
    request = urllib.request.Request(self.url + path, content, found)
    try:
      with urllib.request.urlopen(request, timeout=60) as answer:
        return Response(status=answer.status, headers=dict(answer.headers), content=answer.read())
    except urllib.error.HTTPError as error:
      with error:
        return Response(status=error.code, headers=dict(error.headers), content=error.read())

  def refused(self, content: Any, **fields: Any) -> openai.APIStatusError:
    """The error of a request that the server refuses."""
    with pytest.raises(openai.APIStatusError) as caught:
      self.ask(content, **fields)
    return caught.value


def text(completion: Any) -> str:
  """The text of a response."""
  return completion.choices[0].message.content


def part(kind: str, url: Path | str) -> dict[str, Any]:
  """A part of a message. kind: video or image. url: or a file."""
  address = f"file://{url}" if isinstance(url, Path) else url
  return {"type": f"{kind}_url", f"{kind}_url": {"url": address}}


def words(question: str) -> dict[str, str]:
  """A part of a message that is text."""
  return {"type": "text", "text": question}


def embedded(path: Path, media_type: str = "video/mp4") -> str:
  """A file as a data URL."""
  return f"data:{media_type};base64,{base64.b64encode(path.read_bytes()).decode()}"


def about(video: Path, question: str = "Which colour?") -> list[dict[str, Any]]:
  """The content of a message: a question about a video."""
  return [part("video", video), words(question)]


def make_run(where: Path, *recipe: str, **fields: Any) -> Path:
  """A run whose random policy prefers some tokens to others."""
  return untrained.make_run(where, nano.config(*recipe, **fields), change=nano.sharpened)


@contextlib.contextmanager
def serving(run: Path, *flags: str, endless: bool = False) -> Iterator[LiveServer]:
  """Serves the policy of a run on one device. endless: its replies end at their limit only."""
  line = ["serve", f"--checkpoint={run}", "--port=0", "--batch=4", *flags]
  with pytest.MonkeyPatch.context() as patch:
    nano.use_devices(patch, 1)
    arguments = command.parse(line)
    context = run_context.make_run_context(arguments.config, run, judged=False, read=False)
    params, _ = ask.load_policy(context, run)
  params = _without_stop(context, params) if endless else params
  with command.running(arguments, context, params) as server, listening(run, server) as live:
    yield live


def _without_stop(context: run_context.RunContext, params: Any) -> Any:
  """The policy with logits of 0 for the tokens that end a reply; others have larger ones."""
  flat = dict(weight_mapping.flat(params))
  table = flat["text.embedding"]
  stops = np.array(context.stop_tokens)
  flat["text.embedding"] = table.replace(table.get_value().at[stops].set(0.0))
  return weight_mapping.unflat(flat)


@contextlib.contextmanager
def listening(run: Path, server: app.ChatServer) -> Iterator[LiveServer]:
  """Lets a server listen on a free port."""
  with contextlib.closing(command.listen("127.0.0.1", 0)) as listener:
    http = uvicorn.Server(command.uvicorn_config(server))
    thread = threading.Thread(target=http.run, kwargs={"sockets": [listener]}, daemon=True)
    port = listener.getsockname()[1]
    thread.start()
    try:
      yield LiveServer(run=run, url=f"http://127.0.0.1:{port}", server=server)
    finally:
      http.should_exit = True
      thread.join()
