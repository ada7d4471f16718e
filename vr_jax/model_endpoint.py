"""Asks a language model behind an HTTP endpoint, through the official clients.

Two protocols: OpenAI's chat completions, which many servers offer, and Anthropic's messages.

The clients do retries, backoff and time-outs. This module adds what they lack: a rate limit, a
budget, a pause of all requests when the endpoint asks for one, and another request when a reply
cannot be used.

Requests run on an event loop in a thread of their own, so that a caller who waits for them can be
interrupted. Only the client gets the key. When an endpoint rejects a key, its message is not
repeated, because it may contain the key.
"""

import asyncio
import collections
from collections.abc import Coroutine, Mapping, Sequence
import contextlib
import dataclasses
import importlib
import os
import re
import sys
import threading
from types import ModuleType
from typing import Any, Protocol, runtime_checkable
import urllib.parse
import weakref

from vr_jax import endpoint_response, errors

# Passed to the client, which otherwise takes the address from the environment.
URLS = {"openai": "https://api.openai.com/v1", "anthropic": "https://api.anthropic.com"}

_COUNT_NAMES = ("requests", "retries", "over_budget", "unanswered")
_TRANSIENT = (408, 409, 429)  # statuses below 500 that the clients retry
_LONGEST_PAUSE = 120.0  # seconds; OpenAI's client does not retry if it is asked to wait longer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
  """Limits on requests and replies.

  in_flight: most requests at the same time.
  requests_per_minute: 0 for no limit.
  timeout: seconds to connect, and between bytes of a response, as the client counts them.
  retries: most further requests for a question whose request failed or whose reply is unusable.
  budget: most requests of this process, including retries; 0 for no limit.
  max_tokens: length limit of a reply.
  """

  in_flight: int = 32
  requests_per_minute: float = 0.0
  timeout: float = 30.0
  retries: int = 4
  budget: int = 0
  max_tokens: int = 256


@runtime_checkable
class EndpointQuestion(Protocol):
  """A system message and a user message, and how to parse the reply."""

  @property
  def system(self) -> str:
    """The system message; empty for none."""
    ...

  @property
  def text(self) -> str:
    """The user message."""
    ...

  def read(self, reply: str) -> Any:
    """Parses a reply. Returns None if it cannot be used; the model is then asked again."""
    ...


class _Failure(errors.InputError):
  """A request failed. status: of the response; 0 if there was none."""

  def __init__(self, message: str, status: int = 0):
    super().__init__(message)
    self.status = status


class Unavailable(_Failure):
  """The endpoint is down, or the last retry failed too."""


class RequestRefused(_Failure):
  """The endpoint rejects the key, the model or the request, so a retry is useless."""


class OverBudget(errors.InputError):
  """The budget of requests is spent."""


def connect(
  section: str,
  kind: str,
  *,
  model: str,
  base_url: str,
  key_variable: str,
  limits: Limits,
  temperature: float = 0.0,
) -> "Endpoint":
  """Makes an endpoint and checks that it answers. The caller must close it.

  Args:
    section: section of the config, such as "config.judge", for messages.
    kind: the protocol, "openai" or "anthropic".
    model: its name, as the endpoint knows it.
    base_url: empty for the vendor's own (`URLS`).
    key_variable: the environment variable that holds the key.
    limits: on requests and replies.
    temperature: of sampling; only OpenAI's protocol has it.

  Raises:
    InputError: there is no such variable; or `Endpoint` or its `check` raises it.
  """
  if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", key_variable):  # it may be the key itself
    raise errors.InputError(
      f"{section}.key_variable: needs the name of an environment variable, not the key itself: "
      "export MY_KEY=…, and give MY_KEY"
    )
  key = os.environ.get(key_variable, "")
  if not key:
    raise errors.InputError(
      f"{section}.key_variable={key_variable}: the environment has no such variable; "
      "export the key in it (any word where the endpoint asks for none)"
    )
  endpoint = Endpoint(
    section,
    kind,
    model=model,
    base_url=base_url,
    key=key,
    limits=limits,
    temperature=temperature,
  )
  with contextlib.ExitStack() as on_failure:
    on_failure.callback(endpoint.close)
    endpoint.check()
    on_failure.pop_all()
  return endpoint


