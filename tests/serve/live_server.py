"""A server of a tiny policy on a free port of this machine, in a thread of the test's process."""

from collections.abc import Iterator
import contextlib
import dataclasses
from pathlib import Path
import threading
from typing import Any

import openai
import pytest
import uvicorn

from tests import untrained
from tests.train import nano
from vr_jax import ask
from vr_jax.serve import app, command
from vr_jax.train import run_context


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


def make_run(where: Path, *overrides: Any, **fields: Any) -> Path:
  """A run whose random policy prefers some tokens to others."""
  return untrained.make_run(where, nano.config(*overrides, **fields), change=nano.sharpened)


@contextlib.contextmanager
def serving(run: Path, *flags: str) -> Iterator[LiveServer]:
  """Serves the policy of a run on one device."""
  words = ["serve", f"--checkpoint={run}", "--port=0", "--batch=4", *flags]
  with pytest.MonkeyPatch.context() as patch:
    nano.use_devices(patch, 1)
    arguments = command.parse(words)
    context = run_context.make_run_context(arguments.config, run, judged=False, read=False)
    params, _ = ask.load_policy(context, run)
  with (
    contextlib.closing(command.listen(arguments.host, arguments.port)) as listener,
    command.running(arguments, context, params) as server,
  ):
    http = uvicorn.Server(command.uvicorn_config(server))
    thread = threading.Thread(target=http.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
      yield LiveServer(run=run, url=f"http://127.0.0.1:{listener.getsockname()[1]}", server=server)
    finally:
      http.should_exit = True
      thread.join()