class Endpoint:
  """A model that answers over HTTP. Implements judge_text.JudgeModel.

  Several threads may use it.
  """

  def __init__(
    self,
    section: str,
    kind: str,
    *,
    model: str,
    base_url: str,
    key: str,
    limits: Limits,
    temperature: float = 0.0,
  ):
    """Starts the thread and sends nothing yet. Arguments: as in `connect`; key is the key itself.

    Raises:
      InputError: the client is not installed, or the address or the key is malformed.
    """
    self._sdk = _sdk(section, kind)
    self._section, self._kind, self._model, self._limits = section, kind, model, limits
    self._temperature = temperature
    self._url = check_url(section, base_url or URLS[kind])
    if not (key.isascii() and key.isprintable()) or " " in key:
      raise errors.InputError(
        f"{section}.key_variable: the key has characters that no key has "
        "(a line end or a space?); export it again"
      )
    client, failure = {
      "openai": ("AsyncOpenAI", "OpenAIError"),
      "anthropic": ("AsyncAnthropic", "AnthropicError"),
    }[kind]
    # A client wraps and retries exceptions that are not subclasses of its own.
    self._over_budget = type("OverBudget", (getattr(self._sdk, failure),), {})
    hooks = {"request": [self._before_request], "response": [self._after_response]}
    self._client = getattr(self._sdk, client)(
      api_key=key,
      base_url=self._url,
      timeout=limits.timeout,
      max_retries=limits.retries,
      http_client=self._sdk.DefaultAsyncHttpxClient(event_hooks=hooks),
    )
    self._counts: collections.Counter[str] = collections.Counter()
    self._spent = 0  # requests of this process
    self._tokens: int | None = 0  # of all prompts and replies; None if a response did not say
    self._next = 0.0  # no request starts before this time of the loop
    self._started: weakref.WeakSet[asyncio.Task] = weakref.WeakSet()  # have sent a request
    self._slots = asyncio.Semaphore(limits.in_flight)
    self._gate = asyncio.Lock()
    self._loop = asyncio.new_event_loop()
    self._thread = threading.Thread(target=self._loop.run_forever, name=section, daemon=True)
    self._thread.start()

  def check(self) -> None:
    """Sends one tiny request, with retries, to see whether the endpoint works.

    A reply without text passes, because models that reason may spend all their tokens on that. So
    does the status "too many requests".

    Raises:
      InputError: the endpoint is down, the last retry failed too, or it rejects the key, the model
        or the request.
    """
    retries = min(self._limits.retries, (self._limits.budget or sys.maxsize) - 1)
    try:
      reply, _ = self._wait_for(self._send("This is a test.", "Reply with the word Yes.", retries))
    except Unavailable as error:
      if error.status != 429:
        raise
    else:
      if reply is None:
        raise errors.InputError(
          f"{self._section}.base_url={self._url}: answers, but not in the protocol of "
          f"{self._kind}; correct the address or the protocol"
        )

  def ask(self, questions: Sequence[EndpointQuestion]) -> list[Any]:
    """Asks all questions, and returns what each of them reads in its reply.

    None: no usable reply after all retries, or the budget is spent.

    Raises:
      InputError: the endpoint rejects the key.
    """
    return self._wait_for(self._all(questions))

  def reply(self, system: str, content: str | list[dict[str, Any]]) -> str | None:
    """Returns the text of the reply to one user message; None if the body doesn't fit the protocol.

    Args:
      system: the system message; empty for none.
      content: the user message, a text or a list of content parts of the protocol.

    Raises:
      Unavailable, RequestRefused, OverBudget: the message is one line for the user.
    """
    return self._wait_for(self._send(system, content, self._limits.retries))[0]

  def counts(self) -> Mapping[str, float]:
    """Returns counts since the last call.

    requests: all that were sent.
    retries: requests other than the first for a question.
    over_budget: questions not asked because the budget was spent.
    unanswered: questions whose last request failed, or whose reply did not fit the protocol.
    """
    counts, self._counts = self._counts, collections.Counter()
    return {name: float(counts[name]) for name in _COUNT_NAMES}

  def tokens_used(self) -> int | None:
    """Tokens of all prompts and replies so far; None if the endpoint doesn't say them."""
    return self._tokens

  def close(self) -> None:
    """Cancels running requests and ends the thread."""
    if self._loop.is_closed():
      return
    self._wait_for(self._shut())
    self._loop.call_soon_threadsafe(self._loop.stop)
    self._thread.join()
    self._loop.close()

  def _wait_for(self, work: Coroutine[Any, Any, Any]) -> Any:
    """Runs a coroutine on the loop and waits for it; an interruption cancels it."""
    future = asyncio.run_coroutine_threadsafe(work, self._loop)
    try:
      return future.result()
    finally:
      future.cancel()

  async def _shut(self) -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
      task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    await self._client.close()

  async def _all(self, questions: Sequence[EndpointQuestion]) -> list[Any]:
    try:
      async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(self._answer(question)) for question in questions]
    except ExceptionGroup as failed:
      raise failed.exceptions[0] from None
    return [task.result() for task in tasks]

  async def _answer(self, question: EndpointQuestion) -> Any:
    retries, reply = self._limits.retries, None
    while retries >= 0:
      try:
        reply, taken = await self._send(question.system, question.text, retries)
      except OverBudget:
        self._counts["over_budget"] += 1
        return None
      except Unavailable:
        reply = None
        break
      except RequestRefused as error:
        if error.status == 401:
          raise
        return None
      answer = None if reply is None else question.read(reply)
      if answer is not None:
        return answer
      retries -= taken + 1
    self._counts["unanswered"] += reply is None
    return None

  async def _send(
    self, system: str, content: str | list[dict[str, Any]], retries: int
  ) -> tuple[str | None, int]:
    """Sends one question. Raises what `reply` raises.

    Returns (text of the reply or None if the body doesn't fit the protocol, number of retries).
    """
    user = {"role": "user", "content": content}
    fields: dict[str, Any] = {"model": self._model, "max_tokens": self._limits.max_tokens}
    client = self._client.with_options(max_retries=retries)
    if self._kind == "openai":
      opening = [{"role": "system", "content": system}] if system else []
      create = client.chat.completions.with_raw_response.create
      fields |= {"messages": [*opening, user], "temperature": self._temperature}
    else:  # the protocol has no temperature any more
      create = client.messages.with_raw_response.create
      fields |= {"messages": [user], **({"system": system} if system else {})}
    async with self._slots:
      try:
        raw = await create(**fields)
      except self._over_budget:
        raise OverBudget(f"{self._section}.budget: is spent") from None
      except self._sdk.APIStatusError as error:
        raise self._problem(error) from None
      except self._sdk.APIError:  # no connection or a time-out
        raise Unavailable(
          f"{self._section}.base_url={self._url}: no answer; start the endpoint or correct the "
          "address, and the same command goes on"
        ) from None
    body = raw.http_response.text
    used = endpoint_response.tokens_of(body)
    self._tokens = None if used is None or self._tokens is None else self._tokens + used
    return endpoint_response.text_of(body), raw.retries_taken

  async def _before_request(self, request: Any) -> None:
    """Waits until a request or retry may start, and counts it. A hook of the HTTP client."""
    rate = self._limits.requests_per_minute
    async with self._gate:  # one after the other, because the wait may grow meanwhile
      while (wait := self._next - self._loop.time()) > 0:
        await asyncio.sleep(wait)
      self._next = self._loop.time() + (60 / rate if rate else 0)
    if self._limits.budget and self._spent >= self._limits.budget:
      raise self._over_budget
    self._spent += 1
    task = asyncio.current_task()  # each question has its own
    assert task is not None
    self._counts.update(requests=1, retries=task in self._started)
    self._started.add(task)

  async def _after_response(self, response: Any) -> None:
    """Delays all requests for as long as a busy endpoint asks. A hook of the HTTP client."""
    if not _is_transient(response.status_code):
      return
    wait = min(endpoint_response.seconds_to_wait(response.headers), _LONGEST_PAUSE)
    if wait > 0:  # false for NaN
      self._next = max(self._next, self._loop.time() + wait)
      # The client waits this long before it retries.
      response.headers["retry-after-ms"] = str(1000 * wait)

  def _problem(self, error: Any) -> errors.InputError:
    """Makes the exception for an error status.

    If the key was rejected, the endpoint's text is left out, because it may contain the key.
    """
    status = error.status_code
    if _is_transient(status):
      return Unavailable(
        f"{self._section}.base_url={self._url}: fails (status {status}), retries included; "
        "once it answers, the same command goes on",
        status,
      )
    if status in (401, 403):
      return RequestRefused(
        f"{self._section}.key_variable: {self._url} refuses its key (status {status}); "
        "export a valid one, or correct base_url",
        status,
      )
    body = " ".join(error.response.text.split()).replace(self._client.api_key, "…")[:300]
    return RequestRefused(
      f"{self._section}: {self._url} refuses what {self._model!r} is asked "
      f"(status {status}: {body!r}); correct model or base_url, or change what it names",
      status,
    )


def _sdk(section: str, kind: str) -> ModuleType:
  """Imports the client's package, which has the name of the protocol."""
  try:
    return importlib.import_module(kind)
  except ImportError as error:
    raise errors.InputError(
      f"{section}: the package {kind} is missing; pip install 'vr_jax[judge]'"
    ) from error


def _is_transient(status: int) -> bool:
  """Whether the same request may succeed later."""
  return status in _TRANSIENT or status >= 500


def check_url(section: str, url: str) -> str:
  """Returns the URL; raises InputError, without it, if it is malformed or may hold a key."""
  try:
    parts = urllib.parse.urlsplit(url)
    fits = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
  except ValueError:  # a port that is not a number, or stray brackets
    fits = False
  if not fits or parts.username is not None or parts.query or parts.fragment:
    raise errors.InputError(
      f"{section}.base_url: needs the form http(s)://host[:port][/path], without a user or query; "
      "keys come from the environment"
    )
  return url
